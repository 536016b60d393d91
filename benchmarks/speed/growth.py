"""Measure how time and memory grow with passages, their length, exits and model size; print a Markdown table.

    python benchmarks/speed/growth.py

Measured are scoring a list and one training step (forward, backward) of Llamas with random weights, in float32. Each
line differs from the first in one number. Times are medians of rounds that visit all lines in turn; memory is the peak
of the process above its memory before. With --windows, only scoring is measured, of passages in 1 to 16 windows.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from peers import RETURN_MEMORY, describe_machine
from tqdm import tqdm
from transformers import LlamaConfig, LlamaModel
from workers.worker import memory

from lwr.compat import BiEncoderModel
from lwr.evaluation.cost import peak_memory, reset_peak_memory
from lwr.model.batching import pad
from lwr.model.prompt import Row
from lwr.training.recompute import set_recompute

VOCABULARY, GROUP_SIZE = 8000, 8


@dataclass(frozen=True)
class Case:
    """The size of a model and of its input."""

    passages: int = 32
    tokens: int = 128
    exits: int = 5
    layers: int = 12
    hidden: int = 256
    windows: int = 1


BASE = Case()
CASES = {
    "": [BASE],
    "passages": [replace(BASE, passages=n) for n in (8, 16, 64, 128)],
    "tokens": [replace(BASE, tokens=n) for n in (32, 64, 256, 512)],
    "exits": [replace(BASE, exits=n) for n in (1, 12)],
    "layers": [replace(BASE, layers=n) for n in (6, 24)],
    "hidden": [replace(BASE, hidden=n) for n in (128, 512)],
}

WINDOWS = [Case(passages=8, windows=n) for n in (1, 2, 4, 8, 16)]


class NoTokenizer:
    """A stand-in with the two attributes that padding reads."""

    padding_side, pad_token_id = "right", 0


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--windows", action="store_true", help="measure windows alone")
    given = options.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # glibc reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | RETURN_MEMORY)
    torch.set_num_threads(given.threads)
    cases = [(what, case) for what, varied in CASES.items() for case in varied]
    if given.windows:
        cases = [("windows", case) for case in WINDOWS]
    measured: dict[Case, list[list[float]]] = {case: [] for _, case in cases}
    measure(BASE, with_training=not given.windows)  # warms up
    for _, case in tqdm(cases * given.rounds, "cases"):
        measured[case].append(measure(case, with_training=not given.windows))
    print(f"{describe_machine(given.threads)}; {given.rounds} rounds\n")
    if given.windows:
        print("| passages | windows of each | tokens of a window | score, s | MiB |\n|--:|--:|--:|--:|--:|")
        for _, case in cases:
            score, score_mib = np.median(measured[case], axis=0)
            print(f"| {case.passages} | {case.windows} | {case.tokens} | {score:.3f} | {score_mib:.0f} |")
        return
    print("| what differs | passages | tokens | exits | layers | width | score, s | MiB | train, s | MiB |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for what, case in cases:
        score, score_mib, train, train_mib = np.median(measured[case], axis=0)
        shape = f"{case.passages} | {case.tokens} | {case.exits} | {case.layers} | {case.hidden}"
        print(f"| {what} | {shape} | {score:.3f} | {score_mib:.0f} | {train:.3f} | {train_mib:.0f} |")


def measure(case: Case, with_training: bool) -> list[float]:
    """Return seconds and MiB of scoring, then, if wanted, seconds and MiB of a training step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=case.hidden,
        intermediate_size=case.hidden * 5 // 2,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 32,
        num_key_value_heads=case.hidden // 32,
        vocab_size=VOCABULARY,
    )
    groups, start_layer = case.passages // GROUP_SIZE, case.layers - case.exits + 1
    reranker = BiEncoderModel(LlamaModel(config), None, groups, start_layer)
    reranker.tokenizer = NoTokenizer()
    set_recompute(reranker.backbone, reranker.stack.blocks, "cheap")
    rng = random.Random(0)

    def make_row() -> Row:
        return Row(rng.choices(range(3, VOCABULARY), k=case.tokens), None)

    rows = [
        replace(make_row(), further=tuple(make_row() for _ in range(case.windows - 1)))
        for _ in range(case.passages)
    ]
    reranker.eval()
    scored = _measure_call(lambda: reranker.score_rows(rows, reranker.exits))
    if not with_training:
        return scored
    reranker.train()
    batch = pad(rows, reranker.tokenizer)
    return scored + _measure_call(lambda: reranker(batch).loss.backward())


def _measure_call(work: Callable) -> list[float]:
    """Return the seconds and the MiB that a call takes."""
    reset_peak_memory()
    before = memory("VmRSS")
    start = time.perf_counter()
    work()
    return [time.perf_counter() - start, peak_memory() - before]


if __name__ == "__main__":
    main()
