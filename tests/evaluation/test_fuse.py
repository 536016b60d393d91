"""Weights of fused scores: the fit, the folds, and the file."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scored_lists import few_examples

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.config.evaluation import FusionConfig
from lwr.evaluation.fuse import fit_fusion, fit_weights, fuse, listwise_loss, read_lists
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.evaluation.schedules.replay import add_fused
from lwr.formats.beir import Passage, write_collection
from lwr.formats.fusion import fold_of, read_cross_fitted, read_fusion

EXITS = ["layer_2", "layer_3"]


def made_up_lists(seed: int, features: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, targets and lengths of lists in which the last feature tells most of the relevance."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, 30)
    targets = generator.exponential(size=lengths.sum()) ** 3
    targets /= np.repeat(np.add.reduceat(targets, np.cumsum(lengths) - lengths), lengths)
    noise = generator.normal(size=(lengths.sum(), features))
    return noise + targets[:, None] * np.arange(features), targets, lengths


# --- the fit ---------------------------------------------------------------------------------------------


@given(st.integers(0, 100))
@few_examples
def test_gradient_is_the_derivative_of_the_loss(seed):
    features, targets, lengths = made_up_lists(seed)
    weights = np.random.default_rng(seed).normal(size=3)

    def loss(w: np.ndarray) -> float:
        return listwise_loss(w, features, targets, lengths, 0.1)[0]

    def gradient(w: np.ndarray) -> np.ndarray:
        return listwise_loss(w, features, targets, lengths, 0.1)[1]

    assert check_grad(loss, gradient, weights) < 1e-6


def test_loss_by_hand():
    # one list of two, one of one; scores 2, 0 and 5
    features = np.array([[1.0], [0.0], [2.5]])
    loss, _ = listwise_loss(np.array([2.0]), features, np.array([0.75, 0.25, 1.0]), np.array([2, 1]), 0.1)
    of_first = np.log(np.exp(2) + 1) - 0.75 * 2
    assert loss == pytest.approx((of_first + 0) / 2 + 0.1 * 2**2 / 2)


def test_large_scores_do_not_overflow():
    features = np.array([[1000.0], [-1000.0]])
    loss, gradient = listwise_loss(np.array([1.0]), features, np.array([0.0, 1.0]), np.array([2]), 0.0)
    assert loss == pytest.approx(2000)
    assert gradient == pytest.approx([2000])


def test_fitted_weights_minimise_the_loss():
    features, targets, lengths = made_up_lists(1)
    found = fit_weights(features, targets, lengths, 1e-9)
    at_minimum, gradient = listwise_loss(found, features, targets, lengths, 0)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert at_minimum < listwise_loss(np.zeros(3), features, targets, lengths, 0)[0] - 0.05


@given(st.integers(0, 50), st.floats(0.01, 100), st.floats(-50, 50))
@few_examples
def test_scores_do_not_depend_on_unit_and_offset_of_a_feature(seed, unit, offset):
    features, targets, lengths = made_up_lists(seed)
    other = features * [1, unit, 1] + [0, 0, offset]
    before = fit_weights(features, targets, lengths, 0.1)
    after = fit_weights(other, targets, lengths, 0.1)
    np.testing.assert_allclose(after * [1, unit, 1], before, atol=1e-4)


def test_penalty_shrinks_the_weights():
    features, targets, lengths = made_up_lists(2)
    sizes = [np.abs(fit_weights(features, targets, lengths, penalty)).sum() for penalty in (0.001, 0.1, 10)]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_feature_that_is_constant_within_lists_gets_no_weight():
    features, targets, lengths = made_up_lists(3)
    features[:, 1] = np.repeat(np.random.default_rng(0).normal(size=len(lengths)) / 3, lengths)
    weights = fit_weights(features, targets, lengths, 0.01)
    assert weights[1] == 0
    np.testing.assert_allclose(
        weights[[0, 2]], fit_weights(features[:, [0, 2]], targets, lengths, 0.01), atol=1e-6
    )


@given(st.integers(0, 50))
@few_examples
def test_order_of_candidates_and_lists_does_not_matter(seed):
    features, targets, lengths = made_up_lists(seed)
    starts = np.cumsum(lengths) - lengths
    generator = np.random.default_rng(seed)
    lists = generator.permutation(len(lengths))
    rows = np.concatenate([starts[i] + generator.permutation(lengths[i]) for i in lists])
    again = fit_weights(features[rows], targets[rows], lengths[lists], 0.01)
    np.testing.assert_allclose(again, fit_weights(features, targets, lengths, 0.01), atol=1e-5)


# --- from files to weights -------------------------------------------------------------------------------

QUERIES = [f"q{i}" for i in range(40)]
DOCS = [f"d{i}" for i in range(12)]
QRELS = {query: {DOCS[i % 12]: 1, DOCS[(i + 1) % 12]: 2} for i, query in enumerate(QUERIES)}
QRELS["q0"] = {"elsewhere": 1}  # no relevant candidate
ARM = {"dataset": "made-up", "start_layer": 2}


def scores_of(seed: int) -> pd.DataFrame:
    """Return scores in which the errors of layer 3 are partly those of layer 2."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        [(q, d) for q in [*QUERIES, "unjudged"] for d in DOCS], columns=["query_id", "doc_id"]
    )
    grades = np.array([QRELS.get(q, {}).get(d, 0) for q, d in table.itertuples(index=False)])
    surface = generator.normal(size=len(table))
    return table.assign(
        tokens=np.int32(30),
        first_stage=10 + 3 * (grades + generator.normal(size=len(table))),
        layer_2=np.float32(surface),
        layer_3=np.float32(grades + 2 * surface + generator.normal(size=len(table))),
    )


@pytest.fixture
def arm(tmp_path):
    write_collection(
        tmp_path,
        [Passage(doc, "", f"text {doc}") for doc in [*DOCS, "elsewhere"]],
        {query: query for query in QUERIES},
        {"dev": QRELS},
    )
    for seed in (1, 2):
        scores_of(seed).to_parquet(tmp_path / f"dev{seed}.parquet")
    return tmp_path


def run_fuse(arm, settings=FusionConfig(), measure="nDCG@10") -> dict:  # noqa: B008 - frozen
    fuse([arm / f"dev{seed}.parquet" for seed in (1, 2)], arm, settings, measure, ARM, arm / "fusion.json")
    return json.loads((arm / "fusion.json").read_text(encoding="utf-8"))


def mean_of(scores: list[pd.DataFrame], column: str, measure: str) -> float:
    of_seeds = [measures_per_query(QRELS, rankings(table, column), [measure]) for table in scores]
    return float(np.mean([values["value"].mean() for values in of_seeds]))


def test_file_holds_weights_of_every_exit_and_where_they_come_from(arm):
    record = run_fuse(arm)
    assert list(record)[:2] == list(ARM)
    assert (record["measure"], record["penalty"], record["folds"]) == ("nDCG@10", 0.01, 5)
    assert (record["dev queries"], record["dev lists"]) == (39, 78)  # both seeds
    assert record["inputs"]["dev"] == [sha256(arm / f"dev{seed}.parquet") for seed in (1, 2)]
    assert record["inputs"]["qrels"] == {"dev": sha256(arm / "qrels/dev.tsv")}
    for part in (record, *record["out_of_fold"]):
        assert {exit: list(weights) for exit, weights in part["with_first_stage"].items()} == {
            "layer_2": ["first_stage", "layer_2"],
            "layer_3": ["first_stage", "layer_2", "layer_3"],
        }
        assert list(part["without_first_stage"]["layer_3"]) == ["layer_2", "layer_3"]
    assert record["with_first_stage"]["layer_3"]["layer_2"] < 0, "what layer 3 has from layer 2 is corrected"
    assert record["with_first_stage"]["layer_3"]["first_stage"] > 0


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@10"])
def test_reported_quality_is_that_of_the_fused_scores(arm, measure):
    record, seeds = run_fuse(arm, measure=measure), [scores_of(1), scores_of(2)]
    fusion, cross_fitted = read_fusion(arm / "fusion.json"), read_cross_fitted(arm / "fusion.json")
    for layer in ("layer_2", "layer_3"):
        reported = record["dev"][layer]
        assert reported["plain"] == pytest.approx(mean_of(seeds, layer, measure))
        for name, weights in (("in_sample", fusion), ("out_of_fold", cross_fitted)):
            fused = [add_fused(scores, weights) for scores in seeds]
            expected = mean_of(fused, f"{layer}_fused", measure)
            assert reported["with_first_stage"][name] == pytest.approx(expected)
    deepest = record["dev"]["layer_3"]
    assert deepest["with_first_stage"]["out_of_fold"] > deepest["without_first_stage"]["out_of_fold"] + 0.02
    assert deepest["without_first_stage"]["out_of_fold"] > deepest["plain"] + 0.02


def test_weights_of_a_fold_do_not_depend_on_its_queries(arm):
    before = run_fuse(arm, FusionConfig(folds=3))
    path = arm / "dev1.parquet"
    scores = pd.read_parquet(path)
    in_fold = np.array([fold_of(query, 3) == 1 for query in scores["query_id"]])
    scores.loc[in_fold, "layer_3"] = 0
    scores.to_parquet(path)
    after = run_fuse(arm, FusionConfig(folds=3))
    same = [old == new for old, new in zip(before["out_of_fold"], after["out_of_fold"], strict=True)]
    assert same == [False, True, False]


def test_weights_of_a_fold_are_fitted_on_the_others():
    qrels = {query: docs for query, docs in QRELS.items() if query != "q0"}
    seeds = [scores_of(1), scores_of(2)]
    others = {query: docs for query, docs in qrels.items() if fold_of(query, 3) != 2}
    lists = read_lists(seeds, qrels)
    selected = lists.select(np.array([fold_of(query, 3) != 2 for query in lists.queries]))
    assert fit_fusion(selected, EXITS, 0.1) == fit_fusion(read_lists(seeds, others), EXITS, 0.1)


def test_compressed_exits_are_fused_with_what_their_pass_knows(arm):
    plain = run_fuse(arm)
    for seed in (1, 2):
        scores = scores_of(seed)
        noise = np.random.default_rng(seed + 10).normal(size=len(scores))
        compressed = scores.assign(
            layer_3_compressed_2_by_2=np.float32(scores["layer_3"] + noise), passage_tokens=9
        )
        compressed.to_parquet(arm / f"dev{seed}.parquet")
    record = run_fuse(arm)
    for part, before in zip((record, *record["out_of_fold"]), (plain, *plain["out_of_fold"]), strict=True):
        for key, first in (("with_first_stage", ["first_stage"]), ("without_first_stage", [])):
            behind = part[key].pop("layer_3_compressed_2_by_2")
            assert list(behind) == [*first, "layer_2", "layer_3_compressed_2_by_2"]
            assert behind["layer_2"] < 0, "what the deeper exit has from layer 2 is corrected"
            assert part[key] == before[key], "other exits keep their weights"
    reported = record["dev"].pop("layer_3_compressed_2_by_2")
    assert reported["with_first_stage"]["out_of_fold"] > reported["plain"] + 0.02
    assert record["dev"] == plain["dev"]


def test_order_of_rows_does_not_change_the_file(arm):
    before = run_fuse(arm)
    for seed in (1, 2):
        scores_of(seed).sample(frac=1, random_state=seed).to_parquet(arm / f"dev{seed}.parquet")
    after = run_fuse(arm)
    for exit, weights in before["with_first_stage"].items():
        assert after["with_first_stage"][exit] == pytest.approx(weights, rel=1e-4)


def test_without_relevant_candidate_exits_keep_their_own_scores(arm, capsys):
    for seed in (1, 2):
        scores = scores_of(seed)
        scores[scores["query_id"] == "q0"].to_parquet(arm / f"dev{seed}.parquet")
    record = run_fuse(arm)
    assert record["with_first_stage"]["layer_3"] == {"first_stage": 0, "layer_2": 0, "layer_3": 1}
    assert "no dev query has a relevant candidate" in capsys.readouterr().err


def test_seeds_with_other_exits_are_refused(arm):
    scores_of(2).drop(columns="layer_2").to_parquet(arm / "dev2.parquet")
    with pytest.raises(BadInput, match=r"dev2\.parquet: has other exits than .*dev1\.parquet"):
        run_fuse(arm)
    assert not (arm / "fusion.json").exists()


def test_split_without_relevant_passage_is_refused(arm):
    (arm / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t0\n")
    with pytest.raises(BadInput, match=r"qrels/dev\.tsv: no query has a relevant passage"):
        run_fuse(arm)
