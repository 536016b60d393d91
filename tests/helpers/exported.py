"""Rerankers to export, and their scores."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from torch import Tensor

from lwr.config.model import BaseModelConfig
from lwr.config.training import LoraConfig
from lwr.model.batching import pad
from lwr.model.linear.lora import add_lora
from lwr.model.loading import load_base_model
from lwr.model.reranker import LayerwiseReranker

LONG_PASSAGE = "def decode(s): return s  # and so on " * 60
PAIRS = [
    ("how is a string decoded?", "Decode a JSON document from a string."),
    ("who?", "Raise ValueError."),
    ("3 (of) 5", LONG_PASSAGE),
]


def save_reranker_and_base(folder: Path, architecture: str, lora: bool = False, **options) -> Path:
    """Save a reranker with heads at layers 2 to 4, and its base model."""
    base = BaseModelConfig(model=str(tiny.save(architecture, folder / "base")), attention="eager")
    loaded = load_base_model(base)
    return save_reranker(folder / "reranker", loaded.backbone, loaded.tokenizer, lora, base=base, **options)


def save_reranker(folder: Path, backbone, tokenizer, lora: bool = False, **options) -> Path:
    heads = {k: torch.randn(tiny.HIDDEN) for k in range(1, tiny.LAYERS + 1)}
    options = {"start_layer": 2, "initial_heads": heads} | options
    model = LayerwiseReranker(backbone, tokenizer, **options)
    if lora:
        add_lora(model, LoraConfig(rank=4, alpha=8))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def assert_scores_close(actual: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Compare scores, float32 [pairs], within 1e-5, or 1e-5 times the largest: float32 rounds in proportion to it."""
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=1e-5 * largest, rtol=rtol)


@torch.no_grad()
def reranker_scores(folder: str | Path, layer: int, pairs=PAIRS, **options) -> Tensor:
    """Return the scores of exit `layer`, float32 [pairs]."""
    model = LayerwiseReranker.from_pretrained(folder, device="cpu", attention="eager", **options)
    return model.encode(pad(model.prompt.rows(pairs), model.tokenizer, model.num_embeddings), [layer])[0]
