"""Compute the contrastive loss of a group: softmax cross-entropy, the positive against the negatives.

Source: Gao, Dai and Callan 2021, "Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline" (localised
contrastive estimation). Upstream's loss of the labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(scores: Tensor) -> Tensor:
    """Return the mean over groups of the negative log-probability of the positive, in nats.

    A value near ln(group size) means chance.

    Args:
        scores: float [groups, group size], the positive first.
    """
    positive_first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)  # [groups]
    return F.cross_entropy(scores, positive_first)
