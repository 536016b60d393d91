"""The losses of one exit: values of another implementation, numerical gradients, invariants."""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from lwr.config.training import NEED_SCORES, Loss
from lwr.training.losses.contrastive import contrastive
from lwr.training.losses.layerwise import layerwise_loss
from lwr.training.losses.listnet import listnet
from lwr.training.losses.margin_mse import margin_mse
from lwr.training.losses.mse import mse
from lwr.training.losses.ranknet import ranknet

SCORES = torch.tensor([[1.5, 0.25, -0.75, 2.0], [-0.5, 0.125, 0.5, -1.25], [3.0, -2.0, 0.0, 1.0]])
TARGETS = torch.tensor([[4.0, 1.0, -2.0, 3.5], [2.0, 2.0, -1.0, 0.5], [0.25, -0.5, 0.0, 1.0]])
LABELS = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3)

WITH_TARGETS = {"mse": mse, "margin_mse": margin_mse, "ranknet": ranknet, "listnet": listnet}


def loss_of(name: Loss, scores: Tensor, targets: Tensor) -> Tensor:
    return contrastive(scores) if name == "contrastive" else WITH_TARGETS[name](scores, targets)


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        # sentence-transformers 6.2.0, losses of its CrossEncoder; RankNetLoss with reduction_log="natural"
        ("contrastive", LABELS, 1.0297019),  # MultipleNegativesRankingLoss, scale 1, no activation
        ("mse", TARGETS, 2.9596355),
        ("margin_mse", TARGETS, 7.5850697),
        ("ranknet", TARGETS, 0.5450922),
        ("ranknet", LABELS, 0.4735863),
        ("listnet", TARGETS, 1.5895853),
        ("listnet", LABELS, 1.7364994),
    ],
)
def test_value_equals_that_of_sentence_transformers(name, targets, expected):
    assert loss_of(name, SCORES, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", get_args(Loss))
def test_gradient_equals_the_numerical_one(name):
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(partial(loss_of, name, targets=targets), (scores,))


@pytest.mark.parametrize("name", get_args(Loss))
def test_only_mse_changes_with_a_constant_added_to_the_scores_of_a_group(name):
    shifted = loss_of(name, SCORES + torch.tensor([[1.0], [-2.0], [0.5]]), TARGETS)
    unchanged = shifted.item() == pytest.approx(loss_of(name, SCORES, TARGETS).item(), rel=1e-6)
    assert unchanged == (name != "mse")


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_only_mse_changes_with_a_constant_added_to_the_targets_of_a_group(name):
    shifted = loss_of(name, SCORES, TARGETS + torch.tensor([[1.0], [-2.0], [0.5]]))
    unchanged = shifted.item() == pytest.approx(loss_of(name, SCORES, TARGETS).item(), rel=1e-6)
    assert unchanged == (name != "mse")


@pytest.mark.parametrize("name", get_args(Loss))
@pytest.mark.parametrize(("order", "keeps_positive"), [([0, 3, 1, 2], True), ([2, 1, 0, 3], False)])
def test_order_of_passages_does_not_matter_but_for_the_positive(name, order, keeps_positive):
    permuted = loss_of(name, SCORES[:, order], TARGETS[:, order])
    unchanged = permuted.item() == pytest.approx(loss_of(name, SCORES, TARGETS).item(), rel=1e-6)
    assert unchanged == (keeps_positive or name not in ("contrastive", "margin_mse"))


@pytest.mark.parametrize("name", get_args(Loss))
def test_groups_do_not_see_each_other(name):
    alone = [loss_of(name, SCORES[i : i + 1], TARGETS[i : i + 1]).item() for i in range(3)]
    # RankNet averages over pairs: the second group has 5 whose targets differ, the others 6
    weights = [6, 5, 6] if name == "ranknet" else [1, 1, 1]
    mean = sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights)
    assert loss_of(name, SCORES, TARGETS).item() == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "margin_mse"])
def test_distance_to_equal_scores_is_zero(name):
    assert loss_of(name, TARGETS, TARGETS).item() == 0


def test_ranknet_knows_only_the_order_of_targets_and_leaves_ties_out():
    assert torch.equal(ranknet(SCORES, TARGETS), ranknet(SCORES, TARGETS**3))
    assert ranknet(SCORES, torch.ones(3, 4)).item() == 0
    assert ranknet(torch.zeros(3, 4), TARGETS).item() == pytest.approx(math.log(2))
    one_pair = ranknet(SCORES[:1, :2], LABELS[:1, :2]).item()
    assert one_pair == pytest.approx(math.log1p(math.exp(-1.25)))
    two_pairs = [math.log1p(math.exp(-1.25)), math.log1p(math.exp(-2.25))]
    assert ranknet(SCORES[:1, :3], LABELS[:1, :3]).item() == pytest.approx(sum(two_pairs) / 2)


def test_listnet_is_smallest_at_the_targets():
    scores = TARGETS.clone().requires_grad_()
    smallest = listnet(scores, TARGETS)
    assert torch.autograd.grad(smallest, scores)[0].abs().max() < 1e-6
    assert all(listnet(TARGETS + torch.randn(3, 4), TARGETS) > smallest for _ in range(5))


def test_contrastive_is_listnet_of_a_target_without_doubt():
    assert listnet(SCORES, 1000 * LABELS).item() == pytest.approx(contrastive(SCORES).item())


@pytest.mark.parametrize("name", get_args(Loss))
def test_huge_scores_give_finite_losses_and_gradients(name):
    scores = (1e4 * SCORES).requires_grad_()
    loss = loss_of(name, scores, 1e4 * TARGETS)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, scores)[0].isfinite().all()


# --- the losses of all exits -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_every_exit_has_the_loss_beside_the_teacher_among_the_exits(name):
    scores = torch.stack([SCORES, -SCORES, SCORES / 2])  # [exits, groups, group size]
    external = TARGETS.clone().requires_grad_()
    loss = layerwise_loss(scores, [2, 2, None], weights=[1, 0.5, 2], external=external, loss=name)
    expected = [loss_of(name, of_exit, TARGETS).item() for of_exit in scores]
    plain = layerwise_loss(scores, [2, 2, None])
    assert loss.ranking.tolist() == pytest.approx(expected)
    assert torch.equal(loss.distillation, plain.distillation), "external scores are targets, not a term"
    terms = [a + b for a, b in zip(expected, plain.distillation.tolist(), strict=True)]
    assert loss.total.item() == pytest.approx(terms[0] + 0.5 * terms[1] + 2 * terms[2])
    assert not loss.total.requires_grad, "no gradient reaches the external scores"


@pytest.mark.parametrize("name", WITH_TARGETS)
def test_without_external_scores_the_labels_are_the_targets_or_the_loss_is_refused(name):
    if name in NEED_SCORES:
        with pytest.raises(ValueError, match=f"{name} needs teacher scores"):
            layerwise_loss(SCORES[None], [None], loss=name)
    else:
        found = layerwise_loss(SCORES[None], [None], loss=name).ranking.item()
        assert found == pytest.approx(loss_of(name, SCORES, LABELS).item())
