"""Counts of FLOPs and parameters by hand, and times of the rankings that were run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import lwr.evaluation.cost
from lwr.common.json_lines import write_json
from lwr.config.evaluation import CostConfig, ScoringConfig
from lwr.evaluation.cost import cost, count_parameters, device_name
from lwr.evaluation.flops import count_flops, derive_shape
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import write_run
from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.score import score

QUERIES = {f"q{i}": f"load the object number {i}" for i in range(4)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(9)}
SCHEDULE = "2:2 4"
ARM = {"dataset": "d", "trained_on": "d", "base_model": "bert", "start_layer": 2, "variant": "v"}
COUNTED = ("exit", "schedule", "gflops_per_pair", "parameters")
TIMED = ("p50_ms", "p95_ms", "pairs_per_second", "peak_memory_mib")


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
def costs(scored, tmp_path):
    """Return a function that runs `cost` and returns what it wrote."""

    def costs(queries: int | None = None, chosen: str = SCHEDULE) -> dict:
        schedules = [{"schedule": name, "test flops": share} for name, share in ((SCHEDULE, 0.4), ("4", 1.0))]
        choice = {
            "deepest": "4",
            "chosen": chosen,
            "schedules": [*schedules, {"schedule": "3", "test flops": 0.7}],
        }
        write_json(tmp_path / "cascade.json", choice)
        out = tmp_path / "cost.json"
        files = (scored / "model", scored, scored / "test.parquet", tmp_path / "cascade.json")
        cost(*files, ScoringConfig(), CostConfig(queries=queries), ARM, out)
        return json.loads(out.read_text(encoding="utf-8"))

    return costs


# --- counts --------------------------------------------------------------------------------------------


def test_flops_are_mean_over_candidates_and_share_for_cascade(scored, costs):
    by_name = {exit["exit"]: exit for exit in costs()["exits"]}
    assert list(by_name) == ["layer_2", "layer_3", "layer_4", "cascade"]
    assert [exit["schedule"] for exit in by_name.values()] == ["2", "3", "4", SCHEDULE]
    shape = derive_shape(LayerwiseReranker.from_pretrained(scored / "model").backbone)
    tokens = pd.read_parquet(scored / "test.parquet")["tokens"]
    assert tokens.nunique() > 3, "a mean of equal numbers would show nothing"
    for k in (2, 3, 4):
        each = [count_flops(shape, np.array(n))[k - 1] / 1e9 for n in tokens]
        assert by_name[f"layer_{k}"]["gflops_per_pair"] == pytest.approx(sum(each) / len(each))
    assert by_name["cascade"]["gflops_per_pair"] == pytest.approx(0.4 * by_name["layer_4"]["gflops_per_pair"])


def test_no_cascade_where_deepest_exit_is_chosen(costs):
    assert [exit["exit"] for exit in costs(chosen="4")["exits"]] == ["layer_2", "layer_3", "layer_4"]


def test_cascade_of_one_exit_costs_what_that_exit_costs(costs):
    *_, third, _, cascade = costs(chosen="3")["exits"]
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
    assert costs()["flops_by_torch_over_formula"] == pytest.approx(1, rel=0.02)


def test_cost_file_records_arm_device_and_provenance(costs):
    about = costs()
    assert {name: about[name] for name in ARM} == ARM
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


# --- times ---------------------------------------------------------------------------------------------


def test_nothing_is_ranked_without_timed_queries(costs, monkeypatch):
    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", None)
    exits = costs(queries=None)["exits"]
    assert [exit[name] for exit in exits for name in TIMED] == [None] * 4 * 4
    assert all(exit[name] for exit in exits for name in COUNTED)


def test_every_exit_and_the_cascade_are_timed(costs):
    about = costs(queries=2)
    assert about["queries"] == 2
    assert len(about["exits"]) == 4
    for exit in about["exits"]:
        assert 0 < exit["p50_ms"] <= exit["p95_ms"]
        # two lists: the mean of their times is the median
        assert exit["pairs_per_second"] * exit["p50_ms"] / 1000 == pytest.approx(4.5, abs=0.5 + 1e-6)
        if lwr.evaluation.cost.reset_peak_memory():
            assert exit["peak_memory_mib"] > (0 if torch.cuda.is_available() else 100)


def test_exits_rank_each_list_in_turns_with_rotating_start(scored, costs, monkeypatch):
    calls, rank_texts = [], lwr.evaluation.cost.rank_texts

    def recording(reranker, query, passages, schedule, *settings):
        order = rank_texts(reranker, query, passages, schedule, *settings)
        calls.append((query, list(passages), str(schedule), order))
        return order

    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", recording)
    costs(queries=3)
    warm_up, *turns = (calls[i : i + 4] for i in range(0, len(calls), 4))
    schedules = ["2", "3", "4", SCHEDULE]
    assert [schedule for _, _, schedule, _ in warm_up] == schedules
    assert [[schedule for _, _, schedule, _ in turn] for turn in turns] == [
        schedules[i:] + schedules[:i] for i in range(3)
    ]
    queries_by_turn = [{query for query, *_ in turn} for turn in (warm_up, *turns)]
    assert [len(queries) for queries in queries_by_turn] == [1] * 4
    assert queries_by_turn[0] == queries_by_turn[1]
    assert len(set.union(*queries_by_turn)) == 3

    table = pd.read_parquet(scored / "test.parquet")
    names = {text: name for name, text in QUERIES.items()}
    for query, passages, schedule, order in calls:
        own = table[table["query_id"] == names[query]]
        assert passages == [PASSAGES[doc] for doc in own["doc_id"]]
        if not Schedule.parse(schedule).keep:
            assert order.tolist() == np.argsort(-own[f"layer_{schedule}"].to_numpy(), kind="stable").tolist()


def test_all_queries_are_timed_where_fewer_exist_than_wanted(costs, monkeypatch):
    calls = []
    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", lambda *arguments: calls.append(arguments))
    costs(queries=50)
    assert len(calls) == 4 * (1 + len(QUERIES))


def test_percentiles_by_hand(costs, monkeypatch):
    """With a clock by which ranking the first list lasts 1 s, the second 2 s and so on, at every exit."""
    now, calls = [0.0], []

    def slow(*_):
        now[0] += max(len(calls) // 4, 1)
        calls.append(None)

    monkeypatch.setattr(lwr.evaluation.cost, "rank_texts", slow)
    monkeypatch.setattr(lwr.evaluation.cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for exit in costs(queries=4)["exits"]:
        assert (exit["p50_ms"], exit["p95_ms"]) == pytest.approx((2500, 3850))
        assert exit["pairs_per_second"] == pytest.approx(18 / 10)
