"""Compute the layerwise loss: every exit learns from the labels, and from a deeper exit.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py, `BiEncoderModel.forward`.
With the defaults here, `total` is its loss to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lwr.config.training import Teacher


@dataclass(frozen=True)
class LayerwiseLoss:
    """The total that training minimises, and its terms per exit, unweighted and in nats, for logs.

    A contrastive loss near ln(group size) means chance.
    """

    total: Tensor  # []
    contrastive: Tensor  # [exits]
    distillation: Tensor  # [exits], 0 where an exit has no teacher


def layerwise_loss(
    scores: Tensor,
    teachers: Sequence[int | None],
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
    external: Tensor | None = None,
) -> LayerwiseLoss:
    """Sum, over exits, the cross-entropy to the label, to the exit's teacher, and to the external teacher.

    Args:
        scores: float32 [exits, groups, group size], shallowest exit first, the positive first in each group.
        teachers: For each exit the index of its teacher among the exits, or None (see `assign_teachers`).
        temperature: Divides student and teacher scores; the term is multiplied by its square (Hinton et al. 2015).
        weights: For each exit the weight of all of its terms; None weights every exit by 1.
        external: float32 [groups, group size], another model's scores; its term adds to the self-distillation.
    """
    positive_first = torch.zeros(scores.shape[1], dtype=torch.long, device=scores.device)
    contrastive = torch.stack([F.cross_entropy(exit_scores, positive_first) for exit_scores in scores])

    no_teacher = scores.new_zeros(())
    distillation = torch.stack(
        [
            no_teacher if teacher is None else _cross_entropy(student, scores[teacher], temperature)
            for student, teacher in zip(scores, teachers, strict=True)
        ]
    )
    if external is not None:
        distillation = distillation + torch.stack(
            [_cross_entropy(student, external, temperature) for student in scores]
        )

    weight = scores.new_tensor([1.0] * len(scores) if weights is None else weights)
    return LayerwiseLoss((weight * (contrastive + distillation)).sum(), contrastive, distillation)


def _cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over groups, for scores [groups, group size]; no gradient reaches the teacher."""
    targets = torch.softmax(teacher.detach() / temperature, dim=-1)
    log_student = torch.log_softmax(student / temperature, dim=-1)
    return -(targets * log_student).sum(dim=-1).mean() * temperature**2


def assign_teachers(exits: Sequence[int], teacher: Teacher, every: int | None = None) -> list[int | None]:
    """Choose the exit that each exit learns from.

    Args:
        exits: The layers with a head, ascending.
        teacher: `deepest` and `next` name the teacher itself; with `anchors` it is the next deeper exit whose layer is
            divisible by `every`, or the deepest.
        every: The distance between anchors, in layers; needed by `anchors` alone.

    Returns:
        The index in `exits` of each exit's teacher; None for an exit without one, such as the deepest.
    """
    last = len(exits) - 1

    def next_anchor(index: int) -> int:
        deeper = range(index + 1, last)
        return next((j for j in deeper if every and exits[j] % every == 0), last)

    match teacher:
        case "none":
            return [None] * len(exits)
        case "deepest":
            return [last] * last + [None]
        case "next":
            return [*range(1, last + 1), None]
        case "anchors":
            return [*map(next_anchor, range(last)), None]
