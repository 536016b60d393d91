"""Ranking one list in a single forward pass that lets candidates go: as if nobody had left, only cheaper."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lwr.common.hashing import hash_share
from lwr.evaluation.replay import read_candidates, replay
from lwr.model.batching import pad
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
# Of different lengths; in the order in which `lwr.formats.trec` breaks ties, so that `replay` takes equals so.
PASSAGES = dict(
    sorted(
        ((f"d{i}", f"def decode{i}(s): return s" + " and more" * (i % 4)) for i in range(9)),
        key=lambda passage: hash_share(passage[0]),
    )
)
TEXTS = list(PASSAGES.values())

architectures = pytest.mark.parametrize("architecture", ["llama", "qwen3", "bert"])
schedules = pytest.mark.parametrize(
    "schedule", ["1", "3", "4", "1:1 4", "1:5 2:3 3:2 4", "2:4 3", "3:8 4", "1:2 3:5 4", "2:9 4", "1:99 2"]
)


def build(architecture: str, start_layer: int = 1) -> LayerwiseReranker:
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    lengths = {"query_max_len": 16, "passage_max_len": 160}
    return LayerwiseReranker(
        tiny.backbone(architecture), tokenizer, start_layer=start_layer, **lengths
    ).eval()


reranker = cache(build)


def rank(model: LayerwiseReranker, query: str, texts: list[str], schedule: Schedule, **how) -> np.ndarray:
    return model.rank_rows(model.prompt.rows([(query, text) for text in texts]), schedule, **how).order


def features(rows: int, tokens: int = 16) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded on the right."""
    ids = torch.randint(3, tiny.VOCABULARY, (rows, tokens))
    lengths = torch.linspace(tokens // 2, tokens, rows).long()
    return {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths[:, None]).long()}


@contextmanager
def watched(model: LayerwiseReranker):
    """What each block computes: (its number from 1, rows), in the order in which it does."""
    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        tiny.record_blocks(
            model.stack.blocks, patch, lambda k, kwargs: seen.append((k, len(kwargs["packing"].rows)))
        )
        yield seen


# --- LayerwiseReranker.cascade -------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("rows", [5, 8])
@torch.no_grad()
def test_survivors_are_scored_bit_for_bit_as_in_the_whole_batch(architecture, rows):
    model, batch = reranker(architecture), features(rows)
    whole = torch.stack(model.encode(batch))
    scores = model.cascade(batch, {1: 4, 3: 2}, 4)
    assert scores.shape == (3, rows)
    there = torch.arange(rows)
    for row, (layer, survivors) in enumerate([(1, 4), (3, 2), (4, 2)]):
        expected = torch.full((rows,), torch.nan)
        expected[there] = whole[layer - 1, there]
        assert torch.equal(scores[row].isnan(), expected.isnan())
        assert torch.equal(scores[row, there], expected[there])
        there = there[whole[layer - 1, there].topk(survivors).indices].sort().values


@architectures
@pytest.mark.parametrize("survivors", [6, 100])
@torch.no_grad()
def test_who_lets_nobody_go_scores_as_encode(architecture, survivors):
    model, batch = reranker(architecture), features(6)
    scores = model.cascade(batch, {2: survivors, 3: survivors}, 4)
    assert torch.equal(scores, torch.stack(model.encode(batch, [2, 3, 4])))


@architectures
@torch.no_grad()
def test_a_batch_of_one_goes_to_the_end(architecture):
    model, batch = reranker(architecture), features(1)
    assert torch.equal(model.cascade(batch, {1: 1, 2: 1}, 3), torch.stack(model.encode(batch, [1, 2, 3])))


@torch.no_grad()
def test_without_stages_it_is_encode():
    model, batch = reranker("bert"), features(3)
    assert torch.equal(model.cascade(batch, {}, 3), torch.stack(model.encode(batch, [3])))


@pytest.mark.parametrize("judging", [[], [1]], ids=["no head judges", "layer 1 does"])
@torch.no_grad()
def test_of_equals_the_first_in_the_batch_survive(judging):
    model = build("llama")
    for layer in set(model.exits).difference(judging):
        model.head(layer).zero_()
    scores = model.cascade(features(20), {1: 18, 2: 2}, 3)  # up to 16 rows, torch's sort is stable unasked
    assert (~scores.isnan()).sum(dim=1).tolist() == [20, 18, 2]
    # of who is left at layer 2 the first two go on, whoever of them was ahead at layer 1
    first_two = (~scores[1].isnan()).nonzero()[:2]
    assert torch.equal((~scores[2].isnan()).nonzero(), first_two)
    if judging:
        assert scores[0].argmax() not in first_two, "the order must differ for this test to mean anything"
    else:
        assert (~scores[1].isnan()).nonzero().flatten().tolist() == list(range(18))


@architectures
@torch.no_grad()
def test_equal_rows_have_equal_scores(architecture):
    batch = {name: tensor.expand(7, -1).contiguous() for name, tensor in features(1).items()}
    for scores in reranker(architecture).encode(batch):
        assert scores.unique().numel() == 1


@pytest.mark.parametrize(("keep", "last"), [({3: 2}, 5), ({1: 2}, 4), ({3: 2, 9: 1}, 4), ({}, 2)])
def test_a_layer_without_a_head_is_refused(keep, last):
    with pytest.raises(ValueError, match=r"layers \[\d\] have no head; exits are 3..4"):
        build("llama", start_layer=3).cascade(features(2), keep, last)


@architectures
@torch.no_grad()
def test_blocks_see_the_survivors_alone_and_none_runs_after_the_last(architecture):
    model = reranker(architecture)
    with watched(model) as seen:
        model.cascade(features(8), {1: 5, 2: 3}, 3)
    assert seen == [(1, 8), (2, 5), (3, 3)]


# --- rank ----------------------------------------------------------------------------------------------


@architectures
@schedules
def test_the_ranking_is_that_of_the_replayed_scores(architecture, schedule):
    model, schedule = reranker(architecture), Schedule.parse(schedule)
    rows = model.prompt.rows([(QUERY, text) for text in TEXTS])
    scores = model.score_rows(rows, model.exits, tokens_per_batch=10**6)
    recorded = pd.DataFrame(
        {"query_id": "q", "doc_id": list(PASSAGES), "tokens": 1}
        | {f"layer_{k}": of_exit for k, of_exit in zip(model.exits, scores, strict=True)}
    )
    order, _ = replay(read_candidates(recorded), schedule)
    ranked = rank(model, QUERY, TEXTS, schedule)
    assert ranked.tolist() == order[0].tolist()
    assert sorted(ranked.tolist()) == list(range(len(TEXTS)))
    assert ranked.dtype == np.int64


@architectures
@pytest.mark.parametrize("layer", [1, 4])
@torch.no_grad()
def test_one_exit_ranks_by_its_scores(architecture, layer):
    model = reranker(architecture)
    rows = model.prompt.rows([(QUERY, text) for text in TEXTS])
    (scores,) = model.encode(pad(rows, model.tokenizer), [layer])
    best_first = scores.argsort(descending=True, stable=True)
    assert rank(model, QUERY, TEXTS, Schedule.single(layer)).tolist() == best_first.tolist()


@pytest.mark.parametrize("schedule", ["4", "2:3 4", "1:5 2:3 4"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_passages_that_are_the_same_stay_as_they_were_given(architecture, schedule):
    ranked = rank(reranker(architecture), QUERY, TEXTS[:1] * 7, Schedule.parse(schedule))
    assert ranked.tolist() == list(range(7))


@pytest.mark.parametrize("schedule", ["4", "2:3 4"])
@torch.no_grad()
def test_of_equals_the_first_given_comes_first(schedule):
    model = build("bert")
    for head in model.heads:
        head.zero_()
    assert rank(model, QUERY, TEXTS, Schedule.parse(schedule)).tolist() == list(range(len(TEXTS)))


@pytest.mark.parametrize("schedule", ["4", "2:3 4"])
@pytest.mark.parametrize("texts", [[], TEXTS[:1]], ids=["none", "one"])
def test_lists_of_one_and_of_none(texts, schedule):
    assert rank(reranker("bert"), QUERY, texts, Schedule.parse(schedule)).tolist() == list(range(len(texts)))


def test_no_more_is_computed_at_a_time_than_a_batch_may_have():
    model = reranker("bert")
    longest = max(map(len, model.prompt.rows([(QUERY, text) for text in TEXTS])))
    with watched(model) as one_exit:
        rank(model, QUERY, TEXTS, Schedule.parse("1"), tokens_per_batch=2 * longest)
    with watched(model) as cascade:
        rank(model, QUERY, TEXTS, Schedule.parse("1:4 2"), tokens_per_batch=2 * longest)
    with watched(model) as whole:
        rank(model, QUERY, TEXTS, Schedule.parse("1:4 2"), tokens_per_batch=9 * longest)
    assert whole == [(1, 9), (2, 4)]
    for seen in (one_exit, cascade):
        first = [rows for k, rows in seen if k == 1]
        assert sum(first) == len(TEXTS)
        assert first[0] == 2
    assert {k for k, _ in one_exit} == {1}
    then = [rows for k, rows in cascade if k == 2]
    assert sum(then) == 4
    assert len(then) == 2


@pytest.mark.parametrize("schedule", ["2", "1:4 2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_the_one_asked_for(schedule, precision):
    model, seen = reranker("llama"), set()
    inside = model.stack.blocks[0].mlp.up_proj
    hook = inside.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    ranked = rank(model, QUERY, TEXTS, Schedule.parse(schedule), precision=precision)
    hook.remove()
    assert seen == {getattr(torch, precision)}
    assert sorted(ranked.tolist()) == list(range(len(TEXTS)))
