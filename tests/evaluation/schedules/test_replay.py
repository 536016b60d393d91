"""Schedules replayed on scores equal going through their stages one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from scored_lists import LAYERS, any_schedule, few_examples, lists, rank_by_stages, score_table

from lwr.evaluation.measures import rankings
from lwr.evaluation.schedules.replay import read_candidates, replay, replay_run
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
