"""What every worker does: read a task a line, measure it, answer a line. Runs in each peer's environment."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(work: Callable[..., Any]) -> None:
    """work(**task) -> what it computed, as JSON; it is timed, and its peak memory above what stood there before."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    for line in sys.stdin:
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        began = time.perf_counter()
        value = work(**json.loads(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "mib": _memory("VmHWM") - before, "value": value}
        print(json.dumps(answer), file=answers, flush=True)


def _memory(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def padded(rows: list[list[int]], side: str) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = [0] * (longest - len(row))
        ids.append(padding + row if side == "left" else row + padding)
        ones = [1] * len(row)
        mask.append(padding + ones if side == "left" else ones + padding)
    return ids, mask
