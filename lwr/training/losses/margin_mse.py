"""Compute the squared error of margins against a teacher's: how far the positive is above each negative.

Source: Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
Distillation".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def margin_mse(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over negatives of the squared difference of margins.

    A constant that is added to all scores or targets of a group changes nothing.

    Args:
        scores: float [groups, group size], the positive first.
        targets: float [groups, group size], the teacher's scores.
    """
    margins, teacher_margins = _margins(scores), _margins(targets)  # [groups, group size - 1]
    return F.mse_loss(margins, teacher_margins)


def _margins(scores: Tensor) -> Tensor:
    """Return the positive's score minus each negative's, [groups, group size - 1]."""
    return scores[:, :1] - scores[:, 1:]
