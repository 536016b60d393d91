"""Measure whether a CPU multiplies numbers of 16 bits faster than float32."""

from __future__ import annotations

import time
from functools import cache

import torch

from lwr.common.progress import log

SIZE = 384  # of the measured matrices
ROUNDS = 3
SLOWER = 1.5
"""The ratio of times above which 16 bits count as slower; below, a busy machine may be the reason."""


def warn_if_slow(device: torch.device, dtype: torch.dtype) -> None:
    """Print a warning if bfloat16 or float16 is slower than float32 on a device. Only CPUs are measured."""
    if device.type != "cpu":
        return
    ratio = time_ratio(dtype)
    if ratio > SLOWER:
        name = str(dtype).removeprefix("torch.")
        log(
            f"lwr: precision {name}: this CPU multiplies in it {ratio:.1f} times as slowly as in float32; float32 is "
            "faster, and so is int8 for scoring"
        )


@cache
def time_ratio(dtype: torch.dtype) -> float:
    """Return the time of a product of matrices over that of float32 ones. Measuring takes milliseconds."""
    return _seconds(dtype) / _seconds(torch.float32)


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """Return the least CPU time of a few products."""
    matrix = torch.ones(SIZE, SIZE, dtype=dtype)
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        torch.nn.functional.linear(matrix, matrix)
        times.append(time.process_time() - began)
    return min(times)
