"""Measure how fast a training runs, compared with how fast its machine multiplies matrices."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lwr.evaluation.flops import BackboneShape, count_flops
from lwr.model.cascade_schedule import Compression


class Throughput:
    """A counter of the tokens and FLOPs of training steps.

    It counts model FLOPs as in PaLM's MFU (Chowdhery et al. 2022): forward and backward pass of unpadded rows up to the
    last layer; recomputed activations do not count. The peak is measured, so it is known for any device.
    """

    def __init__(self, shape: BackboneShape, device: torch.device, dtype: torch.dtype, frozen_backbone: bool):
        """Measure the peak and start counting.

        Args:
            shape: The shape of the backbone.
            device: The device of the training.
            dtype: The dtype of its matrix products.
            frozen_backbone: Weights have no gradients, as under LoRA: a matrix product takes two passes, not three.
        """
        self.shape = shape
        self.passes = 2 if frozen_backbone else 3
        self.peak = measure_matmul_speed(device, dtype)  # FLOP/s
        self._restart()

    def _restart(self) -> None:
        self.tokens, self.flop_count, self.start = 0, 0.0, time.monotonic()

    def add_batch(
        self,
        attention_mask: Tensor,
        passage_mask: Tensor | None = None,
        compression: Compression | None = None,
    ) -> None:
        """Count a pass over a batch.

        Args:
            attention_mask: int64 [rows, tokens].
            passage_mask: int64 [rows, tokens], 1 where compression may average.
            compression: That of the pass; None: none.
        """
        lengths = attention_mask.sum(dim=1).cpu().numpy()  # [rows]
        passages = None if passage_mask is None else passage_mask.sum(dim=1).cpu().numpy()
        self.tokens += int(lengths.sum())
        flops = count_flops(self.shape, lengths, passages, compression)[-1].sum()
        self.flop_count += self.passes * float(flops)

    def pop_rates(self) -> dict[str, float]:
        """Return the rates of this process since the last call, and start counting again.

        Returns:
            `tokens_per_second`, and `mfu`, the share of the peak that was used.
        """
        seconds = time.monotonic() - self.start
        rates = {"tokens_per_second": self.tokens / seconds, "mfu": self.flop_count / seconds / self.peak}
        self._restart()
        return rates


def measure_matmul_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Return the FLOP/s of the fastest among the square matrix products that are repeated for `seconds`."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = _time_product(a, b)  # warms up
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        fastest = min(fastest, _time_product(a, b))
    return 2 * size**3 / fastest


def _time_product(a: Tensor, b: Tensor) -> float:
    """Return the seconds that a matrix product takes."""
    start = time.perf_counter()
    torch.matmul(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
