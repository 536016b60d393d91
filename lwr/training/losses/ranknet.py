"""Compute RankNet: the logistic loss of every pair of passages whose targets differ.

Source: Burges et al. 2005, "Learning to Rank using Gradient Descent".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ranknet(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over pairs of the negative log-probability of their order, in nats.

    Only the order of the targets counts. Pairs with equal targets are left out; the loss is 0 if none is left. A value
    near ln(2) means chance.

    Args:
        scores: float [groups, group size].
        targets: float [groups, group size], higher is better: labels, grades or a teacher's scores.
    """
    differences = scores[:, :, None] - scores[:, None, :]  # [groups, group size, group size]
    is_better = targets[:, :, None] > targets[:, None, :]  # [groups, group size, group size]
    losses = F.softplus(-differences) * is_better  # -log sigmoid of the difference
    return losses.sum() / is_better.sum().clamp(min=1)
