"""Tests of fused scores at run time: the arithmetic, the stage 0, and agreement with the replay of recorded scores."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lwr.common.errors import BadInput
from lwr.common.exits import FIRST_STAGE, compressed_name, exit_name
from lwr.common.hashing import hash_share
from lwr.evaluation.schedules.replay import read_candidates, replay
from lwr.formats.fusion import Fusion, fuse_scores, normalize_first_stage
from lwr.model.cascade_schedule import Compression, Deadline, Schedule, plan_ranking
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_fusion

QUERY = "load the object"
# In the order in which `lwr.formats.trec` breaks ties, so that `replay` agrees.
DOC_IDS = sorted((f"d{i}" for i in range(9)), key=hash_share)
TEXTS = [f"def decode{doc}(s): return s" + " and more" * (int(doc[1:]) % 4) for doc in DOC_IDS]
FIRST_STAGE_SCORES = [3.5, 9.25, 1.0, 4.5, 4.5, 7.0, 2.0, 8.0, 0.5]

architectures = pytest.mark.parametrize("architecture", ["llama", "qwen3", "bert", "lfm2", "modernbert"])
SCHEDULES = ["2", "4", "2:4 4", "2:5 3:9 4"]
FROM_FIRST_STAGE = ["0:4 4", "0:1 2", "0:99 3", "0:6 2:4 3:2 4", "0:2 2:5 4", "0:5 3:5 4"]


def random_fusion(seed: int = 0) -> Fusion:
    """Return weights for exits 2..4 whose signs differ."""
    rng = np.random.default_rng(seed)

    def weights(before: list[str]) -> dict[int, dict[str, float]]:
        names = {k: [*before, *(exit_name(known) for known in range(2, k + 1))] for k in (2, 3, 4)}
        return {k: {name: float(rng.normal()) for name in named} for k, named in names.items()}

    return Fusion(weights([FIRST_STAGE]), weights([]))


def last_exit_alone() -> Fusion:
    """Return weights (0, ..., 0, 1)."""
    exits = {k: {exit_name(known): float(known == k) for known in range(2, k + 1)} for k in (2, 3, 4)}
    return Fusion({k: {FIRST_STAGE: 0.0} | weights for k, weights in exits.items()}, exits)


def build(architecture: str, fusion: Fusion | None = None) -> LayerwiseReranker:
    reranker = tiny.build_reranker(architecture).eval()
    reranker.fusion = fusion or random_fusion()
    return reranker


reranker = cache(build)


def rows_of(model: LayerwiseReranker, texts: list[str]):
    return model.prompt.rows([(QUERY, text) for text in texts])


def table_of(model: LayerwiseReranker, compression: Compression | None = None) -> pd.DataFrame:
    """Return the scores of all exits as `lwr score` writes them, with a compression also those behind it."""
    rows = rows_of(model, TEXTS)
    scores = model.score_rows(rows, model.exits, tokens_per_batch=10**6)
    exits = {exit_name(k): of_exit for k, of_exit in zip(model.exits, scores, strict=True)}
    if compression is not None:
        behind = compression.exits_after(model.exits)
        scores = model.score_rows(rows, behind, tokens_per_batch=10**6, compression=compression)
        names = [compressed_name(k, compression.steps) for k in behind]
        exits |= {"passage_tokens": 1} | dict(zip(names, scores, strict=True))
    columns = {"query_id": "q", "doc_id": DOC_IDS, "tokens": 1, FIRST_STAGE: FIRST_STAGE_SCORES}
    return pd.DataFrame(columns | exits)


# --- one pass and replay -------------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize(
    ("schedule", "first_stage"),
    [*((text, True) for text in SCHEDULES + FROM_FIRST_STAGE), *((text, False) for text in SCHEDULES)],
)
def test_one_pass_equals_replay_of_recorded_scores(architecture, schedule, first_stage):
    model, schedule = reranker(architecture), Schedule.parse(schedule)
    weights = model.fusion if first_stage else Fusion(*[model.fusion.without_first_stage] * 2)
    order, depth = replay(read_candidates(table_of(model), fusion=weights), schedule)
    given_scores = FIRST_STAGE_SCORES if first_stage else None
    ranking = model.rank_rows(rows_of(model, TEXTS), schedule, first_stage=given_scores, fused=True)
    assert ranking.order.tolist() == order[0].tolist()
    assert ranking.layers.tolist() == depth[0].tolist()


@pytest.mark.parametrize("architecture", ["llama", "bert", "modernbert"])
@pytest.mark.parametrize(
    "text", ["2/2 4", "2/2 3", "2/2:4 4", "2/2:5 3:3 4", "2:6 3/4:4 4", "0:6 2/2:4 3:2 4"]
)
@pytest.mark.parametrize("fused", [True, False])
def test_one_pass_over_compressed_passages_equals_replay(architecture, text, fused):
    schedule = Schedule.parse(text)
    if schedule.from_first_stage and not fused:
        return  # exits alone are searched without a first stage that prunes
    rng = np.random.default_rng(1)
    model = build(architecture)
    names = {k: [schedule.exit_at(known) for known in range(2, k + 1)] for k in (2, 3, 4)}
    behind = {
        k: {name: float(rng.normal()) for name in named}
        for k, named in names.items()
        if "compressed" in named[-1]
    }
    with_first_stage = {k: {FIRST_STAGE: 0.7} | weights for k, weights in behind.items()}
    model.fusion = replace(model.fusion, compressed={schedule.steps: Fusion(with_first_stage, behind)})
    scores = table_of(model, schedule.compression)
    order, depth = replay(read_candidates(scores, fusion=model.fusion if fused else None), schedule)
    given_scores = FIRST_STAGE_SCORES if fused else None
    ranking = model.rank_rows(rows_of(model, TEXTS), schedule, first_stage=given_scores, fused=fused)
    assert ranking.order.tolist() == order[0].tolist()
    assert ranking.layers.tolist() == depth[0].tolist()


def test_schedule_whose_compression_was_not_scored_is_not_replayed():
    candidates = read_candidates(table_of(reranker("bert"), Compression.at(2, 2)))
    with pytest.raises(BadInput, match=r"needs scores of layer_4_compressed_2_by_4.*score\.widths"):
        replay(candidates, Schedule.parse("2/4:3 4"))


@architectures
@pytest.mark.parametrize("tokens_per_batch", [None, 60])
def test_fused_scores_of_survivors_are_those_of_the_fused_exits(architecture, tokens_per_batch):
    model = reranker(architecture)
    table = table_of(model)
    features = {exit_name(k): table[exit_name(k)].to_numpy(np.float64) for k in model.exits}
    features[FIRST_STAGE] = normalize_first_stage(FIRST_STAGE_SCORES)
    ranking = model.rank_rows(
        rows_of(model, TEXTS),
        Schedule.parse("0:7 2:4 3:2 4"),
        tokens_per_batch,
        first_stage=FIRST_STAGE_SCORES,
        fused=True,
    )
    assert np.bincount(ranking.layers).tolist() == [2, 0, 3, 2, 2]
    for k in model.exits:
        read = ranking.layers == k
        expected = fuse_scores(model.fusion.weights(k, True), features)[read]
        np.testing.assert_allclose(ranking.scores[read], expected, rtol=1e-5, atol=1e-5)
    dropped = ranking.layers == 0
    assert ranking.scores[dropped].tolist() == np.array(FIRST_STAGE_SCORES)[dropped].tolist()


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@torch.no_grad()
def test_fused_scores_of_survivors_have_the_same_bits_whoever_was_dropped(architecture):
    model = reranker(architecture)
    rows = rows_of(model, TEXTS)
    few, many = (
        model.rank_rows(rows, Schedule.parse(text), 10**6, first_stage=FIRST_STAGE_SCORES, fused=True)
        for text in ("2:3 4", "2:6 3:6 4")
    )
    at_the_end = few.layers == 4
    assert at_the_end.sum() == 3
    assert few.scores[at_the_end].tobytes() == many.scores[at_the_end].tobytes()


# --- properties of fused scores ------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize("first_stage", [FIRST_STAGE_SCORES, None])
@pytest.mark.parametrize("schedule", ["2:9 3:9 4", "2:99 4"])
def test_schedule_that_keeps_all_equals_the_fused_exit(architecture, first_stage, schedule):
    model, rows = reranker(architecture), rows_of(reranker(architecture), TEXTS)
    cascade, single = (
        model.rank_rows(rows, Schedule.parse(text), 10**6, first_stage=first_stage, fused=True)
        for text in (schedule, "4")
    )
    assert cascade.order.tolist() == single.order.tolist()
    assert cascade.layers.tolist() == [4] * 9
    np.testing.assert_allclose(cascade.scores, single.scores, rtol=1e-6, atol=1e-6)


@architectures
@pytest.mark.parametrize("schedule", ["2", "4", "2:5 4", "2:5 3:2 4"])
@pytest.mark.parametrize("first_stage", [FIRST_STAGE_SCORES, None])
def test_weights_of_the_exit_alone_reproduce_it_to_the_byte(architecture, schedule, first_stage):
    model = build(architecture, last_exit_alone())
    rows, schedule = rows_of(model, TEXTS), Schedule.parse(schedule)
    plain = model.rank_rows(rows, schedule)
    fused = model.rank_rows(rows, schedule, first_stage=first_stage, fused=True)
    assert fused.scores.astype(np.float32).tobytes() == plain.scores.tobytes()
    assert (fused.order.tolist(), fused.layers.tolist()) == (plain.order.tolist(), plain.layers.tolist())


@given(st.permutations(range(9)), st.sampled_from(["4", "0:6 4", "0:6 2:4 3:2 4"]))
@settings(deadline=None, max_examples=15)
def test_fused_scores_do_not_depend_on_the_order_of_the_list(order, schedule):
    model, schedule = reranker("bert"), Schedule.parse(schedule)
    first_stage = np.array(FIRST_STAGE_SCORES) + np.arange(9) / 100  # no ties
    one = model.rank_rows(rows_of(model, TEXTS), schedule, first_stage=first_stage, fused=True)
    texts = [TEXTS[i] for i in order]
    other = model.rank_rows(rows_of(model, texts), schedule, first_stage=first_stage[order], fused=True)
    assert [order[i] for i in other.order] == one.order.tolist()
    np.testing.assert_allclose(other.scores, one.scores[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("schedule", ["4", "2:3 4", "0:5 2:3 4"])
def test_equal_candidates_score_alike_and_keep_their_order(architecture, schedule):
    model = reranker(architecture)
    ranking = model.rank_rows(
        rows_of(model, TEXTS[:1] * 7), Schedule.parse(schedule), first_stage=[2.5] * 7, fused=True
    )
    assert ranking.order.tolist() == list(range(7))
    for layer in set(ranking.layers.tolist()):
        assert len(set(ranking.scores[ranking.layers == layer].tolist())) == 1


@pytest.mark.parametrize("schedule", ["2", "2:3 4", "0:3 2:2 4", "0:1 4"])
@pytest.mark.parametrize("length", [0, 1, 2, 9])
@pytest.mark.parametrize("constant", [True, False])
def test_lists_of_every_length_are_ranked(schedule, length, constant):
    model, texts = reranker("bert"), TEXTS[:length]
    first_stage = [1.5] * length if constant else FIRST_STAGE_SCORES[:length]
    ranked = model.rank(QUERY, texts, cascade=schedule, first_stage=first_stage, fused=True)
    assert sorted(entry["corpus_id"] for entry in ranked) == list(range(length))
    assert np.isfinite([entry["score"] for entry in ranked]).all()


def test_a_constant_first_stage_changes_no_ranking():
    model, rows = reranker("bert"), rows_of(reranker("bert"), TEXTS)
    constant = model.rank_rows(rows, Schedule.single(4), first_stage=[7.0] * 9, fused=True)
    weights = {name: w for name, w in model.fusion.weights(4, True).items() if name != FIRST_STAGE}
    without = build("bert", Fusion({4: weights}, {4: weights}))
    assert without.rank_rows(rows, Schedule.single(4), fused=True).order.tolist() == constant.order.tolist()


# --- stage 0 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_what_the_first_stage_drops_is_neither_tokenised_nor_read(monkeypatch, fused):
    model, computed = build("bert"), []
    tiny.record_blocks(
        model.stack.blocks, monkeypatch, lambda k, kwargs: computed.append((k, len(kwargs["packing"].rows)))
    )
    tokenised, passages = [], model.prompt.passages

    def recording(texts, prompt=None, **how):
        texts = list(texts)
        tokenised.extend(texts)
        return passages(texts, prompt, **how)

    monkeypatch.setattr(model.prompt, "passages", recording)
    ranked = model.rank(QUERY, TEXTS, cascade="0:3 2:2 4", first_stage=FIRST_STAGE_SCORES, fused=fused)
    best = np.argsort(-np.array(FIRST_STAGE_SCORES), kind="stable")
    assert sorted(tokenised) == sorted(TEXTS[i] for i in best[:3])
    assert computed == [(1, 3), (2, 3), (3, 2), (4, 2)]
    assert [entry["layer"] for entry in ranked] == [4, 4, 2, *[0] * 6]
    assert [entry["corpus_id"] for entry in ranked[3:]] == best[3:].tolist()
    assert [entry["score"] for entry in ranked[3:]] == sorted(FIRST_STAGE_SCORES, reverse=True)[3:]


def test_equal_first_stage_scores_keep_the_given_order():
    plan = plan_ranking(Schedule.parse("0:2 4"), 5, [1.0, 2.0, 1.0, 1.0 + 1e-12, 1.0])
    assert (plan.read.tolist(), plan.dropped.tolist()) == ([0, 1], [2, 3, 4]), "compared as float32"


# --- refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"cascade": "0:3 4"}, "first_stage"),
        ({"cascade": "0:3 4", "fused": True}, "first_stage"),
        ({"first_stage": FIRST_STAGE_SCORES}, "nothing uses it"),
        ({"first_stage": FIRST_STAGE_SCORES, "cascade": "2:3 4"}, "nothing uses it"),
        ({"first_stage": FIRST_STAGE_SCORES[:8], "fused": True}, r"\[8\].*9 documents"),
        ({"first_stage": [FIRST_STAGE_SCORES], "fused": True}, r"\[1, 9\].*9 documents"),
        ({"first_stage": [*FIRST_STAGE_SCORES[:8], float("nan")], "fused": True}, r"first_stage\[8\] is nan"),
        ({"first_stage": [1e39, *FIRST_STAGE_SCORES[1:]], "fused": True}, r"first_stage\[0\] is 1e\+39"),
        ({"first_stage": [*FIRST_STAGE_SCORES[:8], "high"], "fused": True}, "not a list of numbers"),
        ({"first_stage": [*FIRST_STAGE_SCORES[:8], None], "cascade": "0:3 4"}, r"first_stage\[8\] is nan"),
    ],
    ids=str,
)
def test_wrong_first_stage_is_refused(how, expected):
    with pytest.raises(ValueError, match=expected):
        reranker("bert").rank(QUERY, TEXTS, **how)


def test_fused_without_weights_is_refused():
    model = tiny.build_reranker("bert").eval()
    with pytest.raises(ValueError, match=r"lwr fuse.*fusion\.json"):
        model.rank(QUERY, TEXTS, fused=True)
    model.fusion = Fusion({4: {"layer_4": 1.0}}, {4: {"layer_4": 1.0}})
    with pytest.raises(ValueError, match=r"no weights at layers \[2\]"):
        model.rank(QUERY, TEXTS, cascade="2:3 4", fused=True)
    assert {entry["layer"] for entry in model.rank(QUERY, TEXTS, fused=True)} == {4}


# --- stored --------------------------------------------------------------------------------------------


def test_weights_are_carried_in_the_folder(tmp_path):
    model = build("bert")
    model.save_pretrained(tmp_path)
    loaded = LayerwiseReranker.from_pretrained(tmp_path, device="cpu")
    assert loaded.fusion == model.fusion == read_stored_fusion(str(tmp_path))
    how = {"cascade": "0:6 2:4 4", "first_stage": FIRST_STAGE_SCORES, "fused": True}
    assert loaded.rank(QUERY, TEXTS, **how) == model.rank(QUERY, TEXTS, **how)
    model.fusion = None
    model.save_pretrained(tmp_path)
    assert LayerwiseReranker.from_pretrained(tmp_path, device="cpu").fusion is None
    assert read_stored_fusion(str(tmp_path)) is None


def test_weights_of_other_exits_are_refused(tmp_path):
    build("bert").save_pretrained(tmp_path)
    record = json.loads((tmp_path / "fusion.json").read_text())
    for weights in ("with_first_stage", "without_first_stage"):
        del record[weights]["layer_2"]
    (tmp_path / "fusion.json").write_text(json.dumps(record))
    for read in (LayerwiseReranker.from_pretrained, lambda folder: read_stored_fusion(str(folder))):
        with pytest.raises(BadInput, match=r"fusion\.json: .*\[3, 4\].*2\.\.4"):
            read(tmp_path)


@pytest.mark.parametrize("first_stage", [None, FIRST_STAGE_SCORES])
@pytest.mark.parametrize(("seconds", "layer"), [(1e-9, 2), (1e9, 4)])
def test_a_deadline_ranks_by_the_fused_scores_of_its_exit(first_stage, seconds, layer):
    model = reranker("llama")
    rows = list(model.prompt.rows([(QUERY, text) for text in TEXTS]))
    deadline = Deadline.after(1000 * seconds)
    ranking = model.rank_rows_by(deadline, rows, None, first_stage, fused=True)
    expected = model.rank_rows(rows, Schedule.single(layer), None, first_stage, fused=True)
    assert ranking.layers.tolist() == [layer] * len(TEXTS)
    assert ranking.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(ranking.scores, expected.scores, atol=1e-5)
