"""Tests of the layerwise loss against upstream's formula, and of the choice of teachers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lwr.training.losses.layerwise import assign_teachers, compression_loss, layerwise_loss

EXITS, GROUPS, SIZE = 4, 3, 5
DEEPEST = [3, 3, 3, None]


@pytest.fixture
def scores() -> Tensor:
    """Return random scores, [exits, groups, group size], that differ by a few units."""
    return (2 * torch.randn(EXITS, GROUPS, SIZE)).requires_grad_()


def upstream(scores: Tensor) -> Tensor:
    """Compute upstream's loss: each exit learns the label, and each but the deepest learns from the deepest."""
    loss = torch.zeros(())
    for exit_scores in scores:
        loss = loss + F.cross_entropy(exit_scores, torch.zeros(GROUPS, dtype=torch.long))
    targets = torch.softmax(scores[-1].detach(), dim=-1)
    for exit_scores in scores[:-1]:
        loss = loss - torch.mean(torch.sum(torch.log_softmax(exit_scores, dim=-1) * targets, dim=-1))
    return loss


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """Compute the mean over groups in plain Python."""
    total = 0.0
    for s, t in zip((student / temperature).tolist(), (teacher / temperature).tolist(), strict=True):
        target = [math.exp(x) / sum(map(math.exp, t)) for x in t]
        total -= sum(p * (x - math.log(sum(map(math.exp, s)))) for p, x in zip(target, s, strict=True))
    return total / len(student)


def gradient(loss: Tensor, scores: Tensor) -> Tensor:
    return torch.autograd.grad(loss, scores)[0]


# --- the loss ------------------------------------------------------------------------------------------


def test_default_equals_upstream_loss_and_gradient(scores):
    loss, expected = layerwise_loss(scores, DEEPEST).total, upstream(scores)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient(loss, scores), gradient(expected, scores))


def test_single_exit_has_only_the_contrastive_loss(scores):
    loss = layerwise_loss(scores[-1:], [None])
    assert torch.equal(loss.total, F.cross_entropy(scores[-1], torch.zeros(GROUPS, dtype=torch.long)))
    assert loss.distillation.tolist() == [0]


def test_every_exit_has_a_teacher_or_none(scores):
    with pytest.raises(ValueError, match="shorter"):
        layerwise_loss(scores, DEEPEST[:-1])


def test_equal_scores_give_the_logarithm_of_the_group_size():
    loss = layerwise_loss(torch.zeros(EXITS, GROUPS, SIZE), DEEPEST)
    assert loss.ranking.tolist() == pytest.approx([math.log(SIZE)] * EXITS)
    assert loss.distillation.tolist() == pytest.approx([math.log(SIZE)] * (EXITS - 1) + [0])


def test_terms_of_each_exit(scores):
    loss = layerwise_loss(scores, DEEPEST)
    for k in range(EXITS):
        alone = F.cross_entropy(scores[k], torch.zeros(GROUPS, dtype=torch.long))
        assert loss.ranking[k].item() == pytest.approx(alone.item())
        taught = 0 if k == EXITS - 1 else soft_cross_entropy(scores[k], scores[-1])
        assert loss.distillation[k].item() == pytest.approx(taught, rel=1e-5)
    assert loss.total.item() == pytest.approx((loss.ranking + loss.distillation).sum().item())


def test_each_exit_learns_from_its_assigned_teacher(scores):
    teachers = [2, None, 3, None]
    distillation = layerwise_loss(scores, teachers).distillation
    expected = [
        0 if t is None else soft_cross_entropy(s, scores[t]) for s, t in zip(scores, teachers, strict=True)
    ]
    assert distillation.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("teachers", [DEEPEST, [1, 2, 3, None]], ids=["deepest", "next"])
def test_distillation_has_no_gradient_for_the_teacher(scores, teachers):
    for student in range(EXITS - 1):
        distillation = layerwise_loss(scores, teachers).distillation
        moved = gradient(distillation[student], scores).abs().amax(dim=(1, 2))
        assert moved[student] > 0
        assert not moved[[k for k in range(EXITS) if k != student]].any()


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_distillation_scales_with_the_square_of_the_temperature(scores, temperature):
    distillation = layerwise_loss(scores, DEEPEST, temperature).distillation
    for k in range(EXITS - 1):
        expected = soft_cross_entropy(scores[k], scores[-1], temperature) * temperature**2
        assert distillation[k].item() == pytest.approx(expected, rel=1e-5)


def test_temperature_does_not_change_the_contrastive_loss(scores):
    assert torch.equal(layerwise_loss(scores, DEEPEST, 4.0).ranking, layerwise_loss(scores, DEEPEST).ranking)


def test_exit_weights_apply_to_all_terms_of_an_exit(scores):
    weights = [0.5, 0.0, 2.0, 3.0]
    loss = layerwise_loss(scores, DEEPEST, weights=weights)
    plain = layerwise_loss(scores, DEEPEST)
    terms = (plain.ranking + plain.distillation).tolist()
    assert loss.total.item() == pytest.approx(sum(w * term for w, term in zip(weights, terms, strict=True)))
    assert torch.equal(loss.ranking, plain.ranking), "the terms for the logs are unweighted"
    assert not gradient(loss.total, scores)[1].any()


def test_external_teacher_adds_to_self_distillation(scores):
    external = torch.randn(GROUPS, SIZE, requires_grad=True)
    loss = layerwise_loss(scores, DEEPEST, external=external)
    own = layerwise_loss(scores, DEEPEST)
    added = (loss.distillation - own.distillation).tolist()
    assert added == pytest.approx([soft_cross_entropy(s, external) for s in scores], rel=1e-4)
    assert loss.total.item() == pytest.approx(own.total.item() + sum(added), rel=1e-5)
    assert torch.autograd.grad(loss.total, external, allow_unused=True)[0] is None


def test_external_teacher_uses_the_temperature(scores):
    external = torch.randn(GROUPS, SIZE)
    (taught,) = layerwise_loss(scores[:1], [None], 2.0, external=external).distillation.tolist()
    assert taught == pytest.approx(soft_cross_entropy(scores[0], external, 2.0) * 4, rel=1e-5)


# --- teachers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exits", "distillation", "teachers"),
    [
        ([4, 5, 6, 7], {"teacher": "deepest"}, [7, 7, 7, None]),
        ([4, 5, 6, 7], {"teacher": "next"}, [5, 6, 7, None]),
        ([4, 5, 6, 7], {"teacher": "none"}, [None, None, None, None]),
        ([2, 3, 4, 5, 6, 7, 8, 9], {"teacher": "anchors", "every": 4}, [4, 4, 8, 8, 8, 8, 9, None]),
        ([1, 2, 3, 4, 5, 6], {"teacher": "anchors", "every": 3}, [3, 3, 6, 6, 6, None]),
        ([5, 6, 7], {"teacher": "anchors", "every": 100}, [7, 7, None]),
        ([3, 4, 5], {"teacher": "anchors", "every": 1}, [4, 5, None]),
        ([6], {"teacher": "deepest"}, [None]),
        ([6], {"teacher": "next"}, [None]),
        ([6], {"teacher": "anchors", "every": 2}, [None]),
    ],
)
def test_assigned_teachers(exits, distillation, teachers):
    found = assign_teachers(exits, **distillation)
    assert [None if i is None else exits[i] for i in found] == teachers


def test_compressed_scores_learn_from_complete_ones_alone(scores):
    compressed = torch.randn(EXITS, GROUPS, SIZE).requires_grad_()
    loss = compression_loss(compressed, scores, temperature=2.0, weights=[1.0, 0.0, 0.5, 2.0])
    each = [
        F.cross_entropy(student / 2, torch.softmax(teacher.detach() / 2, dim=-1)) * 4
        for student, teacher in zip(compressed, scores, strict=True)
    ]
    assert loss.item() == pytest.approx((each[0] + 0.5 * each[2] + 2 * each[3]).item(), rel=1e-5)
    loss.backward()
    assert scores.grad is None
    assert compressed.grad is not None
    assert compressed.grad[0].abs().max() > 0
