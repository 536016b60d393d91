"""Build a small results tree of two seeds with the steps themselves; figures and report are placeholders."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import tiny
import torch

from lwr.common.exits import Arm, Cell
from lwr.common.json_lines import write_json
from lwr.common.results_tree import ResultsTree
from lwr.config.data.dataset import MiningConfig
from lwr.config.data.first_stage import Bm25FirstStage, DenseFirstStage
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, FusionConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.teachers.sections import BiEncoderTeacher
from lwr.config.training import DistillationConfig, TrainingConfig
from lwr.data.mine import mine
from lwr.data.retrieve import retrieve
from lwr.evaluation.calibrate import calibrate
from lwr.evaluation.cascade import ChoiceRule, cascade
from lwr.evaluation.compare import compare
from lwr.evaluation.cost import ArmFiles, cost
from lwr.evaluation.evaluate import evaluate
from lwr.evaluation.fuse import fuse
from lwr.formats.beir import Passage, Split, write_collection
from lwr.formats.checkpoint import describe_checkpoint
from lwr.reporting.advise import advise
from lwr.reporting.tables import tables
from lwr.scoring.embed import embed
from lwr.scoring.score import score
from lwr.scoring.teach import teach
from lwr.training.train import train

ARM = Arm("docs", "tiny", 3, "default")
CELLS = [Cell(**asdict(ARM), seed=seed) for seed in (1, 2)]
QUERIES = {"train": range(6), "dev": range(6, 10), "test": range(10, 14)}
"""Split -> numbers of its queries; passage i answers query i."""
TEMPLATE = {"query": "{query}", "passage": "{passage}", "after": ["?"]}
TRAINING = TrainingConfig(
    steps=2,
    groups_per_batch=2,
    group_size=3,
    query_max_len=8,
    passage_max_len=40,
    eval_steps=2,
    distillation=DistillationConfig(external="cosine"),
)
MEASURES = ["nDCG@10", "RR@10"]
FIGURE = {"html": b"</html>", "svg": b"</svg>", "png": b"IEND\xaeB`\x82", "json": b"{}"}


def build(folder: Path) -> Path:
    """Write base model and results tree into `folder`; return the tree's folder."""
    tree = ResultsTree(folder / "results")
    base = BaseModelConfig(model=str(tiny.save("llama", folder / "base")), template=TEMPLATE)
    write_json(tree.base_model("tiny"), describe_checkpoint(base.model, None, None))
    _collect(tree, base.model)
    teacher = BiEncoderTeacher(kind="bi_encoder", model=base.model)
    run, taught = tree.run("docs", "train"), tree.teacher_run("docs", "cosine")
    teach(teacher, tree.collection("docs"), run, taught, "cosine")
    for cell in CELLS:
        _train_and_score(tree, cell, base)
    _search_and_time(tree)
    measures = [_evaluate(tree, cell, split) for split in ("dev", "test") for cell in CELLS]
    calibrations = [_calibrate(tree, cell) for cell in CELLS]
    tables(measures, [tree.cost("docs")], [tree.cascade(ARM, "docs")], calibrations, "nDCG@10", tree.tables)
    compare(measures, "nDCG@10", 0.02, tree.tables)
    advise(tree.tables, tree.recommendation, None, None)
    tree.figures.mkdir()
    for suffix, content in FIGURE.items():
        (tree.figures / f"quality.{suffix}").write_bytes(content)
    tree.report.write_text("<html></html>\n")
    return tree.root


def _collect(tree: ResultsTree, model: str) -> None:
    queries = {f"q{i}": f"decode the number {i * i}" for i in range(14)}
    passages = [Passage(f"d{i}", "", f"def f{i}(self, x): return decode(x, {i * i})") for i in range(20)]
    qrels = {split: {f"q{i}": {f"d{i}": 1} for i in numbers} for split, numbers in QUERIES.items()}
    collection = tree.collection("docs")
    write_collection(collection, passages, queries, qrels)
    for split in ("train", "dev"):
        retrieve(collection, tree.run("docs", split), split, Bm25FirstStage(depth=8))
    first_stage = DenseFirstStage(kind="dense", model=model, depth=8)
    embed(collection, first_stage, tree.embeddings("docs"))
    retrieve(collection, tree.run("docs", "test"), "test", first_stage, tree.embeddings("docs"))
    mine(collection, tree.run("docs", "train"), tree.groups("docs"), MiningConfig(negatives=3))


def _train_and_score(tree: ResultsTree, cell: Cell, base: BaseModelConfig) -> None:
    collection, model = tree.collection("docs"), tree.model(cell)
    dev = tree.run("docs", "dev")
    teacher = tree.teacher_run("docs", "cosine")
    files = (tree.groups("docs"), collection, dev)
    train(base, 3, TRAINING, *files, cell.seed, model, cell=cell, teacher_run=teacher)
    for split in ("dev", "test"):
        run, scores = tree.run("docs", split), tree.scores(cell, "docs", split)
        score(model, collection, split, run, ScoringConfig(), scores)


def _search_and_time(tree: ResultsTree) -> None:
    dev, test = ([tree.scores(cell, "docs", split) for cell in CELLS] for split in ("dev", "test"))
    model, collection, chosen = tree.model(CELLS[0]), tree.collection("docs"), tree.cascade(ARM, "docs")
    about = {"dataset": "docs", **asdict(ARM)}
    search, timing = CascadeSearchConfig(epsilon=0.9, keep=[3]), CostConfig(queries=None)
    weights = tree.fusion(ARM, "docs")
    fuse(dev, collection, FusionConfig(), "nDCG@10", about, weights)
    cascade(model, dev, test, collection, search, about, chosen, ChoiceRule(fusion=weights))
    cost([ArmFiles(model, test[0], chosen, weights)], collection, ScoringConfig(), timing, tree.cost("docs"))


def _evaluate(tree: ResultsTree, cell: Cell, split: Split) -> Path:
    scores, out = tree.scores(cell, "docs", split), tree.measures(cell, "docs", split)
    about = {"dataset": "docs", **asdict(cell)}
    collection, chosen = tree.collection("docs"), tree.cascade(ARM, "docs")
    runs, weights = tree.runs(cell, "docs", split), tree.fusion(ARM, "docs")
    evaluate(scores, collection, split, MEASURES, chosen, about, out, runs, weights)
    return out


def _calibrate(tree: ResultsTree, cell: Cell) -> Path:
    dev, test = (tree.scores(cell, "docs", split) for split in ("dev", "test"))
    out, about = tree.calibration(cell, "docs"), {"dataset": "docs", **asdict(cell)}
    calibrate(dev, test, tree.collection("docs"), about, out, tree.fusion(ARM, "docs"))
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    with patch("sys.stderr"), contextlib.redirect_stdout(None):
        build(Path(sys.argv[1]))
