from itertools import pairwise

import ir_measures
import numpy as np
import pytest

from lwr.common.errors import BadInput
from lwr.formats.trec import best_first, read_run, write_run


def test_a_run_survives_the_round_trip(tmp_path):
    run = {"q2": [("d1", 2.1), ("d0", -1e-30)], "q1": [("d0", 0.5)]}
    write_run(tmp_path / "a.run", run, tag="t")
    assert read_run(tmp_path / "a.run") == run
    assert (tmp_path / "a.run").read_text().splitlines()[0] == "q2 Q0 d1 1 2.1 t"


def test_what_was_read_can_be_written_again(tmp_path):
    ranked = best_first([(f"d{i}", 1 / 3) for i in range(50)])
    write_run(tmp_path / "a.run", {"q": ranked}, tag="t")
    write_run(tmp_path / "b.run", read_run(tmp_path / "a.run"), tag="t")
    assert (tmp_path / "a.run").read_bytes() == (tmp_path / "b.run").read_bytes()


def test_best_first_sorts_by_score():
    assert best_first([("a", 1.0), ("b", 3.0), ("c", 2.0)]) == [("b", 3.0), ("c", 2.0), ("a", 1.0)]


def test_ties_are_broken_by_hash_whatever_the_order_given():
    tied = [(f"d{i}", 1.0) for i in range(20)]
    ranked = best_first(tied)
    assert ranked == best_first(reversed(tied))
    assert [doc_id for doc_id, _ in ranked] not in ([d for d, _ in tied], [d for d, _ in reversed(tied)])
    scores = [np.float32(score) for _, score in ranked]
    assert all(above > below for above, below in pairwise(scores))


def test_a_nudged_score_still_stands_above_the_next_one():
    close = np.nextafter(np.float32(1), np.float32(0))  # the place a second 1.0 is nudged to
    ranked = best_first([("a", 1.0), ("b", 1.0), ("c", close)])
    assert ranked[-1][0] == "c"
    assert ranked[0][1] > ranked[1][1] > ranked[2][1]


def test_trec_eval_sees_the_order_that_was_written(tmp_path):
    # it compares in float32 and breaks ties by id: float64 nudges would be undone
    write_run(tmp_path / "a.run", {"q": best_first([(f"d{i}", 1.0) for i in range(9)])}, tag="t")
    ranked = read_run(tmp_path / "a.run")["q"]
    for rank, (doc_id, _) in enumerate(ranked, 1):
        measured = ir_measures.calc_aggregate([ir_measures.RR], {"q": {doc_id: 1}}, {"q": dict(ranked)})
        assert measured[ir_measures.RR] == pytest.approx(1 / rank)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(tmp_path, score):
    with pytest.raises(ValueError, match="not a finite"):
        best_first([("a", 1.0), ("b", score)])
    with pytest.raises(ValueError, match="must be finite"):
        write_run(tmp_path / "a.run", {"q": [("a", score)]}, tag="t")


@pytest.mark.parametrize(
    "ranked", [[("a", 1.0), ("b", 1.0)], [("a", 1.0), ("b", 2.0)], [("a", 1.0), ("b", 1.0 - 1e-12)]]
)
def test_scores_that_do_not_decrease_are_refused(tmp_path, ranked):
    with pytest.raises(ValueError, match="decrease strictly"):
        write_run(tmp_path / "a.run", {"q": ranked}, tag="t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query_id", "doc_id", "tag"),
    [("q 1", "d", "t"), ("q", "d\u00a01", "t"), ("q", "", "t"), ("q", "d", "a b")],
)
def test_ids_that_would_break_the_columns_are_refused(tmp_path, query_id, doc_id, tag):
    with pytest.raises(ValueError, match="whitespace"):
        write_run(tmp_path / "a.run", {query_id: [(doc_id, 1.0)]}, tag)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("q Q0 d2 2 1.0", "has 5 columns"),
        ("q Q0 d2 2 high t", "score 'high' is not a number"),
        ("q Q0 d2 2 nan t", "score 'nan' is not finite"),
        ("q Q0 d1 2 1.0 t", "'d1' stands twice for query 'q'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "a.run"
    path.write_text(f"q Q0 d1 1 2.0 t\n{line}\n")
    with pytest.raises(BadInput) as error:
        read_run(path)
    assert f"{path}:2: " in str(error.value)
    assert says in str(error.value)


def test_a_run_is_read_by_score_not_by_line(tmp_path):
    (tmp_path / "a.run").write_text("q Q0 low 1 1.0 t\nq Q0 high 2 2.0 t\n")
    assert read_run(tmp_path / "a.run") == {"q": [("high", 2.0), ("low", 1.0)]}
