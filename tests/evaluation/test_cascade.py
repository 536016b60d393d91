"""Cost and quality of schedules, and the one that is chosen on dev."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_lists import any_schedule, few_examples, lists, rank_by_stages, score_table

from lwr.common.errors import BadInput
from lwr.common.hashing import sha256
from lwr.config.evaluation import CascadeSearchConfig, FusionConfig
from lwr.evaluation.cascade import (
    ChoiceRule,
    cascade,
    cheapest_within,
    choose_with_confidence,
)
from lwr.evaluation.flops import BackboneShape, count_flops
from lwr.evaluation.fuse import fuse
from lwr.evaluation.measures import measures_per_query, rankings
from lwr.evaluation.schedules.front import pareto_front
from lwr.evaluation.schedules.replay import read_candidates, replay, replay_run
from lwr.evaluation.schedules.search import (
    SURVIVORS,
    MeasuredSchedules,
    enumerate_schedules,
    measure_schedules,
)
from lwr.formats.beir import Passage, Qrels, write_collection
from lwr.formats.fusion import Fusion, fusion_record, read_cross_fitted, read_fusion
from lwr.model.cascade_schedule import Compression, Schedule

SHAPE = BackboneShape(weights=(100, 90, 80, 70, 60), attended=(3, 0, 3, 0, 1))


# --- quality and cost of schedules ---------------------------------------------------------------------

# Grades below 1 are not relevant; d12 and d13 are never candidates.
judgements = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]),
    st.dictionaries(st.sampled_from([f"d{i}" for i in range(14)]), st.integers(-1, 3), min_size=1),
    min_size=1,
).map(lambda qrels: {query: docs for query, docs in qrels.items() if max(docs.values()) > 0})


MEASURES = [
    "nDCG@10",
    "nDCG@3",
    "nDCG",
    "RR@10",
    "RR(rel=2)@2",
    "AP@4",
    "AP",
    "P@5",
    "P(rel=2)@1",
    "R@3",
    "Success@2",
]


@pytest.mark.parametrize("measure", MEASURES)
@given(lists, judgements.filter(bool), st.lists(any_schedule(), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_quality_of_schedules_equals_ir_measures_on_their_replay(measure, lists, qrels, schedules):
    if not lists.keys() & qrels.keys():  # no FLOPs of which a share could be computed
        return
    scores = score_table(lists)
    candidates = read_candidates(scores, sorted(qrels))
    measured = measure_schedules([candidates], qrels, SHAPE, schedules, measure)
    for schedule, quality in zip(schedules, measured.quality, strict=True):
        run = {query: dict(docs) for query, docs in replay_run(scores, schedule).items()}
        expected = measures_per_query(qrels, run, [measure]).set_index("query_id")["value"]
        np.testing.assert_allclose(quality, expected[sorted(qrels)], atol=1e-9)


def test_relevant_passage_outside_candidates_lowers_ndcg():
    scores = score_table({"q1": {"d1": (1, 1, 1), "d2": (2, 2, 2)}})
    qrels = {"q1": {"d2": 1, "d3": 1}, "q2": {"d1": 1}}
    measured = measure_schedules([read_candidates(scores, ["q1", "q2"])], qrels, SHAPE, [Schedule.parse("5")])
    assert measured.quality.mean() == pytest.approx((1 / (1 + 1 / math.log2(3)) + 0) / 2)


def test_ideal_ranking_is_cut_at_rank_ten():
    scores = score_table({"q1": {f"d{i}": (-i, -i, -i) for i in range(12)}})
    grades = {f"d{i}": 2 if i < 10 else 1 for i in range(12)}
    measured = measure_schedules([read_candidates(scores)], {"q1": grades}, SHAPE, [Schedule.parse("5")])
    assert measured.quality.mean() == pytest.approx(1)


def test_share_of_flops_by_hand():
    # n tokens: 2 n after one layer, 4 n after two, 8 n after three
    shape = BackboneShape(weights=(1, 1, 2), attended=(0, 0, 0))
    one = score_table({"q": {"d10": (3, 3, 3), "d20": (2, 2, 2), "d30": (1, 1, 1)}}, layers=(1, 2, 3))
    other = one.assign(layer_1=-one["layer_1"])  # the longest passage ahead at first
    full = 8 * (20 + 30 + 40)
    expected = {
        "1": (2 * 90, 2 * 90),
        "2": (4 * 90, 4 * 90),
        "3": (full, full),
        "1:7 3": (full, full),
        "1:1 3": (8 * 20 + 2 * (30 + 40), 8 * 40 + 2 * (20 + 30)),
        "1:2 2:1 3": (8 * 20 + 4 * 30 + 2 * 40, 8 * 30 + 4 * 40 + 2 * 20),
    }
    tried = [Schedule.parse(text) for text in expected]
    seeds = [read_candidates(scores, ["q"]) for scores in (one, other)]
    for chosen, of_seeds in ((seeds[:1], [0]), (seeds[1:], [1]), (seeds, [0, 1])):
        measured = measure_schedules(chosen, {"q": {"d10": 1}}, shape, tried)
        assert list(map(str, measured.schedules)) == list(expected)
        shares = [np.mean([costs[i] for i in of_seeds]) / full for costs in expected.values()]
        np.testing.assert_allclose(measured.flops, shares, rtol=1e-12)


def with_compressed(scores: pd.DataFrame, layer: int, ratio: int, layers=(2, 3, 5)) -> pd.DataFrame:
    """Add the columns of a compression that `lwr score` would write: the scores in another order."""
    names = {k: f"layer_{k}_compressed_{layer}_by_{ratio}" for k in layers if k > layer}
    columns = {name: -scores[f"layer_{k}"] + (scores.index % 3 == 0) for k, name in names.items()}
    return scores.assign(
        passage_tokens=scores["tokens"] - 5, **{n: c.astype("float32") for n, c in columns.items()}
    )


@given(lists, judgements.filter(bool), st.lists(any_schedule(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_compressed_schedules_are_measured_as_their_replay(lists, qrels, schedules):
    if not lists.keys() & qrels.keys():
        return
    scores = with_compressed(with_compressed(score_table(lists), 2, 2), 3, 4)
    tried = [
        *schedules,
        *(s.compress(Compression.at(2, 2)) for s in schedules if s.last > 2),
        *(s.compress(Compression.at(3, 4)) for s in schedules if s.last > 3),
    ]
    candidates = read_candidates(scores, sorted(qrels))
    measured = measure_schedules([candidates], qrels, SHAPE, tried)
    listed = candidates.docs != ""
    full = count_flops(SHAPE, candidates.tokens)[-1][listed].sum()
    for schedule, quality, flops in zip(tried, measured.quality, measured.flops, strict=True):
        run = {query: dict(docs) for query, docs in replay_run(scores, schedule).items()}
        expected = measures_per_query(qrels, run, ["nDCG@10"]).set_index("query_id")["value"]
        np.testing.assert_allclose(quality, expected[sorted(qrels)], atol=1e-9)
        _, depth = replay(candidates, schedule)
        by_layer = count_flops(SHAPE, candidates.tokens, candidates.passage_tokens, schedule.compression)
        spent = np.take_along_axis(by_layer, depth[None] - 1, axis=0)[0][listed].sum()
        assert flops == pytest.approx(spent / full, rel=1e-12)


def test_widths_add_schedules_behind_the_complete_ones():
    settings = CascadeSearchConfig(stages=2, keep=[5])
    plain = list(enumerate_schedules([2, 3, 5], 30, settings))
    widths = [Compression.at(2, 2), Compression.at(3, 4)]
    made = list(enumerate_schedules([2, 3, 5], 30, settings, compressions=widths))
    assert made[: len(plain)] == plain
    assert list(map(str, made[len(plain) :])) == [
        "2/2 3", "2/2 5", "2/2:5 3", "2/2:5 5", "2/2 3:5 5", "3/4 5", "2:5 3/4 5", "3/4:5 5",
    ]  # fmt: skip


def test_what_the_first_stage_drops_costs_nothing():
    scores = score_table({"q": {"d10": (3, 3, 3), "d20": (2, 2, 2), "d30": (1, 1, 1)}}, layers=(1, 2, 3))
    scores["first_stage"] = [1.0, 2.0, 3.0]  # the longest passage first
    weights = {
        k: {"first_stage": 0.0} | {f"layer_{j}": float(j == k) for j in range(1, k + 1)} for k in (1, 2, 3)
    }
    candidates = read_candidates(scores, fusion=Fusion(weights, weights))
    shape = BackboneShape(
        weights=(1, 1, 2), attended=(0, 0, 0)
    )  # 2 n after one layer, 4 n after two, 8 n after three
    tried = [Schedule.parse(text) for text in ("0:1 3", "0:2 3", "0:2 1:1 2", "0:3 2")]
    measured = measure_schedules([candidates], {"q": {"d20": 1}}, shape, tried)
    np.testing.assert_allclose(measured.flops * 8 * 90, [8 * 40, 8 * 70, 4 * 30 + 2 * 40, 4 * 90])
    np.testing.assert_allclose(measured.quality[:, 0], [1 / math.log2(3), 1, 1, 1 / math.log2(3)])


def test_quality_is_averaged_over_seeds():
    good = score_table({"q": {"d1": (0, 0, 2), "d2": (0, 0, 1)}})
    bad = good.assign(layer_5=-good["layer_5"])
    seeds = [read_candidates(scores, ["q"]) for scores in (good, bad)]
    measured = measure_schedules(seeds, {"q": {"d1": 1}}, SHAPE, [Schedule.parse("5")])
    assert measured.quality.mean() == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert measured.flops[0] == 1


@given(lists, any_schedule())
@few_examples
def test_flops_are_summed_to_each_candidates_depth(lists, schedule):
    qrels = {query: {"d0": 1} for query in lists}
    candidates = read_candidates(score_table(lists), list(lists))
    spent = sum(
        count_flops(SHAPE, np.array(10 + int(doc[1:])))[layer - 1]
        for docs in lists.values()
        for doc, layer in rank_by_stages(docs, schedule)[1].items()
    )
    full = sum(count_flops(SHAPE, np.array(10 + int(doc[1:])))[-1] for docs in lists.values() for doc in docs)
    (share,) = measure_schedules([candidates], qrels, SHAPE, [schedule]).flops
    assert share == pytest.approx(spent / full)


# --- which are tried, and which is chosen --------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_every_allowed_schedule_is_enumerated(stages):
    exits, kept = [2, 3, 4, 5], [20, 5, 10, 30, 40]
    made = list(enumerate_schedules(exits, 30, CascadeSearchConfig(stages=stages, exits=8, keep=kept)))
    assert len(made) == len(set(made))
    expected = {
        (*((layer, n) for layer, n in zip(layers, survivors, strict=False)), layers[-1])
        for count in range(1, stages + 1)
        for layers in combinations(exits, count)
        for survivors in combinations([20, 10, 5], count - 1)  # 30 of 30 would drop no candidate
    }
    assert {(*schedule.keep, schedule.last) for schedule in made} == expected


def test_first_stage_may_prune_before_all_other_stages():
    settings = CascadeSearchConfig(stages=2, keep=[20, 5, 10])
    plain = list(enumerate_schedules([2, 3], 30, settings))
    made = list(enumerate_schedules([2, 3], 30, settings, from_first_stage=True))
    assert made[: len(plain)] == plain
    assert {str(schedule) for schedule in made[len(plain) :]} == {
        *(f"0:{n} {layer}" for n in (20, 10, 5) for layer in (2, 3)),
        *("0:20 2:10 3", "0:20 2:5 3", "0:10 2:5 3"),
    }


@pytest.mark.parametrize(
    ("exits", "at_most", "tried"),
    [
        (range(3, 13), 3, [3, 7, 12]),
        (range(3, 13), 2, [3, 12]),
        (range(1, 7), 6, [1, 2, 3, 4, 5, 6]),
        (range(1, 7), 8, [1, 2, 3, 4, 5, 6]),
        (range(1, 25), 8, [1, 4, 8, 11, 14, 17, 21, 24]),
        ([6], 8, [6]),
    ],
)
def test_tried_exits_are_evenly_spread_with_first_and_last(exits, at_most, tried):
    made = list(enumerate_schedules(list(exits), 100, CascadeSearchConfig(exits=at_most)))
    assert sorted({layer for schedule in made for layer in schedule.layers}) == tried
    assert [schedule.last for schedule in made if not schedule.keep] == tried


def test_default_survivors_end_below_the_length_of_the_lists():
    def kept(candidates: int) -> set[int]:
        return {n for s in enumerate_schedules([1, 2], candidates, CascadeSearchConfig()) for _, n in s.keep}

    assert kept(16) == {1, 2, 3, 4, 5, 7, 10, 15}
    assert kept(15) == {1, 2, 3, 4, 5, 7, 10}
    assert kept(10**6) == set(SURVIVORS)
    assert kept(1) == set()


def points(*pairs: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [(str(i), *pair) for i, pair in enumerate(pairs)], columns=["schedule", "flops", "quality"]
    )


points_of_schedules = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), min_size=1, max_size=12)


@given(points_of_schedules)
@few_examples
def test_pareto_front_holds_undominated_points(pairs):
    def dominated(i: int) -> bool:
        return any(
            (cost <= pairs[i][0] and quality >= pairs[i][1])
            and ((cost, quality) != pairs[i] or j < i)  # of equal points the first is kept
            for j, (cost, quality) in enumerate(pairs)
        )

    found = pareto_front(points(*pairs))
    assert set(found["schedule"]) == {str(i) for i in range(len(pairs)) if not dominated(i)}
    assert found["flops"].is_monotonic_increasing
    assert [int(name) for name in found["schedule"]] == list(found.index)


@given(points_of_schedules, st.sampled_from([0.0, 0.1, 0.5]))
@few_examples
def test_cheapest_schedule_within_epsilon_is_chosen(pairs, epsilon):
    deepest = len(pairs) - 1
    good_enough = [i for i, (_, quality) in enumerate(pairs) if quality >= (1 - epsilon) * pairs[deepest][1]]
    chosen = cheapest_within(points(*pairs), str(deepest), epsilon)
    assert chosen in good_enough
    assert pairs[chosen][0] == min(pairs[i][0] for i in good_enough)


def test_choice_by_hand():
    measured = points((0.2, 0.50), (0.4, 0.59), (0.5, 0.595), (0.7, 0.58), (1.0, 0.60))
    chosen = {epsilon: cheapest_within(measured, "4", epsilon) for epsilon in (0.0, 0.01, 0.02, 0.5)}
    assert chosen == {0.0: 4, 0.01: 2, 0.02: 1, 0.5: 0}


# --- from files to a choice ------------------------------------------------------------------------------

QUERIES = {split: [f"{split}{i}" for i in range(12)] for split in ("dev", "test")}
DOCS = [f"d{i}" for i in range(30)]
QRELS: dict[str, Qrels] = {
    split: {query: {DOCS[2 * i]: 1, DOCS[2 * i + 1]: 2} for i, query in enumerate(queries)}
    for split, queries in QUERIES.items()
}
ARM = {"dataset": "made-up", "start_layer": 1}
ALL_LAYERS = tuple(range(1, tiny.LAYERS + 1))


def random_scores(split: str, seed: int) -> pd.DataFrame:
    """Twenty candidates for each query but the first, the same for every seed; ranked the better the deeper."""
    drawn, noise = np.random.default_rng(len(split)), np.random.default_rng([seed, len(split)])
    return score_table(
        {
            query: {
                doc: tuple(
                    noise.normal(size=len(ALL_LAYERS))
                    + np.array(ALL_LAYERS) / 2 * QRELS[split][query].get(doc, 0)
                )
                for doc in drawn.choice(DOCS, 20, replace=False)
            }
            for query in QUERIES[split][1:]
        },
        ALL_LAYERS,
    )


@pytest.fixture
def arm(tmp_path):
    """A folder with the collection, the config.json of a model, and the scores of two seeds."""
    passages = [Passage(doc, "", f"text {doc}") for doc in DOCS]
    write_collection(tmp_path, passages, {q: q for queries in QUERIES.values() for q in queries}, QRELS)
    tiny.backbone("bert").config.save_pretrained(tmp_path / "model")
    for split in QUERIES:
        for seed in (1, 2):
            random_scores(split, seed).to_parquet(tmp_path / f"{split}{seed}.parquet")
    return tmp_path


def run_cascade(arm, settings=CascadeSearchConfig(epsilon=0.05, keep=[3, 8, 12])) -> dict:  # noqa: B008 - frozen
    dev, test = ([arm / f"{split}{seed}.parquet" for seed in (1, 2)] for split in ("dev", "test"))
    cascade(arm / "model", dev, test, arm, settings, ARM, arm / "cascade.json")
    return json.loads((arm / "cascade.json").read_text(encoding="utf-8"))


def dev_side(choice: dict) -> list[tuple]:
    return [
        (row["schedule"], row["dev flops"], row["dev"], row["chosen"], row["front"])
        for row in choice["schedules"]
    ]


def test_cascade_file_records_choice_front_and_inputs(arm):
    choice = run_cascade(arm)
    rows, inputs = choice.pop("schedules"), choice.pop("inputs")
    assert inputs["dev"] == [sha256(arm / f"dev{seed}.parquet") for seed in (1, 2)]
    assert inputs["qrels"]["test"] == sha256(arm / "qrels/test.tsv")
    chosen = [row["schedule"] for row in rows if row["chosen"]]
    assert choice == {
        **ARM,
        "measure": "nDCG@10",
        "epsilon": 0.05,
        "tried": 4 + 6 * 3 + 4 * 3,  # one exit, two with one number of survivors, three with two of them
        "deepest": "4",
        "chosen": chosen[0],
    }
    assert list(choice)[: len(ARM)] == list(ARM)
    assert len(chosen) == 1
    assert ":" in chosen[0], "a cascade must win for these tests to mean anything"
    on_front = [row for row in rows if row["front"]]
    assert [row["dev"] for row in on_front] == sorted(row["dev"] for row in on_front)
    assert [row["dev flops"] for row in on_front] == sorted(row["dev flops"] for row in on_front)
    (deepest,) = (row for row in rows if row["schedule"] == "4")
    assert (deepest["dev flops"], deepest["test flops"]) == (1, 1)
    (winner,) = (row for row in rows if row["chosen"])
    assert winner["dev"] >= 0.95 * deepest["dev"]
    assert not [
        row
        for row in on_front
        if row["dev flops"] < winner["dev flops"] and row["dev"] >= 0.95 * deepest["dev"]
    ]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_each_split_is_measured_on_its_own_scores(arm, split):
    rows = run_cascade(arm)["schedules"]
    for row in rows:
        values = [
            measures_per_query(
                QRELS[split],
                {q: dict(run) for q, run in replay_run(scores, Schedule.parse(row["schedule"])).items()},
                ["nDCG@10"],
            )["value"].mean()
            for scores in (pd.read_parquet(arm / f"{split}{seed}.parquet") for seed in (1, 2))
        ]
        assert row[split] == pytest.approx(np.mean(values))


def test_choice_depends_on_dev_alone(arm):
    before = run_cascade(arm)
    for seed in (1, 2):
        path = arm / f"test{seed}.parquet"
        scores = pd.read_parquet(path)
        layers = list(scores.filter(like="layer_"))
        scores[layers] = scores[layers].sample(frac=1, random_state=3).to_numpy()
        scores.to_parquet(path)
    after = run_cascade(arm)
    assert (after["chosen"], dev_side(after)) == (before["chosen"], dev_side(before))
    assert [row["test"] for row in after["schedules"]] != [row["test"] for row in before["schedules"]]


def test_epsilon_zero_keeps_the_deepest_exits_quality(arm):
    choice = run_cascade(arm, CascadeSearchConfig(epsilon=0, keep=[3]))
    by_name = {row["schedule"]: row for row in choice["schedules"]}
    assert by_name[choice["chosen"]]["dev"] >= by_name["4"]["dev"]


def test_arm_of_one_exit_chooses_that_exit(arm):
    for path in arm.glob("*.parquet"):
        pd.read_parquet(path).drop(columns=["layer_1", "layer_2", "layer_3"]).to_parquet(path)
    choice = run_cascade(arm)
    assert (choice["chosen"], choice["deepest"], choice["tried"]) == ("4", "4", 1)
    ((name, share, _, chosen, on_front),) = dev_side(choice)
    assert (name, share, chosen, on_front) == ("4", 1, True, True)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_split_without_relevant_passage_is_refused(arm, split):
    lines = (f"{query}\td0\t0\n" for query in QUERIES[split])
    (arm / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    with pytest.raises(BadInput, match=rf"qrels/{split}\.tsv: no query has a relevant passage"):
        run_cascade(arm)
    assert not (arm / "cascade.json").exists()


# --- with fused scores -------------------------------------------------------------------------------------


def run_fused(arm, settings=CascadeSearchConfig(epsilon=0.05, keep=[3, 8, 12]), **rule) -> dict:  # noqa: B008 - frozen
    """Choose a cascade whose stages may prune by fused scores; the first stage knows relevance, too."""
    for split in QUERIES:
        for seed in (1, 2):
            path = arm / f"{split}{seed}.parquet"
            scores = pd.read_parquet(path)
            pairs = zip(scores["query_id"], scores["doc_id"], strict=True)
            noise = np.random.default_rng(7).normal(size=len(scores))
            scores["first_stage"] = [3.0 * QRELS[split][q].get(d, 0) for q, d in pairs] + noise
            scores.to_parquet(path)
    dev, test = ([arm / f"{split}{seed}.parquet" for seed in (1, 2)] for split in ("dev", "test"))
    if not (arm / "fusion.json").exists():
        fuse(dev, arm, FusionConfig(folds=3), "nDCG@10", ARM, arm / "fusion.json")
    how = ChoiceRule(fusion=arm / "fusion.json", **rule)
    cascade(arm / "model", dev, test, arm, settings, ARM, arm / "cascade.json", how)
    return json.loads((arm / "cascade.json").read_text(encoding="utf-8"))


def test_fused_choice_says_how_certain_it_is(arm):
    choice = run_fused(arm, confidence=0.8)
    assert choice["fused"] is True
    assert choice["chosen"].startswith("0:"), "the first stage must prune for these tests to mean anything"
    assert (choice["confidence"], choice["dev queries"], choice["queries needed"]) == (0.8, 12, None)
    assert choice["expected shortfall"] <= choice["shortfall bound"] <= 0.05
    assert choice["inputs"]["fusion"] == sha256(arm / "fusion.json")
    assert [row["schedule"] for row in choice["schedules"] if row["chosen"]] == [choice["chosen"]]
    names = [(row["schedule"], row["fused"]) for row in choice["schedules"]]
    assert len(set(names)) == len(names)
    assert {("4", True), ("4", False)} <= set(names)
    (alone,) = (row for row in choice["schedules"] if (row["schedule"], row["fused"]) == ("4", False))
    assert (alone["dev flops"], alone["test flops"]) == (1, 1)


def test_second_choice_is_told_like_the_first(arm):
    choice = run_fused(arm)
    second = choice["for_fused"]
    by_key = {(row["schedule"], row["fused"]): row for row in choice["schedules"]}
    chosen = by_key[second["chosen"], second["fused"]]
    assert chosen["dev"] >= 0.95 * by_key["4", True]["dev"]
    assert second["expected shortfall"] <= second["shortfall bound"] <= 0.05
    assert [row for row in choice["schedules"] if row["chosen for fused"]] == [chosen]


def of_layers(**quality: np.ndarray) -> MeasuredSchedules:
    """Schedules of one to four blocks, by number of blocks."""
    schedules = [Schedule.parse(name.removeprefix("layer_")) for name in quality]
    flops = np.array([schedule.last / 4 for schedule in schedules])
    return MeasuredSchedules(schedules, flops, np.stack([*quality.values()]))


def test_each_choice_keeps_the_quality_of_its_deepest_exit():
    quality = np.random.default_rng(0).uniform(0.3, 0.6, 50)
    plain = of_layers(layer_1=quality - 0.2, layer_2=quality - 0.1, layer_3=quality, layer_4=quality)
    fused = of_layers(layer_1=quality - 0.1, layer_2=quality, layer_3=quality + 0.1, layer_4=quality + 0.1)
    rows = [choose_with_confidence(plain, fused, "4", 0.01, 0.9, of_fused)[0] for of_fused in (False, True)]
    assert rows == [5, 6]


@pytest.mark.parametrize(("for_fused", "row"), [(False, 1), (True, 3)])
def test_without_a_certain_schedule_the_deepest_exit_of_the_same_kind_is_chosen(for_fused, row):
    odd, even = np.tile([0.9, 0.1], 10), np.tile([0.1, 0.9], 10)  # equal means, very unequal queries
    plain, fused = (of_layers(layer_2=np.zeros(20), layer_4=values) for values in (even, odd))
    found, choice = choose_with_confidence(plain, fused, "4", 0.01, 0.9, for_fused)
    assert (found, choice.index) == (row, None)


def test_both_choices_are_the_same_if_fused_scores_gain_nothing(arm):
    """Weights of 1 for the exit's own score: the deepest fused exit is the deepest exit."""
    plain = {k: {f"layer_{j}": float(j == k) for j in range(1, k + 1)} for k in ALL_LAYERS}
    record = fusion_record(Fusion(plain, plain))
    (arm / "fusion.json").write_text(json.dumps(record | {"out_of_fold": [record, record]}))
    choice = run_fused(arm)
    told = ("chosen", "fused", "margin", "expected shortfall", "shortfall bound", "queries needed")
    assert ":" in choice["chosen"]
    assert {name: choice[name] for name in told} == choice["for_fused"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_fused_schedules_are_measured_out_of_fold_on_dev_and_with_all_of_dev_on_test(arm, split):
    rows = run_fused(arm)["schedules"]
    read = read_cross_fitted if split == "dev" else read_fusion
    assert any(row["fused"] for row in rows)
    for row in rows:
        weights = read(arm / "fusion.json") if row["fused"] else None
        runs = [
            replay_run(
                pd.read_parquet(arm / f"{split}{seed}.parquet"), Schedule.parse(row["schedule"]), weights
            )
            for seed in (1, 2)
        ]
        values = [
            measures_per_query(QRELS[split], {q: dict(docs) for q, docs in run.items()}, ["nDCG@10"])["value"]
            for run in runs
        ]
        assert row[split] == pytest.approx(np.mean(values))


def test_without_a_certain_schedule_the_deepest_exit_is_chosen_and_what_is_missing_is_said(arm, capsys):
    for seed in (1, 2):  # every shallower exit, and so every fused score, ranks at random
        path = arm / f"dev{seed}.parquet"
        scores = pd.read_parquet(path)
        noise = np.random.default_rng(seed).normal(size=(len(scores), 3))
        scores.assign(layer_1=noise[:, 0], layer_2=noise[:, 1], layer_3=noise[:, 2]).to_parquet(path)
    plain = {
        k: {"first_stage": -9.0} | {f"layer_{j}": float(j == k) for j in range(1, k + 1)} for k in ALL_LAYERS
    }
    record = fusion_record(Fusion(plain, {k: {f"layer_{k}": 1.0} for k in ALL_LAYERS}))
    (arm / "fusion.json").write_text(json.dumps(record | {"out_of_fold": [record, record]}))
    choice = run_fused(arm, CascadeSearchConfig(epsilon=0, keep=[1]), confidence=0.99)
    assert (choice["chosen"], choice["deepest"], choice["fused"]) == ("4", "4", False)
    assert choice["expected shortfall"] is choice["shortfall bound"] is None
    assert [(row["schedule"], row["fused"]) for row in choice["schedules"] if row["chosen"]] == [("4", False)]
    shown = capsys.readouterr().err
    assert "99%" in shown
    assert "chose the deepest exit alone" in shown
    assert "12 dev queries" in shown


def test_measure_of_the_choice_is_the_one_that_is_named(arm):
    choice = run_fused(arm, measure="RR@10")
    assert choice["measure"] == "RR@10"
    (alone,) = (row for row in choice["schedules"] if (row["schedule"], row["fused"]) == ("4", False))
    run = [rankings(pd.read_parquet(arm / f"test{seed}.parquet"), "layer_4") for seed in (1, 2)]
    expected = np.mean([measures_per_query(QRELS["test"], of_seed, ["RR@10"])["value"] for of_seed in run])
    assert alone["test"] == pytest.approx(expected)


def test_weights_of_other_exits_are_refused(arm):
    run_fused(arm)
    replaced = (arm / "fusion.json").read_text().replace("layer_4", "layer_5")
    (arm / "fusion.json").write_text(replaced)
    with pytest.raises(BadInput, match=r"fusion\.json: has weights of layer_1, layer_2, layer_3, layer_5"):
        run_fused(arm)


def test_without_weights_the_file_has_what_it_always_had(arm):
    choice = run_cascade(arm)
    assert list(choice)[len(ARM) :] == [
        "measure",
        "epsilon",
        "tried",
        "deepest",
        "chosen",
        "schedules",
        "inputs",
    ]
    columns = ["schedule", "dev flops", "dev", "test flops", "test", "chosen", "front"]
    assert all(list(row) == columns for row in choice["schedules"])
