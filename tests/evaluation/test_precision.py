"""Tests of `lwr precision`: int8 against float32 on dev, and the refusal beyond the margin."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny

from lwr.common.errors import BadInput
from lwr.config.evaluation import ScoringConfig
from lwr.evaluation.precision import compare_precision
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.score import score

ARM = {
    "dataset": "made-up",
    "trained_on": "made-up",
    "base_model": "bert",
    "start_layer": 3,
    "variant": "default",
}
QUERIES = {f"q{i}": f"load the object number {i}" for i in range(6)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(8)}
INT8 = ScoringConfig(precision="int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make a model, a collection of which one query is not judged, and the model's dev scores in both precisions."""
    folder = tmp_path_factory.mktemp("precision")
    reranker = LayerwiseReranker(
        tiny.backbone("bert"),
        tiny.tokenizer(encoder=True),
        start_layer=3,
        query_max_len=16,
        passage_max_len=48,
    )
    reranker.save_pretrained(folder / "model")
    qrels = {"dev": {query: {f"d{i}": 1} for i, query in enumerate(QUERIES) if i}}
    write_collection(folder, [Passage(doc, "", text) for doc, text in PASSAGES.items()], QUERIES, qrels)
    write_run(
        folder / "dev.trec",
        {query: [(doc, -float(doc[1:])) for doc in PASSAGES] for query in QUERIES},
        "made-up",
    )
    for name, settings in (("int8", INT8), ("float32", ScoringConfig())):
        score(folder / "model", folder, "dev", folder / "dev.trec", settings, folder / f"{name}.parquet")
    return folder


def compare(folder: Path, scores: Path, margin: float = 0.02) -> dict:
    out = folder / "precision.json"
    out.unlink(missing_ok=True)
    compare_precision([folder / "model"], [scores], folder, INT8, margin, "nDCG@10", ARM, out)
    return json.loads(out.read_text())


def test_every_exit_is_compared_on_the_judged_queries(folder):
    record = compare(folder, folder / "int8.parquet", margin=1.0)
    assert [row["exit"] for row in record["exits"]] == ["layer_3", "layer_4"]
    assert record["dev queries"] == len(QUERIES) - 1
    assert all(row["low"] <= row["difference"] <= row["high"] for row in record["exits"])


def test_equal_scores_lose_nothing(folder):
    # scores that are called int8, but were computed in float32
    record = compare(folder, folder / "float32.parquet")
    assert [row["difference"] for row in record["exits"]] == [0, 0]
    assert all(0 < row["float32"] < 1 for row in record["exits"])


def test_a_loss_beyond_the_margin_is_refused(folder, tmp_path):
    # the deepest exit of the table ranks the relevant passage last, so that it loses
    table = pd.read_parquet(folder / "float32.parquet")
    relevant = [f"d{query[1:]}" == doc for query, doc in zip(table["query_id"], table["doc_id"], strict=True)]
    table.loc[relevant, "layer_4"] = -1e6
    table.to_parquet(tmp_path / "worse.parquet")
    with pytest.raises(
        BadInput, match=r"int8 changes layer 4 by -0\.\d+ .* on 5 dev queries, a larger loss than the margin"
    ):
        compare(folder, tmp_path / "worse.parquet")
    assert not (folder / "precision.json").exists()


def test_a_loss_of_a_shallower_exit_is_told_and_not_refused(folder, tmp_path):
    table = pd.read_parquet(folder / "float32.parquet")
    table["layer_3"] = -table["layer_3"]
    table.to_parquet(tmp_path / "other.parquet")
    shallow, deepest = compare(folder, tmp_path / "other.parquet")["exits"]
    assert shallow["difference"] != 0
    assert deepest["difference"] == 0
