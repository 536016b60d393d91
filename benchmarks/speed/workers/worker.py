"""What every worker does: read a task a line, measure it, answer a line. Runs in each peer's environment."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


def serve(work: Callable[..., Any]) -> None:
    """work(**task) -> what it computed, as JSON; it is timed, and its peak memory above what stood there before."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    for line in sys.stdin:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        began = time.perf_counter()
        value = work(**json.loads(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "mib": memory("VmHWM") - before, "value": value}
        print(json.dumps(answer), file=answers, flush=True)


def memory(name: str) -> float:
    """MiB; VmRSS: now, VmHWM: the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def training(folder: Path, loss_of: Callable[[dict], Any], parameters: Iterable) -> Callable[[bool], float]:
    """A step over batch.json, padded on the left: loss_of(batch) -> scalar tensor; AdamW on what has gradients."""
    ids, mask = _padded(json.loads((folder / "batch.json").read_text()))
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-5)

    def step(bf16: bool) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _padded(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask, on the left: FlagEmbedding reads the last position."""
    longest = max(map(len, rows))
    padding = [[0] * (longest - len(row)) for row in rows]
    ids = [before + row for before, row in zip(padding, rows, strict=True)]
    return ids, [before + [1] * len(row) for before, row in zip(padding, rows, strict=True)]
