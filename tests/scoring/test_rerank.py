"""Tests of `lwr rerank`: runs equal to the workflow's, other inputs and outputs, and inputs that are refused."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from rich.console import Console
from typer.testing import CliRunner

import lwr.scoring.query_candidates
import lwr.scoring.rankings
from lwr.cli.app import app
from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.common.hashing import hash_share
from lwr.common.json_lines import write_json, write_jsonl
from lwr.common.results_tree import ResultsTree, find_fusion_of_grid
from lwr.config.evaluation import ScoringConfig, Windows
from lwr.evaluation.evaluate import evaluate
from lwr.formats.beir import Passage, write_collection
from lwr.formats.fusion import Fusion, fusion_record
from lwr.formats.trec import read_run, read_run_tag, write_run
from lwr.model.prompt import LinePrompts
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_stored_exits
from lwr.scoring.rerank import resolve_fusion
from lwr.scoring.score import score

QUERIES = {f"q{i}": f"load the object number {i}" for i in range(7)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(12)}
CELL = {
    **{"dataset": "d", "trained_on": "d", "base_model": "m"},
    **{"start_layer": 2, "variant": "v", "seed": 1},
}
SCHEDULE = "2:4 3:2 4"


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.build_reranker(request.param).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny.build_reranker("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Return a collection, and a run whose queries are not sorted."""
    corpus = [Passage(doc, f"title {doc}" if doc < "d5" else "", text) for doc, text in PASSAGES.items()]
    qrels = {"test": {query: {f"d{i}": 1} for i, query in enumerate(QUERIES)}}
    write_collection(tmp_path, corpus, QUERIES, qrels)
    docs = list(PASSAGES)
    run = {
        query: [(doc, 10.0 - rank) for rank, doc in enumerate(docs[i : i + 5 + i % 3])]
        for i, query in enumerate(reversed(QUERIES))
    }
    write_run(tmp_path / "bm25.trec", run, "bm25")
    return tmp_path


def lwr_rerank(model, *arguments, input: str | None = None):
    words = ["rerank", "--model", str(model), *map(str, arguments)]
    return CliRunner().invoke(app, words, input=input)


def ranked(model, *arguments, input: str | None = None):
    done = lwr_rerank(model, *arguments, input=input)
    assert done.exit_code == 0, done.exception
    return done


def of_run(data, *arguments):
    files = {"--queries": "queries.jsonl", "--run": "bm25.trec", "--corpus": "corpus.jsonl"}
    return [*(word for option, file in files.items() for word in (option, data / file)), *arguments]


def read(file):
    raw = file.read_bytes()
    lines = gzip.decompress(raw) if file.suffix == ".gz" else raw
    return [json.loads(line) for line in lines.splitlines()]


# --- the workflow's runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 200], ids=["one batch", "many batches"])
def test_run_equals_the_workflows(model, data, monkeypatch, budget):
    monkeypatch.setattr(lwr.scoring.query_candidates, "QUERIES_PER_CHUNK", 3)
    score(
        model,
        data,
        "test",
        data / "bm25.trec",
        ScoringConfig(tokens_per_batch=budget, widths=[(2, 2)]),
        data / "scores.parquet",
    )
    write_json(data / "cascade.json", {"chosen": SCHEDULE, "deepest": "4"})
    files = data / "scores.parquet", data, "test", ["nDCG@10"], data / "cascade.json"
    evaluate(*files, CELL, data / "measures.parquet", data / "runs")

    how = [] if budget is None else ["--tokens-per-batch", budget]
    depths = {
        "layer_2": ["--layer", 2],
        "layer_3": ["--layer", 3],
        "layer_4": [],
        "cascade": ["--cascade", SCHEDULE],
        "layer_3_compressed_2_by_2": ["--layer", 3, "--compress", "2/2"],
        "layer_4_compressed_2_by_2": ["--cascade", "2/2 4"],
    }
    for exit, depth in depths.items():
        out = data / f"out/{exit}.trec"
        ranked(model, *of_run(data, *depth, *how, "--out", out))
        assert out.read_bytes() == (data / f"runs/{exit}.trec").read_bytes()


@pytest.mark.parametrize("fused", [False, True])
def test_run_with_windows_equals_the_workflows_and_says_what_is_cut(model, data, fused):
    long = [Passage(doc, "", text + " and more" * (30 * i)) for i, (doc, text) in enumerate(PASSAGES.items())]
    write_collection(data, long, QUERIES, {"test": {query: {"d1": 1} for query in QUERIES}})
    windows = Windows(overlap=5, most=3)
    scores = data / "scores.parquet"
    score(model, data, "test", data / "bm25.trec", ScoringConfig(windows=windows), scores)
    write_json(data / "cascade.json", {"chosen": SCHEDULE, "deepest": "4", "fused": fused})
    write_json(data / "fusion.json", fusion_record(FUSION))
    files = scores, data, "test", ["nDCG@10"], data / "cascade.json"
    weights = data / "fusion.json" if fused else None
    evaluate(*files, CELL, data / "measures.parquet", data / "runs", weights)

    table = pd.read_parquet(scores)
    assert set(table["windows"]) == {1, 2, 3}
    cut, pairs = int(table["cut"].sum()), len(table)
    assert 0 < cut < pairs
    how = ["--fused", "--fusion", data / "fusion.json"] if fused else []
    exit = "layer_4_fused" if fused else "layer_4"
    for name, depth in {exit: [], "cascade": ["--cascade", SCHEDULE]}.items():
        out = data / f"out/{name}.trec"
        done = ranked(model, *of_run(data, *depth, *how, "--windows", "{overlap: 5, most: 3}", "--out", out))
        assert out.read_bytes() == (data / f"runs/{name}.trec").read_bytes()
        assert (
            f"rerank: {cut} of {pairs} pairs ({cut / pairs:.0%}) have a passage of more than 3 windows"
            in (done.stderr)
        )
    without = ranked(model, *of_run(data, "--out", data / "without.trec"))
    assert re.search(rf"rerank: \d+ of {pairs} pairs \(\d+%\) fill the ", without.stderr)


@pytest.mark.parametrize("depth", [["--layer", 3], ["--cascade", SCHEDULE]], ids=["exit", "cascade"])
def test_cut_queries_are_counted(model, data, depth):
    queries = QUERIES | {"q1": " ".join(["word"] * 99)}
    write_jsonl(data / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    said = ranked(model, *of_run(data, *depth, "--out", data / "out.trec")).stderr
    assert re.search(r"rerank: 1 of 7 queries \(14%\) fill the \d+ tokens of a query; the rest", said)


def test_what_is_not_cut_is_not_mentioned(model, data):
    assert " of 41 pairs" not in ranked(model, *of_run(data, "--out", data / "out.trec")).stderr


FUSION = Fusion(
    {
        k: {"first_stage": 0.3} | {f"layer_{known}": (-1.0) ** known for known in range(2, k + 1)}
        for k in (2, 3, 4)
    },
    {k: {f"layer_{known}": 1.0 / known for known in range(2, k + 1)} for k in (2, 3, 4)},
)


@pytest.mark.parametrize("schedule", ["2:4 3:2 4", "0:5 2:3 4", "0:4 3"])
def test_fused_run_equals_the_workflows(model, data, schedule):
    score(model, data, "test", data / "bm25.trec", ScoringConfig(), data / "scores.parquet")
    write_json(data / "cascade.json", {"chosen": schedule, "deepest": "4", "fused": True})
    record = {**fusion_record(FUSION), "out_of_fold": [fusion_record(FUSION)] * 2}
    write_json(data / "fusion.json", record)
    files = data / "scores.parquet", data, "test", ["nDCG@10"], data / "cascade.json"
    evaluate(*files, CELL, data / "measures.parquet", data / "runs", fusion=data / "fusion.json")

    fused = ["--fused", "--fusion", data / "fusion.json"]
    depths = {
        "layer_2_fused": ["--layer", 2],
        "layer_4_fused": [],
        "cascade": ["--cascade", schedule],
    }
    for exit, depth in depths.items():
        out = data / f"out/{exit}.trec"
        ranked(model, *of_run(data, *depth, *fused, "--out", out))
        assert out.read_bytes() == (data / f"runs/{exit}.trec").read_bytes()


def test_lines_have_layer_0_and_the_first_stage_score_where_it_dropped_them(bert, data):
    ranked(bert, *of_run(data, "--cascade", "0:3 2:2 4", "-o", data / "out.jsonl"))
    run = read_run(data / "bm25.trec")
    for line in read(data / "out.jsonl"):
        dropped = [(r["doc_id"], r["score"]) for r in line["results"] if r["layer"] == 0]
        assert dropped == run[line["query_id"]][3:]
        assert [r["layer"] for r in line["results"][:3]] == [4, 4, 2]


def test_passages_of_a_query_are_fused_without_the_first_stage(bert, tmp_path):
    reranker = LayerwiseReranker.from_pretrained(bert, device="cpu")
    reranker.fusion = FUSION
    reranker.save_pretrained(tmp_path / "model")
    texts = ["def read(path): ...", "to_csv(path) writes", "decode twice"]
    for depth in (["--layer", 3], ["--cascade", "2:2 4"]):
        shown = ranked(
            tmp_path / "model", "--query", "read", "--fused", *depth, input="\n".join(texts)
        ).stdout
        how = {"layer": 3} if depth[0] == "--layer" else {"cascade": "2:2 4"}
        expected = reranker.rank("read", texts, **how, fused=True)
        rows = [line.split("\t") for line in shown.splitlines()]
        assert [row[3] for row in rows] == [entry["text"] for entry in expected]
        assert [int(row[2]) for row in rows] == [entry["layer"] for entry in expected]
        assert [float(row[1]) for row in rows] == pytest.approx([e["score"] for e in expected], abs=1e-4)


def test_gzipped_files_give_the_same_run(bert, data):
    ranked(bert, *of_run(data, "-o", data / "plain.trec"))
    for name in ("queries.jsonl", "bm25.trec", "corpus.jsonl"):
        (data / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes()))
    zipped = [f"{word}.gz" if str(word).startswith(str(data)) else word for word in of_run(data)]
    ranked(bert, *zipped, "-o", data / "zipped.trec")
    assert (data / "zipped.trec").read_bytes() == (data / "plain.trec").read_bytes()


def test_tag_and_top_k(bert, data):
    ranked(bert, *of_run(data, "-o", data / "all.trec"))
    ranked(bert, *of_run(data, "-o", data / "best.trec", "--tag", "mine", "--top-k", 2))
    assert (read_run_tag(data / "all.trec"), read_run_tag(data / "best.trec")) == ("layer_4", "mine")
    best = {query: docs[:2] for query, docs in read_run(data / "all.trec").items()}
    assert read_run(data / "best.trec") == best


@pytest.mark.parametrize("depth", [["--layer", 4], ["--cascade", "2:3 4"]], ids=["exit", "cascade"])
@torch.no_grad()
def test_ties_are_broken_by_hash_of_the_id(data, depth):
    reranker = tiny.build_reranker("bert")
    for head in reranker.heads:
        head.zero_()
    reranker.save_pretrained(data / "zero")
    ranked(data / "zero", *of_run(data, *depth, "-o", data / "out.trec"))
    for ranking in read_run(data / "out.trec").values():
        docs, scores = zip(*ranking, strict=True)
        assert list(docs) == sorted(docs, key=hash_share)
        assert all(np.float32(above) > np.float32(below) for above, below in pairwise(scores))


# --- other outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("depth", [["--layer", 3], ["--cascade", SCHEDULE]], ids=["exit", "cascade"])
def test_json_lines_have_the_ranking_of_the_run_and_texts(bert, data, depth, name):
    ranked(bert, *of_run(data, *depth, "-o", data / "out.trec"))
    ranked(bert, *of_run(data, *depth, "-o", data / name))
    run, lines = read_run(data / "out.trec"), read(data / name)
    assert [line["query_id"] for line in lines] == list(read_run(data / "bm25.trec")), (
        "in the order of the run"
    )
    for line in lines:
        results = line["results"]
        assert line["query"] == QUERIES[line["query_id"]]
        assert [result["doc_id"] for result in results] == [doc for doc, _ in run[line["query_id"]]]
        assert [result["rank"] for result in results] == list(range(1, len(results) + 1))
        assert all(result["text"].endswith(PASSAGES[result["doc_id"]]) for result in results)
        assert {result["text"].split()[0] for result in results if result["doc_id"] in ("d1", "d3")} <= {
            "title"
        }
    layers = [result["layer"] for result in lines[0]["results"]]
    assert layers == ([3] * len(layers) if "--layer" in depth else [4, 4, 3, 3, *[2] * (len(layers) - 4)])


def test_scores_equal_those_of_the_reranker(bert, data):
    ranked(bert, *of_run(data, "--layer", 3, "-o", data / "out.jsonl"))
    reranker = LayerwiseReranker.from_pretrained(bert, device="cpu")
    for line in read(data / "out.jsonl"):
        pairs = [(line["query"], result["text"]) for result in line["results"]]
        np.testing.assert_allclose(
            [result["score"] for result in line["results"]], reranker.score(pairs, 3), atol=1e-5
        )


def test_table_fits_the_terminal_and_escapes_passages(bert):
    console = Console(width=50, record=True, force_terminal=True, color_system=None)
    rows = [
        ("1", "0.1234", "4", lwr.scoring.rankings._printable("a [bold]tag[/bold] \x1b[31mand\ta line\n" * 5))
    ]
    console.print(lwr.scoring.rankings._table(rows))
    shown = console.export_text()
    assert "a [bold]tag[/bold]" in shown
    assert "…" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 50
    assert len(shown.splitlines()) == 5


# --- other inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["file", "-", "stdin"])
def test_single_query_with_passages_as_lines(bert, tmp_path, by):
    texts = ["def\tread(path): ...", "to_csv(path) writes", "decode  twice"]
    (tmp_path / "passages.txt").write_text("\n".join(texts) + "\n")
    given = {"file": ["--passages", tmp_path / "passages.txt"], "-": ["--passages", "-"], "stdin": []}[by]
    text = None if by == "file" else "\n".join(texts)
    shown = ranked(bert, "--query", "read a csv file", *given, "--layer", 3, input=text).stdout
    rows = [line.split("\t") for line in shown.splitlines()]
    scores = LayerwiseReranker.from_pretrained(bert, device="cpu").score(
        [("read a csv file", t) for t in texts], 3
    )
    best_first = [" ".join(texts[i].split()) for i in np.argsort(-scores)]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[2:] for row in rows] == [["3", text] for text in best_first]
    assert [float(row[1]) for row in rows] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


def test_single_query_written_to_a_file(bert, tmp_path):
    ranked(bert, "--query", "read", "-o", tmp_path / "out.trec", "--top-k", 1, input="one\ntwo\n")
    ((doc, _),) = read_run(tmp_path / "out.trec")["1"]
    assert doc in ("1", "2")


def test_training_groups_keep_their_prompts(tmp_path):
    reranker = tiny.build_reranker("llama").eval()
    reranker.save_pretrained(tmp_path / "model")
    asked = [
        {"query": "load", "pos": ["def load(s)"], "neg": ["def dump(s)", "no"]},
        {"query": "dump", "pos": ["def dump(s)", "dumps"], "neg": ["def load(s)"], "prompt": "Is B code?"},
    ]
    asked[1] |= {"query_prompt": "Q: ", "passage_prompt": "P: "}
    write_jsonl(tmp_path / "groups.jsonl.gz", asked)
    ranked(tmp_path / "model", "--groups", tmp_path / "groups.jsonl.gz", "-o", tmp_path / "out.jsonl")
    first, second = read(tmp_path / "out.jsonl")
    assert {result["doc_id"] for result in first["results"]} == {"1-pos-1", "1-neg-1", "1-neg-2"}
    assert {result["doc_id"]: result["text"] for result in second["results"]} == {
        "2-pos-1": "def dump(s)",
        "2-pos-2": "dumps",
        "2-neg-1": "def load(s)",
    }
    for line, group in zip((first, second), asked, strict=True):
        texts = [result["text"] for result in line["results"]]
        (rows,) = reranker.prompt.group_rows([(group["query"], texts, LinePrompts.from_line(group))])
        (scores,) = reranker.score_rows(rows, [4])
        np.testing.assert_allclose([result["score"] for result in line["results"]], scores, atol=1e-5)


def test_instruction_that_an_encoder_cannot_read_is_refused(bert, tmp_path):
    line = {"query": "load", "pos": ["def load(s)"], "neg": ["no"]}
    write_jsonl(tmp_path / "groups.jsonl", [line, line | {"prompt": "Is B code?"}])
    message = refused(bert, "--groups", tmp_path / "groups.jsonl", "-o", tmp_path / "out.jsonl")
    assert "groups.jsonl:2: field 'prompt'" in message


def test_instruction_replaces_the_models_own(tmp_path, data):
    reranker = tiny.build_reranker("llama").eval()
    reranker.save_pretrained(tmp_path / "model")
    for number, how in enumerate([["--layer", 3], ["--cascade", SCHEDULE]]):
        plain, own, other = (tmp_path / f"{name}{number}.jsonl" for name in ("plain", "own", "other"))
        asked = ["--instruction", reranker.prompt.template.instruction]
        ranked(tmp_path / "model", *of_run(data, *how, "-o", plain))
        ranked(tmp_path / "model", *of_run(data, *how, *asked, "-o", own))
        ranked(tmp_path / "model", *of_run(data, *how, "--instruction", "Is B short?", "-o", other))
        assert own.read_bytes() == plain.read_bytes() != other.read_bytes()
    for line in read(tmp_path / "other0.jsonl"):
        pairs = [(line["query"], result["text"]) for result in line["results"]]
        scores = reranker.score(pairs, 3, instruction="Is B short?")
        np.testing.assert_allclose([result["score"] for result in line["results"]], scores, atol=1e-5)


def test_instruction_that_the_model_does_not_read_is_refused(bert, data):
    out = data / "out.trec"
    message = refused(bert, *of_run(data, "--instruction", "Is B short?", "-o", out))
    assert "encoders read pairs without one" in message
    assert not out.exists()


# --- refused inputs ------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch):
    def load(*_, **__):
        raise AssertionError("the model was loaded before the inputs were checked")

    monkeypatch.setattr(LayerwiseReranker, "from_pretrained", load)


def refused(model, *arguments, input=None) -> str:
    error = lwr_rerank(model, *arguments, input=input).exception
    assert isinstance(error, ValueError), error
    return str(error)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", 1], "layers [1] have no head; exits are 2..4"),
        (["--cascade", "1:3 9"], "layers [1, 9] have no head; exits are 2..4"),
        (["--cascade", "3:2 2"], "layers must ascend"),
        (["--cascade", "two"], "write it as"),
        (["--layer", 3, "--cascade", "2:3 4"], "give one of the two"),
        (["--query", "also"], "give one of"),
        (["--groups", "also.jsonl"], "give one of"),
        (["--passages", "a.txt"], "without --query"),
        (["--tag", "two words"], "write one word"),
        (["--tag", ""], "write one word"),
        (["--revision", "main"], "a folder has no revision main; leave out the revision"),
        (["--compress", f"2/{10**23}"], "a ratio is from 1 to 65536"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unloaded")
def test_conflicting_options_are_refused(bert, data, arguments, expected):
    assert expected in refused(bert, *of_run(data, "--out", data / "out.trec", *arguments))
    assert not (data / "out.trec").exists()


@pytest.mark.usefixtures("unloaded")
def test_instruction_beside_groups_is_refused(bert, tmp_path):
    write_jsonl(tmp_path / "groups.jsonl", [{"query": "load", "pos": ["def load(s)"], "neg": ["no"]}])
    message = refused(bert, "--groups", tmp_path / "groups.jsonl", "--instruction", "a", "-o", tmp_path / "o")
    assert "--instruction beside --groups" in message


@pytest.mark.usefixtures("unloaded")
def test_fused_without_fitting_weights_is_refused(bert, data):
    out = ["--out", data / "out.trec"]
    assert "has no fusion.json" in refused(bert, *of_run(data, *out, "--fused"))
    write_json(data / "fusion.json", fusion_record(FUSION))
    assert "without --fused" in refused(bert, *of_run(data, *out, "--fusion", data / "fusion.json"))
    of_others = Fusion({4: FUSION.with_first_stage[4]}, {4: FUSION.without_first_stage[4]})
    write_json(data / "fusion.json", fusion_record(of_others))
    message = refused(bert, *of_run(data, *out, "--fused", "--fusion", data / "fusion.json"))
    assert "fusion.json: has weights of layers [4]" in message
    assert "give a --run" in refused(bert, "--query", "a", "--cascade", "0:3 4", input="b")


def test_weights_of_the_grid_are_found(bert, tmp_path, capsys):
    cell = Cell("docs", "bert", 2, "default", seed=1)
    tree = ResultsTree(tmp_path)
    shutil.copytree(bert, tree.model(cell))
    write_json(tree.model(cell) / "provenance.json", {"cell": asdict(cell)})
    with pytest.raises(BadInput, match=r"has no fusion\.json"):
        resolve_fusion(str(tree.model(cell)), fused=True, file=None)
    weights = tree.fusion(cell.arm, "docs")
    weights.parent.mkdir(parents=True)
    write_json(weights, fusion_record(FUSION))
    assert resolve_fusion(str(tree.model(cell)), fused=True, file=None) == FUSION
    assert f"weights of fused scores: {weights}" in capsys.readouterr().err


def test_weights_of_another_data_set_are_found_if_it_is_the_only_one(bert, tmp_path):
    cell = Cell("docs", "bert", 2, "default", seed=1)
    tree = ResultsTree(tmp_path)
    shutil.copytree(bert, tree.model(cell))
    write_json(tree.model(cell) / "provenance.json", {"cell": asdict(cell)})
    of = {name: tree.fusion(cell.arm, name) for name in ("code", "docs", "mail")}
    write_json(of["mail"], fusion_record(FUSION))
    assert find_fusion_of_grid(tree.model(cell)) == of["mail"]
    assert find_fusion_of_grid(bert) is None
    write_json(of["code"], fusion_record(FUSION))
    assert find_fusion_of_grid(tree.model(cell)) is None, "it is not clear which"
    write_json(of["docs"], fusion_record(FUSION))
    assert find_fusion_of_grid(tree.model(cell)) == of["docs"], "of the data set that it was trained on"


@pytest.mark.usefixtures("unloaded")
def test_malformed_or_unmatched_files_are_reported_with_their_line(bert, data):
    def message(**texts: str) -> str:
        for name, text in texts.items():
            (data / {"run": "bm25.trec"}.get(name, f"{name}.jsonl")).write_text(text)
        return refused(bert, *of_run(data, "-o", data / "out.trec"))

    known = "q1 Q0 d1 1 2.0 bm25\n"
    assert f"{data}/bm25.trec:2: 'nobody': query" in message(run=f"{known}nobody Q0 d1 1 2.0 bm25\n")
    assert f"{data}/bm25.trec:3: 'gone'" in message(
        run=f"{known}q1 Q0 d2 2 1.0 bm25\nq2 Q0 gone 1 1.0 bm25\n"
    )
    assert "bm25.trec:1: " in message(run="q1 d1\n")
    assert "no candidates" in message(run="")
    twice = '{"_id": "d1", "text": "a"}\n' * 2
    assert "'d1' is duplicated" in message(run=known, corpus=twice)
    assert "corpus.jsonl:1: field 'text' is missing" in message(corpus='{"_id": "d1"}\n')
    assert "queries.jsonl:1: " in message(queries="{\n")
    (data / "queries.jsonl").unlink()
    assert "queries.jsonl: no such file" in message()
    assert not (data / "out.trec").exists()


@pytest.mark.usefixtures("unloaded")
def test_empty_or_incomplete_inputs_are_refused(bert, data):
    assert "--query has no text" in refused(bert, "--query", " ", input="a")
    assert r"--query '\udce9t\udce9' is not UTF-8" in refused(bert, "--query", "\udce9t\udce9", input="a")
    assert "standard input: has no passages" in refused(bert, "--query", "a", input="")
    assert "standard input:2: a blank line" in refused(bert, "--query", "a", input="b\n\nc")
    assert "no such file" in refused(bert, "--query", "a", "--passages", data / "none.txt")
    assert "--run without --queries, --corpus" in refused(
        bert, "--run", data / "bm25.trec", "-o", data / "out.trec"
    )
    assert "give one of" in refused(bert, "-o", data / "out.trec")
    (data / "groups.jsonl").write_text("")
    assert "no group in it" in refused(bert, "--groups", data / "groups.jsonl", "-o", data / "out.trec")


@pytest.mark.usefixtures("unloaded")
def test_impossible_outputs_are_refused(bert, data):
    assert "name a file" in refused(bert, *of_run(data))
    assert "a folder" in refused(bert, *of_run(data, "-o", data))
    assert "not gzipped" in refused(bert, *of_run(data, "-o", data / "out.trec.gz"))
    assert "--out -: name a file" in refused(bert, *of_run(data, "-o", "-"))
    os.mkfifo(data / "pipe")
    assert "not a regular file" in refused(bert, *of_run(data, "-o", data / "pipe"))
    assert "--tag mine without --out" in refused(bert, "--query", "a", "--tag", "mine", input="b")


def test_exits_are_read_without_weights(tmp_path):
    about = {"model_type": "minicpm", "num_hidden_layers": 4, "start_layer": 2, "head_type": "simple"}
    write_json(tmp_path / "config.json", about)
    assert read_stored_exits(str(tmp_path)) == [2, 3, 4]
    write_json(tmp_path / "config.json", about | {"head_type": "raw"})
    with pytest.raises(ValueError, match="without relevance heads"):
        read_stored_exits(str(tmp_path))
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match=r"no lwr\.json"):
        read_stored_exits(str(tmp_path))
