"""Grids in Chinese, Japanese and German run from data to tables, with BM25 and with a hybrid first stage."""

from __future__ import annotations

import pandas as pd
import pytest
from mini_collections import LANGUAGES, write_mini_collection
from project import copy_project, keep_one_cell

from lwr.verify.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]

HYBRID = {"kind": "hybrid", "model": "./checkpoints/tiny-bert", "language": "german", "depth": 10}


def test_mini_collections_run_from_data_to_tables(tmp_path):
    project = copy_project(tmp_path)
    datasets = {}
    for language in LANGUAGES:
        write_mini_collection(language, tmp_path / "texts" / language)
        first_stage = HYBRID if language == "german" else {"language": language, "depth": 10}
        source = {"kind": "beir", "path": f"texts/{language}"}
        datasets[language] = {"source": source, "first_stage": first_stage, "mining": {"negatives": 3}}
    datasets["japanese"]["train"] = datasets["german"]["train"] = False
    datasets["chinese"]["tests"] = list(LANGUAGES)
    project.edit_config(lambda config: config.update(datasets=datasets))
    project.edit_config(keep_one_cell)
    project.snakemake()
    layers = pd.read_csv(project.results / "tables/layers.csv")
    quality = layers[layers["exit"] == "first_stage"].set_index("dataset")["nDCG@10"]
    assert set(quality.index) == set(LANGUAGES)
    assert quality[["chinese", "japanese"]].min() > 0.85
    assert quality["german"] > 0.4  # chance is 0.19, and the bi-encoder has random weights
    assert [path.name for path in project.results.glob("collections/*/embeddings")] == ["embeddings"]
    assert verify(project.results).faults == []
