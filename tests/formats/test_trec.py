"""Runs are read as they were written, and ties are broken by a fixed rule."""

from itertools import pairwise

import ir_measures
import numpy as np
import pytest

from lwr.common.errors import BadInput
from lwr.formats.trec import best_first, read_run, write_run


def test_run_survives_the_round_trip(tmp_path):
    run = {"q2": [("d1", 2.1), ("d0", -1e-30)], "q1": [("d0", 0.5)]}
    write_run(tmp_path / "a.run", run, tag="t")
    assert read_run(tmp_path / "a.run") == run
    assert (tmp_path / "a.run").read_text().splitlines()[0] == "q2 Q0 d1 1 2.1 t"


def test_run_that_was_read_can_be_written_again(tmp_path):
    ranked = best_first([(f"d{i}", 1 / 3) for i in range(50)])
    write_run(tmp_path / "a.run", {"q": ranked}, tag="t")
    write_run(tmp_path / "b.run", read_run(tmp_path / "a.run"), tag="t")
    assert (tmp_path / "a.run").read_bytes() == (tmp_path / "b.run").read_bytes()


def test_best_first_sorts_by_score():
    assert best_first([("a", 1.0), ("b", 3.0), ("c", 2.0)]) == [("b", 3.0), ("c", 2.0), ("a", 1.0)]


def test_ties_are_broken_by_hash_in_any_input_order():
    tied = [(f"d{i}", 1.0) for i in range(20)]
    ranked = best_first(tied)
    assert ranked == best_first(reversed(tied))
    assert [doc_id for doc_id, _ in ranked] not in ([d for d, _ in tied], [d for d, _ in reversed(tied)])
    scores = [np.float32(score) for _, score in ranked]
    assert all(above > below for above, below in pairwise(scores))


def test_score_lowered_at_a_tie_stays_above_the_next_one():
    close = np.nextafter(np.float32(1), np.float32(0))  # the value to which the second 1.0 is lowered
    ranked = best_first([("a", 1.0), ("b", 1.0), ("c", close)])
    assert ranked[-1][0] == "c"
    assert ranked[0][1] > ranked[1][1] > ranked[2][1]


def test_trec_eval_keeps_the_written_order(tmp_path):
    # trec_eval compares float32 scores and breaks ties by id, so it would undo differences of float64
    write_run(tmp_path / "a.run", {"q": best_first([(f"d{i}", 1.0) for i in range(9)])}, tag="t")
    ranked = read_run(tmp_path / "a.run")["q"]
    for rank, (doc_id, _) in enumerate(ranked, 1):
        measured = ir_measures.calc_aggregate([ir_measures.RR], {"q": {doc_id: 1}}, {"q": dict(ranked)})
        assert measured[ir_measures.RR] == pytest.approx(1 / rank)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_score_that_is_not_finite_is_refused(tmp_path, score):
    with pytest.raises(ValueError, match=r"'b'.*finite"):
        best_first([("a", 1.0), ("b", score)])
    with pytest.raises(ValueError, match="finite"):
        write_run(tmp_path / "a.run", {"q": [("a", score)]}, tag="t")


@pytest.mark.parametrize(
    "ranked", [[("a", 1.0), ("b", 1.0)], [("a", 1.0), ("b", 2.0)], [("a", 1.0), ("b", 1.0 - 1e-12)]]
)
def test_scores_that_do_not_decrease_are_refused(tmp_path, ranked):
    with pytest.raises(ValueError, match="decrease"):
        write_run(tmp_path / "a.run", {"q": ranked}, tag="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query_id", "doc_id", "tag"),
    [("q 1", "d", "t"), ("q", "d\u00a01", "t"), ("q", "", "t"), ("q", "d", "a b")],
)
def test_ids_and_tags_that_break_the_columns_are_refused(tmp_path, query_id, doc_id, tag):
    with pytest.raises(ValueError, match="whitespace"):
        write_run(tmp_path / "a.run", {query_id: [(doc_id, 1.0)]}, tag)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("q Q0 d2 2 1.0", "5 columns"),
        ("q Q0 d2 2 high t", "score 'high'"),
        ("q Q0 d2 2 nan t", "score 'nan'"),
        ("q Q0 d1 2 1.0 t", "'d1' is duplicated for query 'q'"),
    ],
)
def test_bad_line_is_reported(tmp_path, line, says):
    path = tmp_path / "a.run"
    path.write_text(f"q Q0 d1 1 2.0 t\n{line}\n")
    with pytest.raises(BadInput) as error:
        read_run(path)
    assert f"{path}:2: " in str(error.value)
    assert says in str(error.value)


def test_run_is_sorted_by_score_when_it_is_read(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 low 1 1.0 t\nq Q0 high 2 2.0 t\n")
    assert read_run(tmp_path / "a.run") == {"q": [("high", 2.0), ("low", 1.0)]}
