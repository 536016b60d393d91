"""Training by several processes, which `accelerate launch` starts inside one job."""

from __future__ import annotations

import json
import shutil

import pytest

from lwr.common.json_lines import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def losses(project) -> list[float]:
    log = next(project.folder.glob("results/test/cells/json-docs/tiny-llama/start2/*/*/model/training.jsonl"))
    return [row["loss"] for row in read_jsonl(log, {}) if "loss" in row]


def test_two_processes_have_the_losses_of_one(project):
    shutil.rmtree(project.results / "cells")
    project.edit_config(lambda config: config["train"].update(groups_per_batch=2, log_steps=1))
    target = "results/test/cells/json-docs/tiny-llama/start2/default/seed1/model"
    project.snakemake("--set-resources", "train:processes=2", "--", target)
    two = losses(project)
    provenance = json.loads((project.folder / target / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["processes"] == 2

    shutil.rmtree(project.folder / target)
    project.edit_config(lambda config: config["train"].update(groups_per_batch=4))
    project.snakemake("--", target)
    assert losses(project) == pytest.approx(two, abs=1e-5)
    assert len(two) == 4
