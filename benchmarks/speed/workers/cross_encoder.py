"""sentence-transformers: CrossEncoder.predict on a LlamaForSequenceClassification."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder
from worker import serve

folder = Path(sys.argv[1])
model = CrossEncoder(str(folder / "classifier"), device="cpu", activation_fn=torch.nn.Identity())
lists = json.loads((folder / "lists.json").read_text())


def score(lists_from: int, lists_to: int, layers: list[int]):
    pairs = [(query, passage) for query, passages in lists[lists_from:lists_to] for passage in passages]
    return model.predict(pairs, show_progress_bar=False).tolist()


serve(score)
