"""How fast a training goes, against how fast its machine multiplies matrices."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from lwr.evaluation.flops import Shape, flops


class Throughput:
    """Counts what training steps compute; `since_last` tells the rate.

    Model FLOPs, as in PaLM's MFU (Chowdhery et al. 2022): forward and backward of unpadded rows to the last layer;
    what is computed again counts once. The peak is measured here, so it holds for any device.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, frozen: bool):
        """frozen: the backbone has no gradients of weights, as under LoRA: a product takes two passes, not three."""
        self.shape, self.passes = shape, 2 if frozen else 3
        self.peak = measure_matmul_speed(device, dtype)
        self._restart()

    def _restart(self) -> None:
        self.tokens, self.work, self.start = 0, 0.0, time.monotonic()

    def add(self, mask: Tensor) -> None:
        """mask: int64 [rows, tokens] of a batch."""
        lengths = mask.sum(dim=1).cpu().numpy()
        self.tokens += int(lengths.sum())
        self.work += self.passes * float(flops(self.shape, lengths)[-1].sum())

    def since_last(self) -> dict[str, float]:
        """Of this process: tokens_per_second, and mfu, the share of `peak` that was used."""
        passed = time.monotonic() - self.start
        rates = {"tokens_per_second": self.tokens / passed, "mfu": self.work / passed / self.peak}
        self._restart()
        return rates


def measure_matmul_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of the fastest of some square products, as many as fit into the time."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    _wait(device, a @ b)
    fastest, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        _wait(device, a @ b)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * size**3 / fastest


def _wait(device: torch.device, _: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
