"""lwr: a training step, or scores of a list."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from worker import serve, training

from lwr.config.training import LoraConfig
from lwr.model.cascade_schedule import Schedule
from lwr.model.linear.lora import add_lora
from lwr.model.reranker import LayerwiseReranker
from lwr.training.losses.layerwise import assign_teachers, layerwise_loss
from lwr.training.recompute import set_recompute

folder, what, *options = sys.argv[1:]
folder = Path(folder)

if what == "train":
    groups, lora, recompute = int(options[0]), options[1] == "lora", options[2]
    torch.manual_seed(0)
    reranker = LayerwiseReranker.from_pretrained(folder / "last", device="cpu")
    if lora:
        add_lora(reranker, LoraConfig(rank=32, alpha=64))
    set_recompute(reranker.backbone, reranker.stack.blocks, recompute)
    reranker.train()
    teachers = assign_teachers(reranker.exits, "deepest")

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return layerwise_loss(reranker(batch).view(len(reranker.exits), groups, -1), teachers).total

    serve(training(folder, loss, reranker.parameters()))
else:
    reranker = LayerwiseReranker.from_pretrained(folder / what, device="cpu", precision="float32")
    lists = json.loads((folder / "lists.json").read_text())

    def score(lists_from: int, lists_to: int, layers: list[int], cascade: str | None = None):
        pairs = [(query, passage) for query, passages in lists[lists_from:lists_to] for passage in passages]
        rows = reranker.prompt.rows(pairs)
        if cascade:
            return reranker.rank_rows(rows, Schedule.parse(cascade)).order.tolist()
        return reranker.score_rows(rows, layers)[-1].tolist()

    serve(score)
