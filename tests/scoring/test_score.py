"""Tests of `lwr score`: every candidate once, in the order of the run, whatever the chunks, batches and shards."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import tiny
from fake_clock import Clock

import lwr.common.progress
import lwr.scoring.query_candidates
from lwr.common.progress import Progress
from lwr.config.evaluation import ScoringConfig, Windows
from lwr.formats.beir import Passage, write_collection
from lwr.formats.trec import read_run, write_run
from lwr.model.batching import make_batches
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker
from lwr.scoring.gather import gather
from lwr.scoring.score import score

QUERIES = {f"q{i}": f"load the object number {i}" for i in range(7)}
PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (i % 5) + str(i) for i in range(12)}


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    reranker = LayerwiseReranker(
        tiny.backbone("bert"),
        tiny.tokenizer(encoder=True),
        start_layer=3,
        query_max_len=16,
        passage_max_len=48,
    )
    reranker.save_pretrained(folder)
    return folder


LONG_PASSAGES = {f"d{i}": "def decode(s): return s " + "and more " * (7 * i) for i in range(12)}


@pytest.fixture
def collection(tmp_path):
    return write_data(tmp_path, PASSAGES)


@pytest.fixture
def long_collection(tmp_path):
    return write_data(tmp_path, LONG_PASSAGES)


def write_data(tmp_path, passages):
    qrels = {"test": {query: {f"d{i}": 1} for i, query in enumerate(QUERIES)}}
    write_collection(tmp_path, [Passage(doc, "", text) for doc, text in passages.items()], QUERIES, qrels)
    docs = list(passages)
    run = {
        query: [(doc, 10.0 - rank) for rank, doc in enumerate(docs[i : i + 3 + i % 2])]
        for i, query in enumerate(reversed(QUERIES))
    }
    write_run(tmp_path / "test.trec", run, "made-up")
    return tmp_path


def scored(reranker, collection, name="out", settings=ScoringConfig(), **which) -> pd.DataFrame:  # noqa: B008
    out = collection / f"{name}.parquet"
    score(reranker, collection, "test", collection / "test.trec", settings, out, **which)
    return pd.read_parquet(out)


@pytest.mark.parametrize("queries_per_chunk", [1, 2, 100])
def test_every_candidate_is_scored_once_in_the_order_of_the_run(
    reranker, collection, monkeypatch, queries_per_chunk
):
    monkeypatch.setattr(lwr.scoring.query_candidates, "QUERIES_PER_CHUNK", queries_per_chunk)
    table = scored(reranker, collection)
    expected = [(q, d, s) for q, docs in read_run(collection / "test.trec").items() for d, s in docs]
    assert list(table[["query_id", "doc_id", "first_stage"]].itertuples(index=False, name=None)) == expected
    assert list(table.columns[5:]) == ["layer_3", "layer_4"]
    assert table["layer_4"].nunique() > len(table) / 2


def test_score_equals_that_of_the_pair_alone(reranker, collection):
    table, model = scored(reranker, collection), LayerwiseReranker.from_pretrained(reranker, device="cpu")
    for line in table.sample(5, random_state=0).itertuples():
        rows = model.prompt.rows([(QUERIES[line.query_id], PASSAGES[line.doc_id])])
        alone = model.score_rows(rows, [3, 4])[:, 0]
        np.testing.assert_allclose([line.layer_3, line.layer_4], alone, atol=1e-5)


def test_widths_are_scored_beside_full_width(reranker, collection):
    plain = scored(reranker, collection)
    settings = ScoringConfig(widths=[(2, 2), (3, 4)])
    table, model = scored(reranker, collection, "wide", settings), LayerwiseReranker.from_pretrained(reranker)
    names = ["layer_3_compressed_2_by_2", "layer_4_compressed_2_by_2", "layer_4_compressed_3_by_4"]
    assert list(table.columns[4:]) == ["passage_tokens", "first_stage", "layer_3", "layer_4", *names]
    pd.testing.assert_frame_equal(table[plain.columns], plain, check_exact=True)
    for line in table.sample(5, random_state=0).itertuples():
        pair = (QUERIES[line.query_id], PASSAGES[line.doc_id])
        (row,) = model.prompt.rows([pair])
        assert (line.tokens, line.passage_tokens) == (len(row), row.passage_tokens)
        expected = [
            *model.score(pair, layers=[3, 4], compression="2/2"),
            model.score(pair, 4, compression="3/4"),
        ]
        np.testing.assert_allclose([getattr(line, name) for name in names], expected, atol=1e-5)
    assert (table["layer_4"] - table["layer_4_compressed_2_by_2"]).abs().max() > 1e-4


def test_width_that_no_block_reads_is_refused_before_scoring(reranker, collection):
    with pytest.raises(ValueError, match=r"no block reads the tokens after layer 4; give layers in 1\.\.3"):
        scored(reranker, collection, settings=ScoringConfig(widths=[(4, 2)]))
    assert not (collection / "out.parquet").exists()


def test_cut_pairs_are_counted_in_table_and_log(reranker, long_collection, capsys):
    scores = scored(reranker, long_collection)
    prompt = LayerwiseReranker.from_pretrained(reranker).prompt
    rows = prompt.rows(
        [(QUERIES[q], LONG_PASSAGES[d]) for q, d in zip(scores.query_id, scores.doc_id, strict=True)]
    )
    assert f"score: {prompt.count_cut(rows)} of {len(rows)} pairs (" in capsys.readouterr().err
    assert scores["cut"].tolist() == [row.is_cut for row in rows]
    assert scores["cut"].nunique() == 2


WINDOWS = Windows(overlap=3, most=3)


def test_windows_are_scored_and_counted(reranker, long_collection, capsys):
    settings = ScoringConfig(windows=WINDOWS, widths=[(2, 2)])
    table = scored(reranker, long_collection, settings=settings)
    model = LayerwiseReranker.from_pretrained(reranker)
    pairs = [(QUERIES[q], LONG_PASSAGES[d]) for q, d in zip(table.query_id, table.doc_id, strict=True)]
    rows = model.prompt.rows(pairs, windows=WINDOWS)
    np.testing.assert_allclose(
        table[["layer_3", "layer_4"]].T, model.score(pairs, layers="all", windows=WINDOWS), atol=1e-5
    )
    compressed = model.score(pairs, 4, compression="2/2", windows=WINDOWS)
    np.testing.assert_allclose(table["layer_4_compressed_2_by_2"], compressed, atol=1e-5)
    assert set(table["windows"]) == {1, 2, 3}, "numbers of windows that differ"
    read = [row.windows for row in rows]
    assert table["windows"].tolist() == list(map(len, read))
    assert table["tokens"].tolist() == [sum(map(len, windows)) for windows in read]
    assert table["last_tokens"].tolist() == [len(windows[-1]) for windows in read]
    passages = [sum(window.passage_tokens for window in windows) for windows in read]
    assert table["passage_tokens"].tolist() == passages
    cut = int(table["cut"].sum())
    assert 0 < cut < len(table)
    said = f"score: {cut} of {len(rows)} pairs ({cut / len(rows):.0%}) have a passage of more than 3 windows"
    assert said in capsys.readouterr().err


def test_overlap_that_fills_a_window_is_refused_before_scoring(reranker, collection):
    with pytest.raises(ValueError, match=r"windows overlap by 500 tokens, but a window has \d+"):
        scored(reranker, collection, settings=ScoringConfig(windows=Windows(overlap=500)))
    assert not (collection / "out.parquet").exists()


def test_gathered_shards_equal_the_complete_table(reranker, collection):
    complete = scored(reranker, collection)
    for k in (1, 2, 3):
        scored(reranker, collection, f"shard{k}", shard=f"{k}/3")
    gather([collection / f"shard{k}.parquet" for k in (1, 2, 3)], collection / "gathered.parquet")
    gathered = pd.read_parquet(collection / "gathered.parquet")
    keys = ["query_id", "doc_id", "first_stage"]
    pd.testing.assert_frame_equal(gathered[keys], complete[keys])
    np.testing.assert_allclose(gathered["layer_4"], complete["layer_4"], atol=1e-5)


def test_progress_is_shown_inside_a_chunk(reranker, collection, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(lwr.common.progress, "time", clock)
    advance = Progress.advance

    def take_a_minute(progress: Progress, items: int = 1) -> None:
        advance(progress, items)
        clock.now += 60.0
        progress.report_if_due()

    settings = ScoringConfig(tokens_per_batch=200)
    quick = scored(reranker, collection, settings=settings)
    capsys.readouterr()
    monkeypatch.setattr(Progress, "advance", take_a_minute)
    pd.testing.assert_frame_equal(scored(reranker, collection, settings=settings), quick, check_exact=True)
    printed = [line for line in capsys.readouterr().err.splitlines() if re.match(r"score: \d+/", line)]
    done = [int(line.removeprefix("score: ").split("/")[0]) for line in printed]
    assert len(set(done)) > 3  # all queries are one chunk
    assert done[-1] == len(quick)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "2", "a/b"])
def test_malformed_shard_is_refused(reranker, collection, shard):
    with pytest.raises(ValueError, match="K/N"):
        scored(reranker, collection, shard=shard)


def test_candidate_missing_from_the_corpus_is_named(reranker, collection):
    write_run(collection / "test.trec", {"q1": [("nowhere", 1.0)]}, "made-up")
    with pytest.raises(ValueError, match="nowhere"):
        scored(reranker, collection)
    assert not (collection / "out.parquet").exists()


def test_batches_have_every_row_within_the_budget():
    rows = [Row([7] * length, None) for length in (5, 90, 1, 30, 30, 2, 17)]
    batches = make_batches(rows, tokens_per_batch=64)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert all(len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) <= 64 for batch in batches)
    assert batches[0] == [1]
