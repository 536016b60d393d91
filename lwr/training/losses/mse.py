"""Compute the squared error of scores against a teacher's, which teaches their values and not only their order.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (section 2.1: matching logits).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over passages of the squared difference.

    Args:
        scores: float [groups, group size].
        targets: float [groups, group size], the teacher's scores.
    """
    return F.mse_loss(scores, targets)
