"""Tests of ranking by a deadline: the exit that ranks, its scores, and the blocks that run."""

from __future__ import annotations

import math
from functools import cache
from itertools import count

import numpy as np
import pytest
import tiny
import torch

from lwr.model.cascade_schedule import Deadline
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]

architectures = pytest.mark.parametrize("architecture", ["llama", "bert", "lfm2"])


@cache
def reranker(architecture: str, start_layer: int = 1, head_every: int = 1) -> LayerwiseReranker:
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    model = LayerwiseReranker(
        tiny.backbone(architecture),
        tokenizer,
        start_layer,
        head_every=head_every,
        query_max_len=16,
        passage_max_len=160,
    )
    return model.eval()


class BlockClock:
    """A clock by which each block takes a second, and nothing else takes time."""

    def __init__(self, model: LayerwiseReranker):
        self.seconds = 0
        self.hooks = [block.register_forward_hook(self.tick) for block in model.stack.blocks]

    def tick(self, *_) -> None:
        self.seconds += 1

    def __call__(self) -> float:
        return self.seconds


def rows(model: LayerwiseReranker):
    return list(model.prompt.rows([(QUERY, text) for text in TEXTS]))


@architectures
@pytest.mark.parametrize(("seconds", "layer"), [(0.5, 1), (1, 1), (2, 2), (3.9, 3), (4, 4), (100, 4)])
def test_deepest_exit_in_time_ranks_all_and_no_deeper_block_runs(architecture, seconds, layer):
    model = reranker(architecture)
    clock = BlockClock(model)
    ranking = model.rank_rows_by(Deadline(seconds, clock), rows(model), tokens_per_batch=10**6)
    assert clock.seconds == layer
    for hook in clock.hooks:
        hook.remove()
    assert ranking.layers.tolist() == [layer] * len(TEXTS)
    [at_exit] = model.score_rows(rows(model), [layer], tokens_per_batch=10**6)
    assert ranking.order.tolist() == np.argsort(-at_exit, kind="stable").tolist()
    np.testing.assert_array_equal(ranking.scores, at_exit)


@architectures
def test_chunks_change_no_ranking(architecture):
    model = reranker(architecture)
    far = Deadline.after(1e9)
    at_once = model.rank_rows_by(far, rows(model), tokens_per_batch=10**6)
    in_chunks = model.rank_rows_by(far, rows(model), tokens_per_batch=64)
    np.testing.assert_allclose(in_chunks.scores, at_once.scores, atol=1e-5)


@pytest.mark.parametrize(("seconds", "layer"), [(1, 2), (3.9, 2), (4, 4)])
def test_all_blocks_up_to_the_next_exit_must_fit(seconds, layer):
    model = reranker("llama", start_layer=2, head_every=2)
    clock = BlockClock(model)
    ranking = model.rank_rows_by(Deadline(seconds, clock), rows(model), tokens_per_batch=10**6)
    for hook in clock.hooks:
        hook.remove()
    assert set(ranking.layers) == {layer}


def test_blocks_are_expected_to_take_as_long_as_the_last_ones():
    times = iter([0.0, 1.0, 4.0, 5.0])
    deadline = Deadline(7.5, lambda: next(times))  # made at 0
    assert deadline.allows(1, 2)  # at 1, a second per block
    assert not deadline.allows(2, 4)  # at 4, three seconds per block
    assert deadline.allows(3, 4)  # at 5


def test_time_before_the_pass_counts_for_the_deadline_but_not_for_the_blocks():
    times = count(0, 10)
    deadline = Deadline.after(35_000, lambda: next(times))  # at 0, and made at 10
    deadline.start()  # at 20
    assert not deadline.allows(2, 4)  # at 30, five seconds per block
    assert deadline.moment == 35


def test_rank_names_the_exit():
    model = reranker("llama")
    [best, *_] = model.rank(QUERY, TEXTS, budget_ms=1e6, top_k=3)
    assert best["layer"] == 4
    [expected, *_] = model.rank(QUERY, TEXTS, layer=4, top_k=3)
    assert (best["corpus_id"], best["text"]) == (expected["corpus_id"], expected["text"])
    assert {entry["layer"] for entry in model.rank(QUERY, TEXTS, budget_ms=1e-6)} == {1}
    assert model.rank(QUERY, [], budget_ms=1) == []


def test_precision_is_that_of_the_reranker():
    model = reranker("bert")
    model.set_precision("bfloat16")
    halved = model.rank_rows_by(Deadline.after(1e9), rows(model))
    model.set_precision("float32")
    full = model.rank_rows_by(Deadline.after(1e9), rows(model))
    assert not np.array_equal(halved.scores, full.scores)
    np.testing.assert_allclose(halved.scores, full.scores, atol=0.05)


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, True, "20"])
def test_wrong_budgets_are_refused(budget):
    with pytest.raises(ValueError, match=r"budget_ms is .*; give a number of milliseconds above 0"):
        reranker("bert").rank(QUERY, TEXTS, budget_ms=budget)


@pytest.mark.parametrize("given", [{"layer": 2}, {"cascade": "2:3 4"}, {"compression": "2/2"}])
def test_a_budget_beside_another_choice_of_the_exit_is_refused(given):
    with pytest.raises(
        ValueError, match="budget_ms chooses the exit: leave out layer, cascade and compression"
    ):
        reranker("bert").rank(QUERY, TEXTS, budget_ms=20, **given)


def test_hooks_of_an_ended_pass_are_removed():
    model = reranker("llama")
    before = torch.from_numpy(model.score_rows(rows(model), model.exits))
    model.rank_rows_by(Deadline.after(1e-6), rows(model))
    assert torch.equal(torch.from_numpy(model.score_rows(rows(model), model.exits)), before)
