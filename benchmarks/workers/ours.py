"""lwr: a training step, or scores of a list."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from worker import padded, serve

from lwr.config import Lora
from lwr.recompute import set_recompute
from lwr.reranker import LayerwiseReranker
from lwr.schedule import Schedule

folder, what, *options = sys.argv[1:]
folder = Path(folder)

if what == "train":
    groups, lora, recompute = int(options[0]), options[1] == "lora", options[2]
    torch.manual_seed(0)
    reranker = LayerwiseReranker.from_pretrained(folder / "last", device="cpu")
    if lora:
        reranker.add_lora(Lora(rank=32, alpha=64))
    set_recompute(reranker.backbone, reranker.trunk.blocks, recompute)
    reranker.train()
    optimizer = torch.optim.AdamW([p for p in reranker.parameters() if p.requires_grad], lr=1e-5)
    ids, mask = padded(json.loads((folder / "batch.json").read_text()), "left")
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def step(bf16: bool) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = reranker(batch, groups=groups).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    serve(step)
else:
    reranker = LayerwiseReranker.from_pretrained(folder / what, device="cpu")
    lists = json.loads((folder / "lists.json").read_text())

    def score(lists_from: int, lists_to: int, layers: list[int], cascade: str | None = None):
        pairs = [(query, passage) for query, passages in lists[lists_from:lists_to] for passage in passages]
        rows = reranker.prompt.rows(pairs)
        if cascade:
            return reranker.rank_rows(rows, Schedule.parse(cascade)).order.tolist()
        return reranker.score_rows(rows, layers)[-1].tolist()

    serve(score)
