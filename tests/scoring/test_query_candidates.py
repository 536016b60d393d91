"""Tests of tokenising queries while those before them are scored."""

from __future__ import annotations

import threading

import pytest
import tiny

import lwr.scoring.query_candidates
from lwr.scoring.query_candidates import QueryCandidates, compute_ahead, tokenize_ahead, tokenize_pairs

QUERIES = [QueryCandidates(f"q{i}", f"query {i}", ["a", "b"], [f"passage {i}", "another"]) for i in range(5)]
WAIT = 20  # seconds; more than tokenising takes on any machine


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.setattr(lwr.scoring.query_candidates, "QUERIES_PER_CHUNK", 2)
    return tiny.build_reranker("bert").prompt


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_rows_are_those_of_each_chunk(prompt, number):
    queries = QUERIES[:number]
    chunks = list(tokenize_ahead(prompt, queries))
    assert [query for chunk, _ in chunks for query in chunk] == queries
    assert [len(chunk) for chunk, _ in chunks] == [2] * (number // 2) + [1] * (number % 2)
    for chunk, rows in chunks:
        assert rows == tokenize_pairs(prompt, chunk)


def test_next_result_is_computed_before_the_caller_asks_for_it():
    begun = [threading.Event() for _ in range(3)]

    def double(item):
        begun[item].set()
        return 2 * item

    results = compute_ahead(double, range(3))
    assert next(results) == (0, 0)
    assert begun[1].wait(WAIT)
    assert not begun[2].is_set()  # memory holds two results
    assert next(results) == (1, 2)
    assert begun[2].wait(WAIT)
    assert list(results) == [(2, 4)]


def test_error_is_raised_after_the_results_before_it():
    results = compute_ahead(lambda item: 6 // item, [3, 0, 2])
    assert next(results) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_thread_ends_where_the_caller_stops():
    before = threading.active_count()
    results = compute_ahead(abs, [-1, -2, -3])
    next(results)
    results.close()
    assert threading.active_count() == before
