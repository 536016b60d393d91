"""Several processes per training, as `accelerate launch` starts them inside one job."""

from __future__ import annotations

import json
import shutil

import pytest

from lwr.files import read_jsonl

pytestmark = pytest.mark.slow


def losses(house) -> list[float]:
    log = next(house.folder.glob("results/test/cells/json-docs/tiny-llama/start2/*/*/model/training.jsonl"))
    return [row["loss"] for row in read_jsonl(log, {}) if "loss" in row]


def test_two_processes_follow_the_loss_of_one(finished, house):
    shutil.rmtree(house.folder / "results/test/cells")
    house.edit_config(lambda config: config["train"].update(groups_per_batch=2, log_steps=1))
    target = "results/test/cells/json-docs/tiny-llama/start2/default/seed1/model"
    house.snakemake("--set-resources", "train:processes=2", "--", target)
    two = losses(house)
    provenance = json.loads((house.folder / target / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["processes"] == 2

    shutil.rmtree(house.folder / target)
    house.edit_config(lambda config: config["train"].update(groups_per_batch=4))
    house.snakemake("--", target)
    assert losses(house) == pytest.approx(two, abs=1e-5)
    assert len(two) == 4
