"""A grid with compressed passages and with windows of long ones, from training to the report."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from project import copy_project, keep_one_cell

from lwr.formats.fusion import read_fusion
from lwr.model.cascade_schedule import Schedule
from lwr.verify.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]

EXITS = ["layer_2", "layer_3", "layer_4", "layer_4_compressed_3_by_2", "layer_4_compressed_3_by_4"]


def test_all_steps_take_widths_and_windows(tmp_path):
    project = copy_project(tmp_path)
    project.edit_config(keep_one_cell)
    windows = {"overlap": 2, "most": 3}
    project.edit_config(
        lambda config: config.update(
            {"start_layers": [2], "score": {"widths": [[3, 2], [3, 4]], "windows": windows}}
        )
    )
    project.edit_config(
        lambda config: config["train"].update(
            {"compression": {"layers": [2, 3], "ratios": [1, 2, 4]}, "passage_max_len": 160}
        )
    )
    project.snakemake()

    arm = project.results / "cells/json-docs/tiny-llama/start2/default"
    provenance = json.loads((arm / "seed1/model/provenance.json").read_text(encoding="utf-8"))
    assert provenance["settings"]["compression"]["layers"] == [2, 3]
    scored = pd.read_parquet(arm / "seed1/scores/json-docs/test.parquet")
    assert [name for name in scored if name.startswith("layer_")] == EXITS
    assert scored["windows"].nunique() > 1
    assert 0 < pd.read_csv(project.results / "tables/cost.csv")["cut"].min() < 1
    assert read_fusion(arm / "fusion/json-docs.json").exits == EXITS
    decided = json.loads((arm / "cascade/json-docs.json").read_text(encoding="utf-8"))
    tried = [Schedule.parse(each["schedule"]) for each in decided["schedules"]]
    assert {schedule.steps for schedule in tried} <= {(), ((3, 2),), ((3, 4),)}
    layers = pd.read_csv(project.results / "tables/layers.csv", keep_default_na=False)
    assert set(EXITS) <= set(layers["exit"])
    assert verify(project.results).faults == []
