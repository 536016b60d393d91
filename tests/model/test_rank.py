"""Tests of cascades in one forward pass: survivors score and rank as in the complete batch, at less cost."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from lwr.common.hashing import hash_share
from lwr.evaluation.schedules.replay import read_candidates, replay
from lwr.model.batching import pad
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
# Passages of different lengths, in the order in which `lwr.formats.trec` breaks ties, so that `replay` agrees.
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
    """Return the indices of the texts from best to worst."""
    return model.rank_rows(model.prompt.rows([(query, text) for text in texts]), schedule, **how).order


def features(rows: int, tokens: int = 16) -> dict[str, torch.Tensor]:
    """Make rows of different lengths, padded on the right."""
    ids = torch.randint(3, tiny.VOCABULARY, (rows, tokens))
    lengths = torch.linspace(tokens // 2, tokens, rows).long()
    return {"input_ids": ids, "attention_mask": (torch.arange(tokens) < lengths[:, None]).long()}


@contextmanager
def recorded_blocks(model: LayerwiseReranker):
    """Record (number of a block from 1, rows that it computes) in the order of computation."""
    computed: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        tiny.record_blocks(
            model.stack.blocks, patch, lambda k, kwargs: computed.append((k, len(kwargs["packing"].rows)))
        )
        yield computed


# --- LayerwiseReranker.cascade -------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("rows", [5, 8])
@torch.no_grad()
def test_survivors_score_bit_for_bit_as_in_the_complete_batch(architecture, rows):
    model, batch = reranker(architecture), features(rows)
    complete = torch.stack(model.encode(batch))
    scores = model.cascade(batch, {1: 4, 3: 2}, 4)
    assert scores.shape == (3, rows)
    remaining = torch.arange(rows)
    for row, (layer, survivors) in enumerate([(1, 4), (3, 2), (4, 2)]):
        expected = torch.full((rows,), torch.nan)
        expected[remaining] = complete[layer - 1, remaining]
        assert torch.equal(scores[row].isnan(), expected.isnan())
        assert torch.equal(scores[row, remaining], expected[remaining])
        best = complete[layer - 1, remaining].topk(survivors).indices
        remaining = remaining[best].sort().values


@architectures
@pytest.mark.parametrize("survivors", [6, 100])
@torch.no_grad()
def test_cascade_keeping_all_rows_equals_encode(architecture, survivors):
    model, batch = reranker(architecture), features(6)
    scores = model.cascade(batch, {2: survivors, 3: survivors}, 4)
    assert torch.equal(scores, torch.stack(model.encode(batch, [2, 3, 4])))


@architectures
@torch.no_grad()
def test_cascade_of_one_row_scores_it_at_every_layer(architecture):
    model, batch = reranker(architecture), features(1)
    assert torch.equal(model.cascade(batch, {1: 1, 2: 1}, 3), torch.stack(model.encode(batch, [1, 2, 3])))


@torch.no_grad()
def test_cascade_without_stages_equals_encode():
    model, batch = reranker("bert"), features(3)
    assert torch.equal(model.cascade(batch, {}, 3), torch.stack(model.encode(batch, [3])))


@pytest.mark.parametrize("nonzero_heads", [[], [1]], ids=["all heads zero", "head of layer 1 not zero"])
@torch.no_grad()
def test_equal_scores_keep_the_first_in_the_batch(nonzero_heads):
    model = build("llama")
    for layer in set(model.exits).difference(nonzero_heads):
        model.head(layer).zero_()
    scores = model.cascade(features(20), {1: 18, 2: 2}, 3)  # up to 16 rows, torch's sort is always stable
    assert (~scores.isnan()).sum(dim=1).tolist() == [20, 18, 2]
    # Of the survivors of layer 1 the first two in the batch survive layer 2, whatever their order at layer 1.
    first_two = (~scores[1].isnan()).nonzero()[:2]
    assert torch.equal((~scores[2].isnan()).nonzero(), first_two)
    if nonzero_heads:
        assert scores[0].argmax() not in first_two, "the order must differ for this test to mean anything"
    else:
        assert (~scores[1].isnan()).nonzero().flatten().tolist() == list(range(18))


@architectures
@pytest.mark.parametrize("narrow", [False, True])
@torch.no_grad()
def test_equal_rows_have_equal_scores(architecture, narrow):
    batch = {name: tensor.expand(7, -1).contiguous() for name, tensor in features(1).items()}
    for scores in reranker(architecture).encode(batch, narrow=narrow):
        # a narrow block computes few tokens, whose products some CPUs may round by their place
        assert (scores - scores[0]).abs().max() <= (1e-6 if narrow else 0)


@pytest.mark.parametrize(("keep", "last"), [({3: 2}, 5), ({1: 2}, 4), ({3: 2, 9: 1}, 4), ({}, 2)])
def test_cascade_refuses_layer_without_head(keep, last):
    with pytest.raises(ValueError, match=r"layers \[\d\] have no head; exits are 3..4"):
        build("llama", start_layer=3).cascade(features(2), keep, last)


@architectures
@torch.no_grad()
def test_blocks_compute_only_survivors_up_to_the_last_layer(architecture):
    model = reranker(architecture)
    with recorded_blocks(model) as computed:
        model.cascade(features(8), {1: 5, 2: 3}, 3)
    assert computed == [(1, 8), (2, 5), (3, 3)]


# --- rank ----------------------------------------------------------------------------------------------


@architectures
@schedules
def test_ranking_equals_replay_of_scores(architecture, schedule):
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
def test_single_exit_ranks_by_its_scores(architecture, layer):
    model = reranker(architecture)
    rows = model.prompt.rows([(QUERY, text) for text in TEXTS])
    (scores,) = model.encode(pad(rows, model.tokenizer), [layer])
    best_first = scores.argsort(descending=True, stable=True)
    assert rank(model, QUERY, TEXTS, Schedule.single(layer)).tolist() == best_first.tolist()


@pytest.mark.parametrize("schedule", ["4", "2:3 4", "1:5 2:3 4"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_equal_passages_keep_their_order(architecture, schedule):
    ranked = rank(reranker(architecture), QUERY, TEXTS[:1] * 7, Schedule.parse(schedule))
    assert ranked.tolist() == list(range(7))


@pytest.mark.parametrize("schedule", ["4", "2:3 4"])
@torch.no_grad()
def test_equal_scores_keep_the_given_order(schedule):
    model = build("bert")
    for head in model.heads:
        head.zero_()
    assert rank(model, QUERY, TEXTS, Schedule.parse(schedule)).tolist() == list(range(len(TEXTS)))


@pytest.mark.parametrize("schedule", ["4", "2:3 4"])
@pytest.mark.parametrize("texts", [[], TEXTS[:1]], ids=["none", "one"])
def test_empty_and_single_lists_are_ranked(texts, schedule):
    assert rank(reranker("bert"), QUERY, texts, Schedule.parse(schedule)).tolist() == list(range(len(texts)))


def test_blocks_compute_at_most_a_batch_at_a_time():
    model = reranker("bert")
    longest = max(map(len, model.prompt.rows([(QUERY, text) for text in TEXTS])))
    with recorded_blocks(model) as one_exit:
        rank(model, QUERY, TEXTS, Schedule.parse("1"), tokens_per_batch=2 * longest)
    with recorded_blocks(model) as cascade:
        rank(model, QUERY, TEXTS, Schedule.parse("1:4 2"), tokens_per_batch=2 * longest)
    with recorded_blocks(model) as at_once:
        rank(model, QUERY, TEXTS, Schedule.parse("1:4 2"), tokens_per_batch=9 * longest)
    assert at_once == [(1, 9), (2, 4)]
    for computed in (one_exit, cascade):
        first = [rows for k, rows in computed if k == 1]
        assert sum(first) == len(TEXTS)
        assert first[0] == 2
    assert {k for k, _ in one_exit} == {1}
    second = [rows for k, rows in cascade if k == 2]
    assert sum(second) == 4
    assert len(second) == 2


@pytest.mark.parametrize("schedule", ["2", "1:4 2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_blocks_compute_in_the_given_precision(schedule, precision):
    model, dtypes = build("llama"), set()
    model.set_precision(precision)
    projection = model.stack.blocks[0].mlp.up_proj
    hook = projection.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    ranked = rank(model, QUERY, TEXTS, Schedule.parse(schedule))
    hook.remove()
    assert dtypes == {getattr(torch, precision)}
    assert sorted(ranked.tolist()) == list(range(len(TEXTS)))


# --- rank and score of texts ---------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [TEXTS, []], ids=["texts", "no texts"])
@pytest.mark.parametrize("layer", [0, -1, 1, 5, True, False, 2.0, "2"])
def test_rank_and_score_refuse_a_layer_without_head(texts, layer):
    model = build("bert", start_layer=2)
    with pytest.raises(ValueError, match=rf"layers \[{layer!r}\] have no head; exits are 2\.\.4"):
        model.rank(QUERY, texts, layer=layer)
    for requested in ({"layer": layer}, {"layers": [2, layer]}):
        with pytest.raises(ValueError, match=rf"layers \[{layer!r}\] have no head; exits are 2\.\.4"):
            model.score([(QUERY, text) for text in texts], **requested)


@pytest.mark.parametrize("layers", [[], "each", 2, 0])
def test_score_refuses_what_is_not_a_list_of_layers(layers):
    with pytest.raises(ValueError, match=rf"layers is {re.escape(repr(layers))}; .*'all'"):
        reranker("bert").score([(QUERY, TEXTS[0])], layers=layers)


def test_layers_may_be_numpy_integers():
    model, pairs = reranker("bert"), [(QUERY, text) for text in TEXTS]
    scores = model.score(pairs, layers=np.array([1, 3]))
    assert np.array_equal(scores, model.score(pairs, layers=[1, 3]))
    assert np.array_equal(scores[1], model.score(pairs, np.int64(3)))


@pytest.mark.parametrize("pair", [(QUERY, TEXTS[0]), [QUERY, TEXTS[0]]], ids=["tuple", "list"])
def test_one_flat_pair_has_one_score(pair):
    model = reranker("bert")
    assert model.score(pair, 2).shape == ()
    assert model.score(pair, 2) == model.score([pair], 2)[0]
    assert model.score(pair, layers="all").tolist() == model.score([pair], layers="all")[:, 0].tolist()


def test_no_pairs_have_no_scores():
    model = reranker("bert")
    assert model.score([], 2).shape == (0,)
    assert model.score([], layers=[1, 2]).shape == (2, 0)
    assert model.rank(QUERY, [], cascade="1:2 4") == []


def test_documents_of_every_kind_rank_alike():
    model = reranker("bert")
    expected = model.rank(QUERY, TEXTS, layer=3)
    labels = [3 * i + 5 for i in reversed(range(len(TEXTS)))]
    for documents in (
        pd.Series(TEXTS, index=labels),
        iter(TEXTS),
        np.array(TEXTS),
        [{"text": text} for text in TEXTS],
    ):
        assert model.rank(QUERY, documents, layer=3) == expected
    pairs = pd.Series([(QUERY, text) for text in TEXTS], index=labels)
    assert np.array_equal(model.score(pairs, 3), model.score(list(pairs), 3))


@pytest.mark.parametrize("top_k", [0, -1, True, 2.0, "3"])
def test_top_k_below_one_is_refused(top_k):
    with pytest.raises(ValueError, match=rf"top_k is {top_k!r}; .* from 1 on"):
        reranker("bert").rank(QUERY, TEXTS, top_k=top_k)


@pytest.mark.parametrize("top_k", [1, 5, np.int64(5), 100, None])
def test_top_k_limits_the_documents(top_k):
    ranked = reranker("bert").rank(QUERY, TEXTS, top_k=top_k)
    assert ranked == reranker("bert").rank(QUERY, TEXTS)[:top_k]


@pytest.mark.parametrize("query", [None, 7, ["a"]])
def test_query_that_is_not_a_text_is_refused(query):
    with pytest.raises(ValueError, match=r"query is .*give a text"):
        reranker("bert").rank(query, TEXTS)
