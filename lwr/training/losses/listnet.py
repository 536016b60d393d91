"""Compute ListNet: the listwise cross-entropy of graded targets or a teacher's scores.

Source: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (top-one probabilities).
"""

from __future__ import annotations

import torch
from torch import Tensor


def listnet(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over groups of the cross-entropy between the softmax of targets and of scores, in nats.

    A value near ln(group size) means chance. The smallest value is the entropy of the targets' softmax.

    Args:
        scores: float [groups, group size].
        targets: float [groups, group size], higher is better: labels, grades or a teacher's scores.
    """
    probabilities = torch.softmax(targets, dim=-1)  # [groups, group size]
    log_probabilities = torch.log_softmax(scores, dim=-1)  # [groups, group size]
    return -(probabilities * log_probabilities).sum(dim=-1).mean()
