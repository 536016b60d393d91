"""Runs and measures on disk agree with each other and with pytrec_eval."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytrec_eval

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.common.json_lines import write_json
from lwr.evaluation.evaluate import evaluate
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.evaluation.schedules.replay import add_fused, replay_run
from lwr.formats import parquet
from lwr.formats.beir import Passage, Split, write_collection
from lwr.formats.fusion import CrossFittedFusion, Fusion, fusion_record, read_cross_fitted, read_fusion
from lwr.formats.trec import best_first, read_run, read_run_tag
from lwr.model.cascade_schedule import Schedule

DOCS = [f"d{i}" for i in range(20)]
QRELS = {
    "q1": {"d3": 1},
    "q2": {"d0": 1, "d7": 2, "d11": 1, "gone": 3},
    "q3": {"d5": 0},  # without a relevant passage
    "q4": {"d1": 1},  # no candidates
}
JUDGED = ["q1", "q2", "q4"]
MEASURES = ["nDCG@10", "RR@10", "AP@100", "R@100", "P@1"]
CELL = {
    "dataset": "made-up",
    "trained_on": "made-up",
    "base_model": "m",
    "start_layer": 1,
    "variant": "v",
    "seed": 1,
}


def table(docs=DOCS, **exits) -> pd.DataFrame:
    """Return what `lwr score` writes. exits: column -> function that scores a passage of a query."""
    pairs = [(query, doc) for query in ("q1", "q2", "q3") for doc in docs]
    scores = pd.DataFrame(pairs, columns=["query_id", "doc_id"]).assign(tokens=np.int32(30))
    for name, score in ({"first_stage": lambda _, doc: -float(doc[1:])} | exits).items():
        values = [score(query, doc) for query, doc in pairs]
        scores[name] = np.array(values, dtype="float64" if name == "first_stage" else "float32")
    return scores


def random_scores(docs=DOCS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return table(
        docs,
        **dict.fromkeys(
            ["layer_1", "layer_2", "layer_3"], lambda query, doc: rng.normal() + QRELS[query].get(doc, 0)
        ),
    )


@pytest.fixture
def collection(tmp_path):
    corpus = [Passage(doc, "", f"text {doc}") for doc in [*DOCS, "gone"]]
    write_collection(tmp_path, corpus, {query: query for query in QRELS}, {"test": QRELS})
    shutil.copy(tmp_path / "qrels/test.tsv", tmp_path / "qrels/dev.tsv")
    return tmp_path


def evaluated(
    collection,
    scores: pd.DataFrame,
    measures=MEASURES,
    chosen="3",
    deepest="3",
    split: Split = "test",
    fusion: Path | None = None,
    fused: bool = False,
) -> pd.DataFrame:
    scores.to_parquet(collection / "scores.parquet")
    write_json(collection / "cascade.json", {"chosen": chosen, "deepest": deepest, "fused": fused})
    evaluate(
        collection / "scores.parquet",
        collection,
        split,
        measures,
        collection / "cascade.json",
        CELL,
        collection / "out.parquet",
        collection / "runs",
        fusion,
    )
    return pd.read_parquet(collection / "out.parquet")


def values_of(out: pd.DataFrame, exit: str, measure: str) -> dict[str, float]:
    return out[(out["exit"] == exit) & (out["measure"] == measure)].set_index("query_id")["value"].to_dict()


def runs(collection) -> dict[str, dict[str, list[tuple[str, float]]]]:
    return {path.stem: read_run(path) for path in (collection / "runs").iterdir()}


def test_one_row_per_exit_judged_query_and_measure(collection):
    out = evaluated(collection, random_scores(), chosen="1:5 3")
    assert list(out.columns) == [*CELL, "split", "exit", "query_id", "measure", "value"]
    assert (out[list(CELL)] == pd.Series(CELL)).all(axis=None)
    assert set(out["split"]) == {"test"}
    exits = ["first_stage", "layer_1", "layer_2", "layer_3"]
    keys = set(out[["exit", "query_id", "measure"]].itertuples(index=False, name=None))
    assert len(keys) == len(out)
    assert keys == {(e, q, m) for e in [*exits, "cascade"] for q in JUDGED for m in MEASURES} | {
        (e, q, "ties") for e in exits for q in ("q1", "q2")
    }


def test_query_without_candidates_counts_as_0_and_is_said(collection, capsys):
    out = evaluated(collection, random_scores())
    assert {values_of(out, exit, measure)["q4"] for exit in set(out["exit"]) for measure in MEASURES} == {0}
    message = (
        "1 of the 3 queries of test (33%) have no candidate, such as 'q4'; every measure counts them as 0"
    )
    assert message in capsys.readouterr().err


def test_run_of_each_exit_holds_every_candidate(collection):
    evaluated(collection, random_scores(), chosen="1:5 3")
    written = runs(collection)
    assert set(written) == {"first_stage", "layer_1", "layer_2", "layer_3", "cascade"}
    for exit, run in written.items():
        assert read_run_tag(collection / f"runs/{exit}.trec") == exit
        assert {query: sorted(doc for doc, _ in ranked) for query, ranked in run.items()} == dict.fromkeys(
            ["q1", "q2", "q3"], sorted(DOCS)
        )


def test_measures_equal_pytrec_eval_on_the_written_runs(collection):
    many = [f"d{i}" for i in range(130)]  # more than any cut-off
    scores = random_scores(many).assign(
        layer_1=lambda t: -t["layer_1"],  # relevant passages rank below the first hundred
        layer_2=lambda t: t["layer_2"].round(),  # with ties
    )
    out = evaluated(collection, scores, chosen="2:60 3")
    names = {"nDCG@10": "ndcg_cut_10", "AP@100": "map_cut_100", "R@100": "recall_100", "P@1": "P_1"}
    evaluator = pytrec_eval.RelevanceEvaluator(
        QRELS, {"ndcg_cut.10", "map_cut.100", "recall.100", "P.1", "recip_rank"}
    )
    for exit, run in runs(collection).items():
        whole = evaluator.evaluate({query: dict(ranked) for query, ranked in run.items()})
        first_ten = evaluator.evaluate({query: dict(ranked[:10]) for query, ranked in run.items()})
        for name in MEASURES:
            expected = {
                query: first_ten[query]["recip_rank"] if name == "RR@10" else whole[query][names[name]]
                for query in ("q1", "q2")
            }
            assert values_of(out, exit, name) == pytest.approx(expected | {"q4": 0}, abs=1e-6)
    assert 0 < values_of(out, "layer_1", "R@100")["q2"] < 3 / 4, "relevant passages must be cut off"


def test_scores_decrease_strictly_in_every_run(collection):
    scores = table(layer_1=lambda *_: 0.1, layer_2=lambda _, doc: float(doc > "d3"), layer_3=lambda *_: -1e30)
    evaluated(collection, scores, chosen="1:2 3")
    written = runs(collection)
    assert len(written) == 5
    for run in written.values():
        for ranked in run.values():
            as_trec_eval_has_them = [np.float32(score) for _, score in ranked]
            assert all(above > below for above, below in pairwise(as_trec_eval_has_them))


def test_oracle_reverse_and_constant_scorer(collection):
    def oracle(query: str, doc: str) -> float:
        return QRELS[query].get(doc, 0) + float(doc[1:]) / 100

    scores = table(layer_1=oracle, layer_2=lambda *pair: -oracle(*pair), layer_3=lambda *_: 0.5)
    out = evaluated(collection, scores, ["RR@20", "R@5", "nDCG@10"])
    assert values_of(out, "layer_1", "RR@20") == {"q1": 1, "q2": 1, "q4": 0}
    assert values_of(out, "layer_1", "R@5") == pytest.approx({"q1": 1, "q2": 3 / 4, "q4": 0})  # one is gone
    assert values_of(out, "layer_1", "nDCG@10")["q1"] == 1
    assert values_of(out, "layer_2", "RR@20") == pytest.approx({"q1": 1 / 20, "q2": 1 / 18, "q4": 0})
    assert values_of(out, "layer_2", "nDCG@10") == {"q1": 0, "q2": 0, "q4": 0}
    by_hash = [doc for doc, _ in best_first((doc, 0.5) for doc in DOCS)]
    assert values_of(out, "layer_3", "RR@20")["q1"] == pytest.approx(1 / (by_hash.index("d3") + 1))
    assert values_of(out, "layer_1", "ties") == values_of(out, "layer_2", "ties") == {"q1": 0, "q2": 0}
    assert values_of(out, "layer_3", "ties") == {"q1": 1, "q2": 1}


def test_ties_are_reported_per_exit(collection):
    scores = table(
        layer_1=lambda query, doc: float((query, doc) in {("q1", "d3"), ("q2", "d0"), ("q2", "d7")})
    )
    out = evaluated(collection, scores, ["P@1"], "1", "1")
    assert values_of(out, "layer_1", "ties") == pytest.approx({"q1": 19 / 20, "q2": 1})
    assert values_of(out, "first_stage", "ties") == {"q1": 0, "q2": 0}


def test_hash_breaks_ties_of_float32_scores_only(collection):
    one = np.float32(1)
    just_above = np.nextafter(one, np.float32(2))
    first, second = [doc for doc, _ in best_first((doc, 1.0) for doc in DOCS)][:2]
    scores = table(
        layer_1=lambda *_: one,
        layer_2=lambda _, doc: just_above if doc == second else one,
        # float64 knows them apart, float32 does not
        first_stage=lambda _, doc: 1 + 1e-12 if doc == second else 1.0,
    )
    out = evaluated(collection, scores, ["P@1"], "2", "2")
    tops = {exit: run["q1"][0][0] for exit, run in runs(collection).items()}
    assert tops == {"layer_1": first, "layer_2": second, "first_stage": first}
    assert values_of(out, "layer_2", "ties")["q1"] == pytest.approx(19 / 20)
    assert values_of(out, "layer_1", "ties")["q1"] == 1


def test_order_of_candidates_does_not_matter(collection):
    scores = random_scores().assign(layer_1=lambda t: t["layer_1"].round())  # with ties
    keys = ["exit", "query_id", "measure"]
    seen = []
    for given in (scores, scores.sample(frac=1, random_state=3)):
        out = evaluated(collection, given, chosen="1:5 3").sort_values(keys, ignore_index=True)
        seen.append((out, runs(collection)))
    pd.testing.assert_frame_equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


def test_cascade_ranks_by_chosen_schedule(collection):
    scores = random_scores()
    evaluated(collection, scores, chosen="1:8 2:3 3")
    expected = replay_run(scores, Schedule.parse("1:8 2:3 3"))
    written = runs(collection)
    assert written["cascade"] == expected
    assert [doc for doc, _ in written["cascade"]["q1"]] != [doc for doc, _ in written["layer_3"]["q1"]]


def test_no_cascade_where_deepest_exit_was_chosen(collection):
    evaluated(collection, random_scores(), chosen="2:5 3")
    out = evaluated(collection, random_scores())  # replaces the earlier runs
    assert "cascade" not in set(out["exit"])
    assert "cascade" not in runs(collection)


def test_chosen_schedule_may_be_a_shallower_exit(collection):
    out = evaluated(collection, random_scores(), chosen="1")
    for measure in MEASURES:
        assert values_of(out, "cascade", measure) == values_of(out, "layer_1", measure)
    assert values_of(out, "layer_1", "AP@100") != values_of(out, "layer_3", "AP@100")


def test_duplicated_candidate_is_refused(collection):
    scores = random_scores()
    with pytest.raises(BadInput, match="duplicated"):
        evaluated(collection, pd.concat([scores, scores.head(1)]))
    assert not (collection / "out.parquet").exists()
    assert not (collection / "runs").exists()


def test_nan_score_leaves_no_files_behind(collection):
    with pytest.raises(ValueError, match="layer_2 of row 1 is nan"):
        evaluated(collection, random_scores().assign(layer_2=np.float32("nan")))
    assert not (collection / "out.parquet").exists()
    assert not (collection / "runs").exists()


# --- with fused scores ---


def weights(factor: float) -> Fusion:
    """Return weights in which the first stage counts `factor` times as much as the last exit."""
    with_first_stage = {
        k: {"first_stage": factor} | {f"layer_{j}": float(j == k) for j in range(1, k + 1)} for k in (1, 2, 3)
    }
    return Fusion(with_first_stage, {k: {f"layer_{k}": 1.0} for k in (1, 2, 3)})


@pytest.fixture
def fusion(collection) -> Path:
    """A file whose weights for dev are those for test with another sign."""
    record = fusion_record(weights(2.0)) | {"out_of_fold": [fusion_record(weights(-2.0))] * 2}
    write_json(collection / "fusion.json", record)
    return collection / "fusion.json"


def test_fused_exits_are_measured_beside_the_exits_alone(collection, fusion):
    out = evaluated(collection, random_scores(), chosen="0:9 1:5 3", fusion=fusion, fused=True)
    fused = [f"layer_{k}_fused" for k in (1, 2, 3)]
    assert list(dict.fromkeys(out["exit"])) == [
        "first_stage",
        "layer_1",
        "layer_1_fused",
        "layer_2",
        "layer_2_fused",
        "layer_3",
        "layer_3_fused",
        "cascade",
    ]
    assert set(runs(collection)) == set(out["exit"])
    alone = evaluated(collection, random_scores())
    others = out[~out["exit"].isin([*fused, "cascade"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, alone)
    assert parquet.read_inputs(collection / "out.parquet").keys() == {"scores", "cascade", "qrels"}


def test_compressed_exits_are_measured_beside_the_exits_alone(collection):
    scores = random_scores()
    name = "layer_3_compressed_2_by_2"
    compressed = scores.assign(**{name: scores["layer_1"]}, passage_tokens=np.int32(20))
    out = evaluated(collection, compressed)
    assert list(dict.fromkeys(out["exit"])) == ["first_stage", "layer_1", "layer_2", "layer_3", name]
    assert set(runs(collection)) == set(out["exit"])
    assert values_of(out, name, "nDCG@10") == values_of(out, "layer_1", "nDCG@10")
    others = out[out["exit"] != name].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, evaluated(collection, scores))


def test_cascade_of_compressed_passages_ranks_by_their_scores(collection):
    scores = random_scores()
    name = "layer_3_compressed_2_by_2"
    compressed = scores.assign(**{name: scores["layer_1"]}, passage_tokens=np.int32(20))
    out = evaluated(collection, compressed, chosen="2/2 3")
    assert values_of(out, "cascade", "nDCG@10") == values_of(out, "layer_1", "nDCG@10")
    evaluated(collection, scores.assign(layer_3=scores["layer_1"]), chosen="2:4 3", deepest="2")
    expected = (collection / "runs/cascade.trec").read_text()
    evaluated(collection, compressed, chosen="2/2:4 3")
    assert (collection / "runs/cascade.trec").read_text() == expected


@pytest.mark.parametrize("split", ["dev", "test"])
def test_dev_is_measured_out_of_fold_and_test_with_all_of_dev(collection, fusion, split):
    scores = random_scores()
    out = evaluated(collection, scores, chosen="0:9 1:5 3", split=split, fusion=fusion, fused=True)
    used: Fusion | CrossFittedFusion = read_cross_fitted(fusion) if split == "dev" else read_fusion(fusion)
    table = add_fused(scores, used)
    for exit in ("layer_1_fused", "layer_3_fused"):
        expected = measures_per_query(QRELS, rankings(table, exit), ["AP@100"]).set_index("query_id")["value"]
        assert values_of(out, exit, "AP@100") == expected.to_dict()
    assert runs(collection)["cascade"] == replay_run(scores, Schedule.parse("0:9 1:5 3"), used)
    assert parquet.read_inputs(collection / "out.parquet")["fusion"] == sha256(fusion)
    other = {"dev": read_fusion, "test": read_cross_fitted}[split](fusion)
    assert runs(collection)["cascade"] != replay_run(scores, Schedule.parse("0:9 1:5 3"), other)


def test_cascade_that_is_not_fused_ranks_by_the_exits_alone(collection, fusion):
    scores = random_scores()
    evaluated(collection, scores, chosen="1:5 3", fusion=fusion)
    assert runs(collection)["cascade"] == replay_run(scores, Schedule.parse("1:5 3"))


def test_deepest_exit_that_was_chosen_fused_is_a_cascade(collection, fusion):
    out = evaluated(collection, random_scores(), chosen="3", fusion=fusion, fused=True)
    for measure in MEASURES:
        assert values_of(out, "cascade", measure) == values_of(out, "layer_3_fused", measure)


def test_ties_of_fused_scores_are_those_of_float64(collection, fusion):
    scores = table(layer_1=lambda *_: 0.5, layer_2=lambda *_: 0.5, layer_3=lambda *_: 0.5).assign(
        first_stage=lambda t: t["first_stage"].where(t["first_stage"] != -1, -2)  # d1 ties with d2
    )
    out = evaluated(collection, scores, fusion=fusion)
    assert values_of(out, "layer_3", "ties") == {"q1": 1, "q2": 1}
    assert values_of(out, "layer_3_fused", "ties") == pytest.approx({"q1": 2 / 20, "q2": 2 / 20})


def test_fused_cascade_without_weights_is_refused(collection):
    with pytest.raises(BadInput, match=r"cascade\.json: .*--fusion"):
        evaluated(collection, random_scores(), chosen="1:5 3", fused=True)


def test_weights_of_other_exits_are_refused(collection, fusion):
    with pytest.raises(BadInput, match=r"fusion\.json: has weights of layer_1, layer_2, layer_3, but"):
        evaluated(collection, random_scores().drop(columns="layer_1"), fusion=fusion)
    assert not (collection / "runs").exists()
