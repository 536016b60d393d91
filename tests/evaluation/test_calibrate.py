"""Calibration: the two maps, their errors, thresholds, and the file."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_lists import few_examples

from lwr.common.errors import BadInput
from lwr.common.exits import Arm
from lwr.common.hashing import sha256
from lwr.config.evaluation import FusionConfig
from lwr.evaluation.calibrate import (
    METHODS,
    JudgedScores,
    calibrate,
    choose_threshold,
    expected_calibration_error,
    fit_isotonic,
    fit_logistic,
    measure_thresholds,
    read_calibrations,
    read_judged_scores,
    read_logistic,
    reliability,
)
from lwr.evaluation.fuse import fuse
from lwr.formats.beir import Passage, write_collection
from lwr.formats.calibration import Logistic

CELL = {"dataset": "made-up", **asdict(Arm("made-up", "tiny", 2, "default")), "seed": 1}


def logistic_world(slope: float, intercept: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and relevance that has exactly the probabilities of this line."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(2, 3, count)
    return scores, generator.random(count) < Logistic(slope, intercept).probabilities(scores)


def ece(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    return expected_calibration_error(reliability(probabilities, relevant))


# --- the maps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -3.0), (2.5, -1.0)])
def test_fit_recovers_the_line_within_its_standard_error(slope, intercept):
    scores, relevant = logistic_world(slope, intercept, 20_000, seed=1)
    found = fit_logistic(scores, relevant)
    p = Logistic(slope, intercept).probabilities(scores)
    features = np.stack([scores, np.ones_like(scores)])
    errors = np.sqrt(np.diag(np.linalg.inv((features * p * (1 - p)) @ features.T)))  # Fisher information
    assert abs(found.slope - slope) < 3 * errors[0]
    assert abs(found.intercept - intercept) < 3 * errors[1]


@given(st.integers(0, 100), st.floats(0.01, 100), st.floats(-50, 50))
@few_examples
def test_probabilities_do_not_depend_on_unit_and_offset_of_scores(seed, unit, offset):
    scores, relevant = logistic_world(0.7, -1, 300, seed)
    other = scores * unit + offset
    expected = fit_logistic(scores, relevant).probabilities(scores)
    np.testing.assert_allclose(fit_logistic(other, relevant).probabilities(other), expected, atol=1e-3)


def test_separable_constant_and_reversed_scores_have_a_finite_line():
    relevant = np.arange(40) >= 30
    separable = fit_logistic(np.arange(40.0), relevant)
    assert 0 < separable.slope < 20
    low, high = separable.probabilities(np.array([5.0, 35.0]))
    assert low < 0.1
    assert high > 0.75
    for scores in (np.full(40, 3.0), -np.arange(40.0)):
        flat = fit_logistic(scores, relevant)
        assert flat.slope == 0
        assert flat.probabilities(np.zeros(1)) == pytest.approx(0.25, abs=0.03)
    none = fit_logistic(np.arange(40.0), np.zeros(40, dtype=bool))
    assert none.probabilities(np.arange(40.0)).max() < 0.1


def test_large_scores_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        assert Logistic(1, 0).probabilities(np.array([-1e6, 0, 1e6])).tolist() == [0, 0.5, 1]


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
@few_examples
def test_isotonic_map_never_falls_and_keeps_the_share_of_relevant_candidates(pairs):
    scores, relevant = np.array([float(s) for s, _ in pairs]), np.array([r for _, r in pairs])
    found = fit_isotonic(scores, relevant)
    values = found.probabilities(np.linspace(-4, 4, 101))
    assert (np.diff(values) >= -1e-12).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert found.probabilities(scores).mean() == pytest.approx(relevant.mean())


def test_isotonic_map_by_hand():
    # shares 0, 1, 0 and 1 at four scores: the middle two violate the order and become 1/2
    found = fit_isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
    np.testing.assert_allclose(
        found.probabilities(np.array([0, 1, 2, 2.5, 3, 3.5, 4, 9])), [0, 0, 0.5, 0.5, 0.5, 0.75, 1, 1]
    )


# --- errors ----------------------------------------------------------------------------------------------


def test_error_of_true_probabilities_is_small_and_of_shifted_ones_is_not():
    scores, relevant = logistic_world(1, -2, 20_000, seed=2)
    assert ece(Logistic(1, -2).probabilities(scores), relevant) < 0.015
    assert ece(Logistic(1, 0).probabilities(scores), relevant) > 0.15
    for fit in (fit_logistic, fit_isotonic):
        assert ece(fit(scores, relevant).probabilities(scores), relevant) < 0.015


def test_bins_by_hand():
    p = np.array([0.1, 0.1, 0.1, 0.4, 0.8, 0.8])
    relevant = np.array([True, False, False, False, True, False])
    bins = reliability(p, relevant, bins=2)
    np.testing.assert_allclose(bins, [[0.1, 1 / 3, 3], [2 / 3, 1 / 3, 3]])
    assert expected_calibration_error(bins) == pytest.approx((0.7 / 3 + 1 / 3) / 2)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans()), min_size=1, max_size=30),
    st.randoms(),
)
@few_examples
def test_bins_do_not_depend_on_the_order_of_candidates(pairs, random):
    mixed = random.sample(pairs, len(pairs))
    before, after = (
        reliability(np.array([p for p, _ in of]), np.array([r for _, r in of])) for of in (pairs, mixed)
    )
    np.testing.assert_allclose(before, after)
    assert before[:, 2].sum() == len(pairs)


# --- thresholds ------------------------------------------------------------------------------------------


def judged(query: list[int], relevant: list[bool]) -> JudgedScores:
    return JudgedScores(pd.DataFrame(), [], np.array(query), np.array(relevant))


def clear_world(queries: int) -> tuple[np.ndarray, JudgedScores]:
    """Return 6 candidates for each query: the best is relevant, the second in every other query."""
    query = np.repeat(np.arange(queries), 6)
    scores = np.tile([5.0, 4, 3, 2, 1, 0], queries)
    return scores, judged(
        query, [i == 0 or (i == 1 and q % 2 == 0) for q in range(queries) for i in range(6)]
    )


def test_lowest_threshold_of_a_precision_is_chosen():
    scores, candidates = clear_world(200)
    chosen, _ = choose_threshold(scores, candidates, 0.6)
    assert (chosen.threshold, chosen.recall) == (4.0, 1.0)  # 300 of 400 are relevant
    assert (chosen.kept, chosen.precision) == (400, 0.75)
    assert 0.6 <= chosen.low < 0.75 < chosen.high
    strict, _ = choose_threshold(scores, candidates, 0.97)
    assert strict.threshold == 5.0
    assert strict.recall == pytest.approx(2 / 3)


def test_few_relevant_candidates_do_not_prove_a_precision():
    scores, candidates = clear_world(8)
    chosen, best = choose_threshold(scores, candidates, 0.9)
    assert chosen is None
    assert (best.precision, best.kept) == (1.0, 8)
    assert best.low == pytest.approx(0.025 ** (1 / 8))  # Clopper and Pearson of 8 of 8


def test_without_relevant_candidate_there_is_no_threshold():
    assert choose_threshold(np.arange(4.0), judged([0, 0, 1, 1], [False] * 4), 0.5) == (None, None)


def test_interval_over_queries_is_wider_than_that_of_independent_candidates():
    # all candidates of a query are relevant, or none is
    query = np.repeat(np.arange(30), 20)
    candidates = judged(query.tolist(), (query % 2 == 0).tolist())
    [kept] = measure_thresholds(np.ones(600), candidates, np.array([0.0]))
    assert (kept.precision, kept.recall) == (0.5, 1.0)
    assert kept.low < 0.5 - 1.5 / np.sqrt(30) / 2
    assert kept.high > 0.5 + 1.5 / np.sqrt(30) / 2


def test_threshold_that_keeps_nothing_has_no_precision():
    [kept] = measure_thresholds(np.zeros(4), judged([0, 0, 1, 1], [True, False] * 2), np.array([1.0]))
    assert np.isnan(kept.precision)
    assert (kept.kept, kept.low, kept.high, kept.recall) == (0, 0, 1, 0)


# --- from files to a file --------------------------------------------------------------------------------

DOCS = [f"d{i}" for i in range(12)]
QRELS = {
    split: {f"{split}{i}": {DOCS[i % 12]: 1, DOCS[(i + 3) % 12]: 0} for i in range(40)}
    for split in ("dev", "test")
}


def scores_of(split: str) -> pd.DataFrame:
    generator = np.random.default_rng(len(split))
    rows = [(q, d) for q in [*QRELS[split], "unjudged"] for d in DOCS]
    table = pd.DataFrame(rows, columns=["query_id", "doc_id"])
    relevant = np.array([QRELS[split].get(q, {}).get(d, 0) for q, d in rows])
    noise = generator.normal(size=(2, len(table)))
    return table.assign(
        tokens=np.int32(30),
        first_stage=10 + 3 * relevant + noise[0],
        layer_2=np.float32(noise[1]),
        layer_3=np.float32(3 * relevant + noise[1]),
    )


@pytest.fixture
def cell(tmp_path):
    passages = [Passage(doc, "", f"text {doc}") for doc in DOCS]
    write_collection(tmp_path, passages, {q: q for of_split in QRELS.values() for q in of_split}, QRELS)
    for split in QRELS:
        scores_of(split).to_parquet(tmp_path / f"{split}.parquet")
    fuse([tmp_path / "dev.parquet"], tmp_path, FusionConfig(folds=2), "nDCG@10", {}, tmp_path / "fusion.json")
    return tmp_path


def run_calibrate(cell, fused: bool = True) -> dict:
    fusion = cell / "fusion.json" if fused else None
    calibrate(cell / "dev.parquet", cell / "test.parquet", cell, CELL, cell / "calibration.json", fusion)
    return json.loads((cell / "calibration.json").read_text(encoding="utf-8"))


def test_file_holds_every_exit_and_where_it_comes_from(cell, capsys):
    record = run_calibrate(cell)
    assert {name: record[name] for name in CELL} == CELL
    assert list(record["exits"]) == ["first_stage", "layer_2", "layer_3", "layer_2_fused", "layer_3_fused"]
    assert record["candidates"] == {"dev": 480, "test": 480}  # without those of the query that is not judged
    assert record["relevant"] == {"dev": 40, "test": 40}  # candidates without a judgement are not relevant
    assert "dev.parquet: 1 queries have no judgement" in capsys.readouterr().err
    qrels = {split: sha256(cell / f"qrels/{split}.tsv") for split in ("dev", "test")}
    assert record["inputs"].pop("qrels") == qrels
    assert record["inputs"] == {
        **{split: sha256(cell / f"{split}.parquet") for split in ("dev", "test")},
        "fusion": sha256(cell / "fusion.json"),
    }
    useless, good = (record["exits"][exit]["test"] for exit in ("layer_2", "layer_3"))
    assert useless["raw"]["ece"] > 0.3 > 0.05 > useless["logistic"]["ece"]
    assert good["logistic"]["brier"] < 0.7 * useless["logistic"]["brier"]
    assert sum(size for _, _, size in good["isotonic"]["bins"]) == 480
    assert list(run_calibrate(cell, fused=False)["exits"]) == ["first_stage", "layer_2", "layer_3"]


def test_numbers_are_those_of_the_fits(cell):
    run_calibrate(cell)
    dev, test = (
        read_judged_scores(cell / f"{split}.parquet", cell, split, cell / "fusion.json")
        for split in ("dev", "test")
    )
    table = read_calibrations([cell / "calibration.json"]).set_index(["exit", "method"])
    for exit in dev.exits:
        line = fit_logistic(dev.of(exit), dev.relevant)
        assert read_logistic(cell / "calibration.json", exit) == line
        p = line.probabilities(test.of(exit))
        assert table.loc[(exit, "logistic"), "brier"] == pytest.approx(
            np.mean((p - test.relevant) ** 2), rel=1e-5
        )
        assert table.loc[(exit, "logistic"), "ece"] == pytest.approx(ece(p, test.relevant), rel=1e-5)
    assert list(table.index[:3]) == [("first_stage", method) for method in METHODS]
    assert set(table["relevant"]) == {40 / 480}


def test_order_of_rows_does_not_change_the_numbers(cell):
    before = run_calibrate(cell)
    for split in QRELS:
        scores_of(split).sample(frac=1, random_state=1).to_parquet(cell / f"{split}.parquet")
    after = run_calibrate(cell)
    for exit, of_exit in before["exits"].items():
        assert after["exits"][exit]["logistic"] == pytest.approx(of_exit["logistic"], rel=1e-3)
        for method, values in of_exit["test"].items():
            assert after["exits"][exit]["test"][method]["brier"] == pytest.approx(values["brier"], rel=1e-3)


def test_split_without_judged_query_is_refused(cell):
    (cell / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq99\td0\t1\n")
    with pytest.raises(BadInput, match=r"test\.parquet: no query of it is judged in .*qrels/test\.tsv"):
        run_calibrate(cell)
    assert not (cell / "calibration.json").exists()


def test_split_with_fewer_exits_is_refused(cell):
    scores_of("test").drop(columns="layer_2").to_parquet(cell / "test.parquet")
    with pytest.raises(BadInput, match=r"test\.parquet: no scores of layer_2, which .*dev\.parquet has"):
        run_calibrate(cell, fused=False)
