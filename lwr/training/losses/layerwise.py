"""Compute the layerwise loss: every exit learns by one loss from labels or scores, and from a deeper exit.

Upstream: FlagEmbedding, research/llm_reranker/finetune_for_layerwise/modeling.py, `BiEncoderModel.forward`.
With the defaults here, `total` is its loss to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwr.config.training import NEED_SCORES, Loss, Teacher
from lwr.training.losses.contrastive import contrastive
from lwr.training.losses.listnet import listnet
from lwr.training.losses.margin_mse import margin_mse
from lwr.training.losses.mse import mse
from lwr.training.losses.ranknet import ranknet


@dataclass(frozen=True)
class LayerwiseLoss:
    """The total that training minimises, and its terms per exit, unweighted, for logs."""

    total: Tensor  # []
    ranking: Tensor  # [exits], the loss that the config names
    distillation: Tensor  # [exits], in nats; 0 where an exit has no teacher


def layerwise_loss(
    scores: Tensor,
    teachers: Sequence[int | None],
    temperature: float = 1.0,
    weights: Sequence[float] | None = None,
    external: Tensor | None = None,
    loss: Loss = "contrastive",
) -> LayerwiseLoss:
    """Sum, over exits, a loss of labels or external scores and the cross-entropy to the exit's teacher.

    Args:
        scores: float32 [exits, groups, group size], shallowest exit first, the positive first in each group.
        teachers: For each exit the index of its teacher among the exits, or None (see `assign_teachers`).
        temperature: Divides student and teacher scores; the term is multiplied by its square (Hinton et al. 2015).
        weights: For each exit the weight of all of its terms; None weights every exit by 1.
        external: float32 [groups, group size], scores of another model, or grades. With the loss `contrastive`, the
            cross-entropy to them is added; any other loss takes them as its targets.
        loss: The loss of each exit.

    Raises:
        ValueError: `external` is missing and the loss needs it.
    """
    targets = None if external is None else external.detach()  # [groups, group size]
    ranking = torch.stack([_ranking_loss(loss, exit_scores, targets) for exit_scores in scores])

    no_teacher = scores.new_zeros(())
    distillation = torch.stack(
        [
            no_teacher if teacher is None else _cross_entropy(student, scores[teacher], temperature)
            for student, teacher in zip(scores, teachers, strict=True)
        ]
    )
    if targets is not None and loss == "contrastive":
        distillation = distillation + torch.stack(
            [_cross_entropy(student, targets, temperature) for student in scores]
        )

    weight = scores.new_tensor([1.0] * len(scores) if weights is None else weights)
    return LayerwiseLoss((weight * (ranking + distillation)).sum(), ranking, distillation)


def compression_loss(
    compressed: Tensor, full: Tensor, temperature: float = 1.0, weights: Sequence[float] | None = None
) -> Tensor:
    """Sum, over exits, the cross-entropy of the scores of compressed passages to those of complete ones: [].

    No gradient reaches the scores of complete passages.

    Args:
        compressed: float32 [exits, groups, group size].
        full: float32 [exits, groups, group size], of the same exits.
        temperature: As for `layerwise_loss`.
        weights: For each exit the weight of its term; None weights every exit by 1.
    """
    terms = [
        _cross_entropy(student, teacher, temperature)
        for student, teacher in zip(compressed, full, strict=True)
    ]
    weight = compressed.new_tensor([1.0] * len(terms) if weights is None else weights)
    return (weight * torch.stack(terms)).sum()


def _ranking_loss(loss: Loss, scores: Tensor, targets: Tensor | None) -> Tensor:
    """Return the loss of one exit for scores and targets [groups, group size]; without targets, of the labels."""
    if targets is None and loss in NEED_SCORES:
        raise ValueError(f"the loss {loss} needs teacher scores")
    if targets is None:
        targets = torch.zeros_like(scores)
        targets[:, 0] = 1
    match loss:
        case "contrastive":
            return contrastive(scores)
        case "mse":
            return mse(scores, targets)
        case "margin_mse":
            return margin_mse(scores, targets)
        case "ranknet":
            return ranknet(scores, targets)
        case "listnet":
            return listnet(scores, targets)


def _cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over groups, for scores [groups, group size]; no gradient reaches the teacher."""
    return listnet(student / temperature, teacher.detach() / temperature) * temperature**2


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
