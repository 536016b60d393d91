"""Counts of FLOPs and parameters by hand, and times of the rankings that were run."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import lwr.evaluation.cost
from lwr.common.errors import BadInput
from lwr.common.json_lines import write_json
from lwr.config.evaluation import CostConfig, ScoringConfig, Windows
from lwr.evaluation.arm_files import read_costs
from lwr.evaluation.cost import ArmFiles, cost, count_parameters, device_name
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.evaluation.schedules.replay import read_candidates
from lwr.evaluation.statistics.timing import REPEATS
from lwr.formats.beir import Passage, write_collection
from lwr.formats.fusion import Fusion, fusion_record
from lwr.formats.trec import write_run
from lwr.model.cascade_schedule import Compression, Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.score import score

QUERIES = {f"q{i}": f"load the object number {i}" for i in range(4)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(9)}
SCHEDULE = "2:2 4"
NAMES = ["layer_2", "layer_3", "layer_4", "cascade"]
ARM = {"dataset": "d", "trained_on": "d", "base_model": "bert", "start_layer": 2, "variant": "v"}
COUNTED = ("exit", "schedule", "gflops_per_pair", "parameters")
TIMED = ("ratio", "ratio_low", "ratio_high", "peak_memory_mib")


@pytest.fixture(scope="module", params=["bert", "llama"])
def scored(tmp_path_factory, request):
    """A reranker, a collection, and its scores: lists of 4 and 5 passages."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.build_reranker(request.param).save_pretrained(folder / "model")
    qrels = {"test": {query: {f"d{i}": 1} for i, query in enumerate(QUERIES)}}
    write_collection(folder, [Passage(doc, "", text) for doc, text in PASSAGES.items()], QUERIES, qrels)
    docs = list(PASSAGES)
    run = {q: [(d, 10.0 - r) for r, d in enumerate(docs[i : i + 4 + i % 2])] for i, q in enumerate(QUERIES)}
    write_run(folder / "test.trec", run, "made-up")
    score(folder / "model", folder, "test", folder / "test.trec", ScoringConfig(), folder / "test.parquet")
    return folder


@pytest.fixture
def arm_files(scored, tmp_path):
    """Return a function that returns the files of an arm with a given cascade and variant; all have one model."""

    def arm_files(chosen: str = SCHEDULE, variant: str = "v") -> ArmFiles:
        schedules = [{"schedule": name, "test flops": share} for name, share in ((SCHEDULE, 0.4), ("4", 1.0))]
        choice = {
            "deepest": "4",
            "chosen": chosen,
            "schedules": [*schedules, {"schedule": "3", "test flops": 0.7}],
        }
        path = tmp_path / f"cascade-{variant}.json"
        write_json(path, ARM | {"variant": variant} | choice)
        return ArmFiles(scored / "model", scored / "test.parquet", path)

    return arm_files


@pytest.fixture
def costs(scored, tmp_path, arm_files):
    """Return a function that runs `cost` on one arm or those given and returns what it wrote."""

    def costs(queries: int | None = None, chosen: str = SCHEDULE, arms: list[ArmFiles] | None = None) -> dict:
        out = tmp_path / "cost.json"
        cost(arms or [arm_files(chosen)], scored, ScoringConfig(), CostConfig(queries=queries), out)
        return json.loads(out.read_text(encoding="utf-8"))

    return costs


def exits_of(written: dict) -> list[dict]:
    (arm,) = written["arms"]
    return arm["exits"]


# --- counts --------------------------------------------------------------------------------------------


def test_flops_are_mean_over_candidates_and_share_for_cascade(scored, costs):
    by_name = {exit["exit"]: exit for exit in exits_of(costs())}
    assert list(by_name) == ["layer_2", "layer_3", "layer_4", "cascade"]
    assert [exit["schedule"] for exit in by_name.values()] == ["2", "3", "4", SCHEDULE]
    shape = derive_shape(LayerwiseReranker.from_pretrained(scored / "model").backbone)
    tokens = pd.read_parquet(scored / "test.parquet")["tokens"]
    assert tokens.nunique() > 3, "a mean of equal numbers would show nothing"
    for k in (2, 3, 4):
        each = [count_flops(shape, np.array(n))[k - 1] / 1e9 for n in tokens]
        assert by_name[f"layer_{k}"]["gflops_per_pair"] == pytest.approx(sum(each) / len(each))
    assert by_name["cascade"]["gflops_per_pair"] == pytest.approx(0.4 * by_name["layer_4"]["gflops_per_pair"])


def test_compressed_exits_are_counted_and_timed(scored, tmp_path, arm_files):
    width = (2, 2)
    settings, wide = ScoringConfig(widths=[width]), tmp_path / "wide.parquet"
    score(scored / "model", scored, "test", scored / "test.trec", settings, wide)
    out = tmp_path / "cost.json"
    cost([replace(arm_files(), scores=wide)], scored, settings, CostConfig(queries=2), out)
    by_name = {exit["exit"]: exit for exit in exits_of(json.loads(out.read_text(encoding="utf-8")))}
    names = ["layer_3_compressed_2_by_2", "layer_4_compressed_2_by_2"]
    assert list(by_name) == ["layer_2", "layer_3", "layer_4", *names, "cascade"]
    shape, table = (
        derive_shape(LayerwiseReranker.from_pretrained(scored / "model").backbone),
        pd.read_parquet(wide),
    )
    by_layer = count_flops(shape, table["tokens"], table["passage_tokens"], Compression((width,))).mean(
        axis=1
    )
    for layer, name in zip((3, 4), names, strict=True):
        assert by_name[name]["gflops_per_pair"] == pytest.approx(by_layer[layer - 1] / 1e9)
        assert by_name[name]["gflops_per_pair"] < by_name[f"layer_{layer}"]["gflops_per_pair"]
        assert by_name[name]["parameters"] == by_name[f"layer_{layer}"]["parameters"]
        assert by_name[name]["schedule"] == f"2/2 {layer}"
        assert by_name[name]["ratio"] > 0


def test_flops_count_the_rows_of_windows(scored, tmp_path, arm_files):
    windows, width = Windows(overlap=4, most=3), (2, 2)
    long = tmp_path / "long"
    words = (0, 20, 40, 60, 90, 130, 180, 250, 400)
    texts = {f"d{i}": "def decode(s): return s " + "and more " * n for i, n in enumerate(words)}
    qrels = {"test": {query: {f"d{i}": 1} for i, query in enumerate(QUERIES)}}
    write_collection(long, [Passage(doc, "", text) for doc, text in texts.items()], QUERIES, qrels)
    settings = ScoringConfig(windows=windows, widths=[width])
    score(scored / "model", long, "test", scored / "test.trec", settings, long / "test.parquet")
    out = tmp_path / "cost.json"
    cost([replace(arm_files(), scores=long / "test.parquet")], long, settings, CostConfig(queries=1), out)
    written = json.loads(out.read_text(encoding="utf-8"))
    by_name = {exit["exit"]: exit for exit in exits_of(written)}

    model = LayerwiseReranker.from_pretrained(scored / "model")
    shape, table = derive_shape(model.backbone), pd.read_parquet(long / "test.parquet")
    pairs = [(QUERIES[query], texts[doc]) for query, doc in zip(table.query_id, table.doc_id, strict=True)]
    rows = model.prompt.rows(pairs, windows=windows)
    read = [window for row in rows for window in row.windows]
    assert {len(row.windows) for row in rows} == {1, 2, 3}
    tokens, passages = (np.array([len(w) for w in read]), np.array([w.passage_tokens for w in read]))
    full = count_flops(shape, tokens).sum(axis=1) / len(rows) / 1e9
    halved = count_flops(shape, tokens, passages, Compression((width,))).sum(axis=1) / len(rows) / 1e9
    for layer in (2, 3, 4):
        assert by_name[f"layer_{layer}"]["gflops_per_pair"] == pytest.approx(full[layer - 1])
    for layer in (3, 4):
        found = by_name[f"layer_{layer}_compressed_2_by_2"]["gflops_per_pair"]
        assert found == pytest.approx(halved[layer - 1])
    assert written["arms"][0]["cut"] == pytest.approx(np.mean([row.is_cut for row in rows]))
    assert 0 < written["arms"][0]["cut"] < 1

    candidates = read_candidates(table, list(QUERIES))
    flops = count_flops(
        shape, candidates.tokens, None, None, candidates.windows, candidates.last_tokens
    )  # [layers, Q, C], with padding: the lists are of 4 and 5 passages
    assert flops.sum(axis=(1, 2)) / len(rows) / 1e9 == pytest.approx(full)


def test_flops_and_parameters_do_not_depend_on_precision(scored, costs, arm_files, tmp_path):
    (expected,) = costs()["arms"]
    out, settings = tmp_path / "int8.json", ScoringConfig(precision="int8")
    cost([arm_files(SCHEDULE)], scored, settings, CostConfig(queries=1), out)
    (arm,) = json.loads(out.read_text(encoding="utf-8"))["arms"]
    for name in ("gflops_per_pair", "parameters"):
        assert [exit[name] for exit in arm["exits"]] == [exit[name] for exit in expected["exits"]]
    assert arm["flops_by_torch_over_formula"] == expected["flops_by_torch_over_formula"]


def test_no_cascade_where_deepest_exit_is_chosen(costs):
    assert [exit["exit"] for exit in exits_of(costs(chosen="4"))] == ["layer_2", "layer_3", "layer_4"]


def test_cascade_of_one_exit_costs_what_that_exit_costs(costs):
    *_, third, _, cascade = exits_of(costs(chosen="3"))
    assert (cascade["exit"], cascade["schedule"], third["exit"]) == ("cascade", "3", "layer_3")
    assert cascade["gflops_per_pair"] == third["gflops_per_pair"]
    assert cascade["parameters"] == third["parameters"]


@pytest.mark.parametrize("architecture", ["bert", "llama", "modernbert"])
def test_each_layer_adds_the_parameters_of_a_block(architecture):
    reranker = tiny.build_reranker(architecture)
    counts = [count_parameters(reranker, k) for k in reranker.exits]
    blocks = [sum(p.numel() for p in block.parameters()) for block in reranker.stack.blocks]
    assert np.diff(counts).tolist() == blocks[2:]
    embedding = tiny.VOCABULARY * tiny.HIDDEN
    assert counts[0] - sum(blocks[:2]) >= embedding + tiny.HIDDEN  # and one head
    assert (
        counts[0] - sum(blocks[:2])
        < embedding + reranker.backbone.config.max_position_embeddings * tiny.HIDDEN * 2
    )


def test_parameters_by_hand():
    hidden = tiny.HIDDEN
    llama, bert = tiny.build_reranker("llama"), tiny.build_reranker("bert")
    # attention with half the keys, gated MLP, two norms
    block = 3 * hidden * hidden + 3 * hidden * 64 + 2 * hidden
    # embeddings, blocks, last norm, head
    assert count_parameters(llama, 3) == tiny.VOCABULARY * hidden + 3 * block + hidden + hidden
    pooler = hidden * hidden + hidden
    every = sum(p.numel() for p in bert.backbone.parameters())
    assert count_parameters(bert, 4) == every - pooler + hidden


def test_flops_counted_by_torch_agree_with_formula(costs):
    assert costs()["arms"][0]["flops_by_torch_over_formula"] == pytest.approx(1, rel=0.02)


def test_cost_file_records_arm_device_and_provenance(costs):
    about = costs()
    assert {name: about["arms"][0][name] for name in ARM} == ARM
    assert (about["candidates"], about["precision"], about["queries"]) == (4, "float32", 0)
    assert about["device"] == device_name()
    measured = {"wall_seconds", "peak_memory_mib", "energy_joules"}
    assert {"lwr", "git_commit", "packages", "machine"} | measured <= about.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="times are then a GPU's")
def test_device_name_of_processor_has_its_threads():
    before = torch.get_num_threads()
    try:
        for threads, words in ((1, "1 thread of "), (2, "2 threads of ")):
            torch.set_num_threads(threads)
            assert device_name().startswith(words)
    finally:
        torch.set_num_threads(before)


# --- several arms ---


def test_each_arm_has_its_exits_and_checksums(costs, arm_files):
    written = costs(arms=[arm_files(variant="v"), arm_files("4", variant="w")])
    first, second = written["arms"]
    assert (first["variant"], second["variant"]) == ("v", "w")
    assert [exit["exit"] for exit in first["exits"]] == NAMES
    assert [exit["exit"] for exit in second["exits"]] == NAMES[:3]
    assert first["inputs"]["scores"] == second["inputs"]["scores"]
    assert first["inputs"]["cascade"] != second["inputs"]["cascade"]


def test_both_chosen_cascades_are_counted(scored, tmp_path, arm_files):
    files = arm_files()
    choice = json.loads(files.cascade.read_text(encoding="utf-8"))
    rows = [
        {"schedule": SCHEDULE, "fused": True, "test flops": 0.3},
        {"schedule": "3:2 4", "fused": True, "test flops": 0.8},
    ]
    choice["schedules"] += rows
    write_json(files.cascade, choice | {"for_fused": {"chosen": "3:2 4", "fused": True}})
    out = tmp_path / "cost.json"
    cost([files], scored, ScoringConfig(), CostConfig(queries=None), out)
    by_name = {exit["exit"]: exit for exit in exits_of(json.loads(out.read_text(encoding="utf-8")))}
    assert list(by_name) == [*NAMES, "cascade_for_fused"]
    full = by_name["layer_4"]["gflops_per_pair"]
    assert by_name["cascade"]["gflops_per_pair"] == pytest.approx(0.4 * full), "of the row that is not fused"
    assert by_name["cascade_for_fused"]["gflops_per_pair"] == pytest.approx(0.8 * full)


def test_cascade_without_its_row_is_refused(costs, arm_files):
    with pytest.raises(BadInput, match=r"cascade-v\.json: 'schedules' has no row of the chosen 2:3 4; run"):
        costs(chosen="2:3 4")


def test_arms_with_other_candidates_are_refused(costs, arm_files, tmp_path):
    first = arm_files()
    fewer = pd.read_parquet(first.scores)[1:]
    fewer.to_parquet(tmp_path / "fewer.parquet", index=False)
    with pytest.raises(BadInput, match=r"fewer\.parquet: other candidates than .*test\.parquet"):
        costs(arms=[first, ArmFiles(first.model, tmp_path / "fewer.parquet", first.cascade)])


# --- times ---


class Machine:
    """A machine on which a layer takes a millisecond per passage, times a load that changes with time."""

    def __init__(self, monkeypatch, load=lambda now: 1.0):
        self.now, self.load, self.calls = 0.0, load, []
        monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", self.rank_texts)
        real = lwr.evaluation.cost.time_in_turns
        timed = functools.partial(real, clock=lambda: self.now)
        monkeypatch.setattr(lwr.evaluation.cost, "time_in_turns", timed)

    def rank_texts(self, reranker, query, passages, schedule, *_):
        self.calls.append((query, len(passages), str(schedule)))
        work = 2.5 if schedule.keep else schedule.last
        self.now += 0.001 * work * len(passages) * self.load(self.now)


def test_nothing_is_ranked_without_timed_queries(costs, monkeypatch):
    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", None)
    written = costs(queries=None)
    assert (written["reference"], written["repeats"]) == (None, 0)
    assert [exit[name] for exit in exits_of(written) for name in TIMED] == [None] * 4 * 4
    assert all(exit[name] for exit in exits_of(written) for name in COUNTED)


def test_every_exit_and_the_cascade_are_timed(costs):
    written = costs(queries=2)
    assert (written["queries"], written["repeats"]) == (2, REPEATS)
    assert {name: written["reference"][name] for name in ARM} == ARM
    assert written["reference"]["exit"] == "layer_4"
    assert 0 < written["reference"]["p50_ms"] <= written["reference"]["p95_ms"]
    ratios = [exit["ratio"] for exit in exits_of(written)]
    assert ratios[:3] == sorted(ratios[:3])
    for exit in exits_of(written):
        assert 0 < exit["ratio_low"] <= exit["ratio"] <= exit["ratio_high"]


def test_times_by_hand(costs, monkeypatch, tmp_path):
    Machine(monkeypatch)
    written = costs(queries=4)
    # two lists of 4 passages and two of 5, up to layer 4: 16, 16, 20 and 20 ms
    reference = written["reference"]
    assert (reference["p50_ms"], reference["p95_ms"]) == pytest.approx((18, 20))
    assert reference["pairs_per_second"] == pytest.approx(18 / 0.072)
    table = read_costs([tmp_path / "cost.json"]).set_index("exit")
    assert list(table["ratio"]) == pytest.approx([0.5, 0.75, 1, 0.625])
    assert list(table["time"]) == pytest.approx([0.5, 0.75, 1, 0.625])
    assert list(table["p50 ms"]) == pytest.approx([9, 13.5, 18, 11.25])
    assert list(table["p95 ms"]) == pytest.approx([10, 15, 20, 12.5])
    assert table["pairs per second"]["layer_2"] == pytest.approx(500)
    assert set(table["reference"]) == {"layer 4 of bert, start 2, v"}


def test_arms_of_equal_shape_agree_while_the_load_changes(costs, arm_files, monkeypatch):
    """Other processes slow the machine by a factor of four, again and again."""
    machine = Machine(monkeypatch, lambda now: 4.0 if int(now / 0.07) % 2 else 1.0)
    first, second = costs(queries=4, arms=[arm_files(variant="v"), arm_files(variant="w")])["arms"]
    assert machine.now > 0.2, "the load must have changed"
    for one, other in zip(first["exits"], second["exits"], strict=True):
        assert one["exit"] == other["exit"]
        assert one["ratio_low"] <= other["ratio_high"]
        assert other["ratio_low"] <= one["ratio_high"]


def test_layers_do_not_get_faster_with_depth_by_noise(costs, monkeypatch):
    machine = Machine(monkeypatch)
    machine.load = lambda now: (
        2.0 if machine.calls[-1][2] == "2" else 1.0
    )  # layer 2 seems slower than layer 3
    two, three, four, cascade = (exit["ratio"] for exit in exits_of(costs(queries=4)))
    assert (two, three) == pytest.approx((0.875, 0.875))
    assert (four, cascade) == pytest.approx((1, 0.625))


def test_all_arms_rank_a_list_before_the_next(costs, arm_files, monkeypatch):
    machine = Machine(monkeypatch)
    costs(queries=3, arms=[arm_files(variant="v"), arm_files("4", variant="w")])
    schedules = ["2", "3", "4", SCHEDULE, "2", "3", "4"]
    memory, *turns = (machine.calls[i : i + 7] for i in range(0, len(machine.calls), 7))
    assert [schedule for *_, schedule in memory] == schedules
    assert len(turns) == 3 * REPEATS
    for turn in turns:
        assert len({query for query, *_ in turn}) == 1
        assert sorted(schedule for *_, schedule in turn) == sorted(schedules)
    assert len({query for query, *_ in machine.calls}) == 3


def test_what_is_timed_ranks_as_the_scores_do(scored, costs, monkeypatch):
    calls, rank_texts = [], lwr.evaluation.cost.rank_texts

    def recording(reranker, query, passages, schedule, *settings):
        order = rank_texts(reranker, query, passages, schedule, *settings)
        calls.append((query, list(passages), str(schedule), order))
        return order

    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", recording)
    costs(queries=3)
    table = pd.read_parquet(scored / "test.parquet")
    names = {text: name for name, text in QUERIES.items()}
    for query, passages, schedule, order in calls:
        own = table[table["query_id"] == names[query]]
        assert passages == [PASSAGES[doc] for doc in own["doc_id"]]
        if not Schedule.parse(schedule).keep:
            assert order.tolist() == np.argsort(-own[f"layer_{schedule}"].to_numpy(), kind="stable").tolist()


def test_a_fused_cascade_is_timed_with_the_scores_of_the_first_stage(costs, arm_files, monkeypatch, tmp_path):
    fused = "0:3 2:2 4"
    arm = arm_files(fused)
    choice = json.loads(arm.cascade.read_text(encoding="utf-8"))
    choice["schedules"].append({"schedule": fused, "test flops": 0.3, "fused": True})
    write_json(arm.cascade, {**choice, "fused": True})
    weights = {2: {"layer_2": 1.0}, 3: {"layer_3": 1.0}, 4: {"layer_4": 1.0}}
    write_json(tmp_path / "fusion.json", fusion_record(Fusion(weights, weights)))
    calls, rank_texts = [], lwr.evaluation.cost.rank_texts

    def recording(reranker, query, passages, schedule, scoring, first_stage, is_fused):
        order = rank_texts(reranker, query, passages, schedule, scoring, first_stage, is_fused)
        calls.append((str(schedule), first_stage, is_fused, order))
        return order

    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", recording)
    costs(queries=2, arms=[replace(arm, fusion=tmp_path / "fusion.json")])
    for schedule, first_stage, is_fused, order in calls:
        assert is_fused == (schedule == fused)
        assert (first_stage is not None) == is_fused
        if is_fused:  # the first stage lets three candidates through; the others keep its order
            assert order.tolist()[3:] == list(range(3, len(first_stage)))
    assert {schedule for schedule, *_ in calls} == {"2", "3", "4", fused}


def test_a_fused_cascade_without_weights_is_refused(costs, arm_files):
    arm = arm_files()
    choice = json.loads(arm.cascade.read_text(encoding="utf-8"))
    write_json(arm.cascade, {**choice, "fused": True})
    with pytest.raises(BadInput, match=r"cascade.*fused.*--fusion"):
        costs(queries=2, arms=[arm])


def test_all_queries_are_timed_where_fewer_exist_than_wanted(costs, monkeypatch):
    machine = Machine(monkeypatch)
    assert costs(queries=50)["queries"] == len(QUERIES)
    assert len(machine.calls) == 4 * (1 + REPEATS * len(QUERIES))


def test_memory_is_that_of_the_own_model(costs, arm_files, scored):
    if not lwr.evaluation.cost.reset_peak_memory():
        pytest.skip("this system cannot measure memory")
    reranker = LayerwiseReranker.from_pretrained(scored / "model")
    weights = sum(p.numel() * p.element_size() for p in reranker.parameters()) / 2**20
    arms = [arm_files(variant=str(i)) for i in range(3)]
    for arm in costs(queries=1, arms=arms)["arms"]:
        assert all(exit["peak_memory_mib"] >= weights for exit in arm["exits"])


def test_memory_does_not_depend_on_what_ran_before():
    if not lwr.evaluation.cost.reset_peak_memory():
        pytest.skip("this system cannot measure memory")
    reranker = tiny.build_reranker("bert")

    def use(mebibytes: int) -> float:
        used = lwr.evaluation.cost.peak_memory_of(
            reranker, lambda: torch.ones(mebibytes, 2**18, device=device).sum()
        )
        assert used is not None
        return used

    device = reranker.heads[0].device
    measured = [use(mebibytes) for mebibytes in (60, 20, 60, 20)]
    assert measured == pytest.approx([60, 20, 60, 20], abs=6)
