"""A results tree of two seeds, by the steps themselves, in seconds; pages and figures are made up."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from unittest.mock import patch

import tiny
import torch

from lwr.common.json_lines import write_json
from lwr.config.data import FirstStageConfig, MiningConfig
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig
from lwr.data.mine import mine
from lwr.data.retrieve import retrieve
from lwr.evaluation.cascade import cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import cost
from lwr.evaluation.evaluate import evaluate
from lwr.formats.beir import Passage, write_collection
from lwr.formats.checkpoint import describe_checkpoint
from lwr.reporting.advise import advise
from lwr.reporting.tables import tables
from lwr.scoring.score import score
from lwr.training.train import train

ARM = {"dataset": "docs", "trained_on": "docs", "base_model": "tiny", "start_layer": 3, "variant": "default"}
SPLITS = {"train": range(6), "dev": range(6, 10), "test": range(10, 14)}
SHORT = {"query": "{query}", "passage": "{passage}", "after": ["?"]}
TRAIN = TrainingConfig(
    steps=2, groups_per_batch=2, group_size=3, query_max_len=8, passage_max_len=40, eval_steps=2
)


def build(folder: Path) -> Path:
    """The folder `results` in `folder`."""
    queries = {f"q{i}": f"decode the number {i * i}" for i in range(14)}
    passages = [Passage(f"d{i}", "", f"def f{i}(self, x): return decode(x, {i * i})") for i in range(20)]
    qrels = {split: {f"q{i}": {f"d{i}": 1} for i in places} for split, places in SPLITS.items()}
    results, base = folder / "results", BaseModelConfig(model=str(folder / "base"), template=SHORT)
    tiny.save("llama", folder / "base")
    write_json(results / "base_models/tiny.json", describe_checkpoint(base.model, None, None))
    collection = results / "collections/docs"
    write_collection(collection, passages, queries, qrels)
    for split in SPLITS:
        retrieve(collection, collection / f"runs/{split}.trec", split, FirstStageConfig(depth=8))
    mine(collection, collection / "runs/train.trec", collection / "groups.jsonl", MiningConfig(negatives=3))

    arm, on = results / "cells/docs/tiny/start3/default", ("dev", "test")
    models = {seed: arm / f"seed{seed}/model" for seed in (1, 2)}
    scores = {s: {seed: arm / f"seed{seed}/scores/docs/{s}.parquet" for seed in models} for s in on}
    for seed, model in models.items():
        dev = collection / "runs/dev.trec"
        train(base, 3, TRAIN, collection / "groups.jsonl", collection, dev, seed, model)
        for split in on:
            run = collection / f"runs/{split}.trec"
            score(model, collection, split, run, ScoringConfig(), scores[split][seed])
    decided, spent = arm / "cascade/docs.json", arm / "cost/docs.json"
    of_seeds = [list(scores[split].values()) for split in on]
    cascade(models[1], *of_seeds, collection, CascadeSearchConfig(epsilon=0.9, keep=[3]), ARM, decided)
    cost(
        models[1],
        collection,
        scores["test"][1],
        decided,
        ScoringConfig(),
        CostConfig(queries=None),
        ARM,
        spent,
    )
    measures = []
    for split in on:
        for seed, file in scores[split].items():
            measures.append(arm / f"seed{seed}/measures/docs/{split}.parquet")
            runs, cell = arm / f"seed{seed}/runs/docs/{split}", ARM | {"seed": seed}
            evaluate(file, collection, split, ["nDCG@10", "RR@10"], decided, cell, measures[-1], runs)
    tables(measures, [spent], [decided], "nDCG@10", results / "tables")
    compare(measures, "nDCG@10", 0.02, results / "tables")
    advise(results / "tables", results / "tables/recommendation.md", None, None)
    (results / "figures").mkdir()
    for kind, content in {
        "html": b"</html>",
        "svg": b"</svg>",
        "png": b"IEND\xaeB`\x82",
        "json": b"{}",
    }.items():
        (results / f"figures/quality.{kind}").write_bytes(content)
    (results / "report.html").write_text("<html></html>\n")
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    with patch("sys.stderr"), contextlib.redirect_stdout(None):
        build(Path(sys.argv[1]))
