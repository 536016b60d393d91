"""Schedules replayed on scores equal going through their stages one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from scored_lists import LAYERS, any_schedule, few_examples, lists, rank_by_stages, score_table

from lwr.evaluation.measures import rankings
from lwr.evaluation.schedules.replay import add_fused, read_candidates, replay, replay_run
from lwr.formats.fusion import CrossFittedFusion, Fusion, fold_of
from lwr.formats.trec import best_first
from lwr.model.cascade_schedule import Schedule


def ranked(scores: pd.DataFrame, schedule: str) -> dict[str, list[str]]:
    return {
        query: [doc for doc, _ in run] for query, run in replay_run(scores, Schedule.parse(schedule)).items()
    }


def test_survivors_by_hand():
    scores = score_table(
        {
            # layer 2 keeps d1 d2 d3 and layer 3 of these d3 d1, though d4 is its best and d5 that of layer 5
            "long": {
                "d1": (9, 7, 1),
                "d2": (8, 6, 9),
                "d3": (7, 8, 2),
                "d4": (6, 9, 3),
                "d5": (5, 1, 9),
            },
            "short": {"d1": (1, 1, 1), "d2": (2, 2, 3)},
        }
    )
    schedule = Schedule.parse("2:3 3:2 5")
    assert ranked(scores, str(schedule)) == {"long": ["d3", "d1", "d2", "d4", "d5"], "short": ["d2", "d1"]}
    candidates = read_candidates(scores)
    order, depth = replay(candidates, schedule)
    assert order[0].tolist() == [2, 0, 1, 3, 4]
    assert order[1][:2].tolist() == [1, 0]
    assert depth.tolist() == [[5, 3, 5, 2, 2], [5, 5, 0, 0, 0]]


def test_query_without_candidates_is_an_empty_row():
    scores = score_table({"q1": {"d1": (1, 1, 1), "d2": (2, 2, 2)}})
    candidates = read_candidates(scores, ["none", "q1"])
    assert candidates.queries == ["none", "q1"]
    assert candidates.docs.tolist() == [["", ""], ["d1", "d2"]]
    assert candidates.tokens.tolist() == [[0, 0], [11, 12]]
    _, depth = replay(candidates, Schedule.parse("2:1 5"))
    assert depth.tolist() == [[0, 0], [2, 5]]


@given(lists, any_schedule(), st.randoms(use_true_random=False))
@few_examples
def test_replay_equals_going_stage_by_stage(lists, schedule, random):
    lists = {query: dict(random.sample(list(docs.items()), len(docs))) for query, docs in lists.items()}
    queries = [*lists, "none"]
    random.shuffle(queries)
    candidates = read_candidates(score_table(lists), queries)
    order, depth = replay(candidates, schedule)
    for row, query in enumerate(queries):
        expected, expected_depth = rank_by_stages(lists.get(query, {}), schedule)
        docs = candidates.docs[row]
        assert docs[order[row]].tolist() == expected + [""] * (len(docs) - len(expected))
        assert {doc: d for doc, d in zip(docs, depth[row], strict=True) if doc} == expected_depth


@given(lists, any_schedule())
@few_examples
def test_replay_keeps_all_candidates_and_ranks_deeper_ones_higher(lists, schedule):
    candidates = read_candidates(score_table(lists), [*lists, "none"])
    order, depth = replay(candidates, schedule)
    assert (np.sort(order, axis=1) == np.arange(order.shape[1])).all()
    by_rank = np.take_along_axis(depth, order, axis=1)
    assert (np.diff(by_rank, axis=1) <= 0).all()
    alive = np.array([len(lists.get(query, {})) for query in candidates.queries])
    for layer, survivors in schedule.keep:
        np.testing.assert_array_equal((depth >= layer).sum(axis=1), alive)
        alive = np.minimum(alive, survivors)
    np.testing.assert_array_equal((depth == schedule.last).sum(axis=1), alive)
    run = replay_run(score_table(lists), schedule)
    assert list(run) == sorted(lists)
    assert {query: {doc for doc, _ in docs} for query, docs in run.items()} == {
        query: set(docs) for query, docs in lists.items()
    }
    assert all(
        scores == [-float(i + 1) for i in range(len(scores))] for scores in map(scores_in, run.values())
    )


def scores_in(docs: list[tuple[str, float]]) -> list[float]:
    return [score for _, score in docs]


@given(lists, st.sampled_from(LAYERS))
@few_examples
def test_schedule_of_one_exit_ranks_as_that_exit(lists, layer):
    expected = {query: list(docs) for query, docs in rankings(score_table(lists), f"layer_{layer}").items()}
    assert ranked(score_table(lists), str(layer)) == expected


@given(lists)
@few_examples
def test_cascade_keeping_everyone_equals_last_exit(lists):
    assert ranked(score_table(lists), "2:12 3:12 5") == ranked(score_table(lists), "5")


def test_scores_equal_in_float32_are_ties():
    # in float64 the first would always be best
    names = [f"d{i}" for i in range(8)]
    close = score_table({"q": dict.fromkeys(names, (0, 0, 0))}).astype({"layer_5": "float64"})
    close["layer_5"] = 1 - np.arange(8) * 1e-12
    assert ranked(close, "5")["q"] == [doc for doc, _ in best_first((doc, 1.0) for doc in names)]
    assert ranked(close, "5")["q"] != names


# --- fused scores -----------------------------------------------------------------------------------------

FUSION = Fusion(
    {
        2: {"first_stage": 1.0, "layer_2": 0.5},
        3: {"first_stage": 0.5, "layer_2": -0.25, "layer_3": 1.0},
        5: {"first_stage": 0.125, "layer_2": -0.5, "layer_3": 0.25, "layer_5": 1.0},
    },
    {layer: {f"layer_{layer}": 1.0} for layer in LAYERS},
)
EXITS_ALONE = Fusion(
    {
        layer: {"first_stage": 0.0} | {f"layer_{k}": float(k == layer) for k in LAYERS if k <= layer}
        for layer in LAYERS
    },
    {layer: {f"layer_{layer}": 1.0} for layer in LAYERS},
)


def with_first_stage(lists: dict) -> pd.DataFrame:
    """Return scores whose first stage prefers later names, with ties."""
    scores = score_table(lists)
    return scores.assign(first_stage=(scores["doc_id"].str[1:].astype(int) // 2).astype(float))


def fused_lists(scores: pd.DataFrame) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return query -> passage -> its score at layers 0, 2, 3 and 5, computed passage by passage."""
    result: dict[str, dict[str, tuple[float, ...]]] = {}
    for query, listed in scores.groupby("query_id"):
        spread = listed["first_stage"].std(ddof=0) or 1
        normal = (listed["first_stage"] - listed["first_stage"].mean()) / spread
        for z, row in zip(normal, listed.to_dict("records"), strict=True):
            features = row | {"first_stage": z}
            fused = [sum(w * features[f] for f, w in FUSION.with_first_stage[k].items()) for k in LAYERS]
            result.setdefault(str(query), {})[row["doc_id"]] = (row["first_stage"], *np.round(fused, 9))
    return result


@given(lists, any_schedule(), st.none() | st.integers(1, 13))
@few_examples
def test_fused_replay_equals_going_stage_by_stage(lists, schedule, from_first_stage):
    if from_first_stage:
        schedule = Schedule(((0, from_first_stage), *schedule.keep), schedule.last)
    scores = with_first_stage(lists)
    candidates = read_candidates(scores, [*lists, "none"], FUSION)
    order, depth = replay(candidates, schedule)
    fused = fused_lists(scores)
    # The last bits of scores that were computed otherwise differ. Of ties, any may survive.
    for row, query in enumerate(lists):
        _, expected_depth = rank_by_stages(fused[query], schedule, (0, *LAYERS))
        read = {doc: d for doc, d in zip(candidates.docs[row], depth[row], strict=True) if doc}
        assert sorted(read.values()) == sorted(expected_depth.values())
        ranking = [doc for doc in candidates.docs[row][order[row]] if doc]
        keys = [(-read[doc], -fused[query][doc][(0, *LAYERS).index(read[doc])]) for doc in ranking]
        assert keys == sorted(keys)


@given(lists, st.sampled_from(LAYERS))
@few_examples
def test_fused_schedule_that_keeps_all_equals_the_fused_exit(lists, layer):
    scores = with_first_stage(lists)
    expected = {
        q: list(docs) for q, docs in rankings(add_fused(scores, FUSION), f"layer_{layer}_fused").items()
    }
    for text in (f"{layer}", f"0:12 {layer}"):
        run = replay_run(scores, Schedule.parse(text), FUSION)
        assert {query: [doc for doc, _ in docs] for query, docs in run.items()} == expected


@given(lists, any_schedule())
@few_examples
def test_weights_of_the_exit_alone_replay_as_the_exits(lists, schedule):
    scores = with_first_stage(lists)
    assert replay_run(scores, schedule, EXITS_ALONE) == replay_run(scores, schedule)


@given(lists, st.integers(0, 9))
@few_examples
def test_fused_scores_do_not_depend_on_the_order_of_the_table(lists, seed):
    scores = with_first_stage(lists)
    mixed = add_fused(scores.sample(frac=1, random_state=seed), FUSION)
    pd.testing.assert_frame_equal(mixed.sort_index(), add_fused(scores, FUSION), check_exact=True)


def test_equal_candidates_have_equal_fused_scores():
    scores = with_first_stage({"q": {"d0": (1, 2, 3), "d1": (1, 2, 3), "d4": (0, 0, 0)}})
    fused = add_fused(scores, FUSION)
    assert (fused["layer_5_fused"][0], fused["layer_3_fused"][0]) == (
        fused["layer_5_fused"][1],
        fused["layer_3_fused"][1],
    )


def test_first_stage_drops_candidates_before_they_are_read():
    scores = with_first_stage({"q": {f"d{2 * i}": (i, -i, i) for i in range(5)}})
    candidates = read_candidates(scores, fusion=FUSION)
    order, depth = replay(candidates, Schedule.parse("0:3 2:1 5"))
    by_doc = dict(zip(candidates.docs[0], depth[0], strict=True))
    assert by_doc == {"d8": 5, "d6": 2, "d4": 2, "d2": 0, "d0": 0}
    assert list(candidates.docs[0][order[0]])[3:] == ["d2", "d0"]


def test_queries_of_a_fold_get_its_weights():
    queries = [f"q{i}" for i in range(12)]
    scores = with_first_stage({query: {"d0": (1, 2, 3), "d5": (3, 1, 0)} for query in queries})
    weights = [{5: {"first_stage": 0.0, "layer_5": float(factor)}} for factor in (1, 10, 100)]
    fused = add_fused(scores, CrossFittedFusion(tuple(Fusion(w, w) for w in weights)))
    factors = {query: 10 ** fold_of(query, 3) for query in queries}
    assert set(factors.values()) == {1, 10, 100}
    expected = [
        factors[query] * score for query, score in zip(scores["query_id"], scores["layer_5"], strict=True)
    ]
    assert list(fused["layer_5_fused"]) == expected


def test_fused_scores_are_compared_as_float64():
    close = score_table({"q": {f"d{i}": (0, 0, 0) for i in range(8)}})
    close["first_stage"] = np.arange(8.0)
    weights = {layer: {"first_stage": 1e-12, f"layer_{layer}": 1.0} for layer in LAYERS}
    close["layer_5"] = np.float32(1)
    ranked = [doc for doc, _ in replay_run(close, Schedule.parse("5"), Fusion(weights, weights))["q"]]
    assert ranked == [f"d{i}" for i in reversed(range(8))]
