"""A grid whose models have heads at some layers, each with its own norm, from training to the report."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from project import copy_project, keep_one_cell

from lwr.formats.fusion import read_fusion
from lwr.verify.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]

EXITS = [1, 3, 4]


def test_all_steps_take_layers_without_heads(tmp_path):
    project = copy_project(tmp_path)
    project.edit_config(keep_one_cell)
    project.edit_config(
        lambda config: config["train"].update({"head_every": 2, "exit_norm": "own", "eval_steps": 2})
    )
    project.edit_config(lambda config: config.update({"start_layers": [1]}))
    project.snakemake()

    arm = project.results / "cells/json-docs/tiny-llama/start1/default"
    scored = pd.read_parquet(arm / "seed1/scores/json-docs/test.parquet")
    assert [name for name in scored if name.startswith("layer_")] == [f"layer_{k}" for k in EXITS]
    layers = pd.read_csv(project.results / "tables/layers.csv", keep_default_na=False)
    assert sorted(set(layers["layer"])) == [0, *EXITS]
    assert read_fusion(arm / "fusion/json-docs.json").layers == EXITS
    decided = json.loads((arm / "cascade/json-docs.json").read_text(encoding="utf-8"))
    tried = {stage.partition(":")[0] for each in decided["schedules"] for stage in each["schedule"].split()}
    assert tried <= {"0", *map(str, EXITS)}
    assert verify(project.results).faults == []
