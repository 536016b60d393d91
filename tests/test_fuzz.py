"""Readers accept any bytes or raise BadInput, and read back what was written.

The environment variable LWR_FUZZ multiplies the number of examples: `LWR_FUZZ=50 pytest tests/test_fuzz.py`.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from fuzz_targets import TARGETS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lwr.common.errors import BadInput
from lwr.common.json_lines import read_json, read_jsonl, write_json, write_jsonl
from lwr.config.grid import GridConfig
from lwr.config.load import read
from lwr.config.model import PromptTemplate
from lwr.config.training import TrainingConfig
from lwr.evaluation.schedules.replay import read_candidates, replay
from lwr.formats.beir import Passage, read_corpus, read_qrels, read_queries, write_collection
from lwr.formats.training_groups import read_training_groups
from lwr.formats.trec import best_first, read_run, write_run
from lwr.model.batching import make_batches
from lwr.model.cascade_schedule import Schedule
from lwr.model.prompt import Prompt, Row

TIMES = int(os.environ.get("LWR_FUZZ", 1))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
nonblank_texts = texts.filter(str.strip)
ids = texts.filter(lambda text: text.split() == [text] and not set("\0\ufeff") & set(text))
scores = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.integers(0, 2**15)

# --- any bytes -----------------------------------------------------------------------------------------

READERS = ("corpus", "queries", "qrels", "run", "groups", "json", "yaml")


@st.composite
def damaged(draw, good: bytes) -> bytes:
    """Draw bytes that mix copies of a good file with random bytes, some of them then overwritten."""
    parts = draw(
        st.lists(st.one_of(st.just(good), st.binary(max_size=20), texts.map(str.encode)), max_size=6)
    )
    data = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 3)) if data else 0):
        start = draw(st.integers(0, len(data) - 1))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "qrels").mkdir()
    return folder


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@settings(max_examples=150 * TIMES, deadline=None)
def test_reader_accepts_any_bytes_or_raises_bad_input(folder, kind, data):
    target = TARGETS[kind]
    path = folder / target.file
    path.write_bytes(data.draw(damaged(target.good)))
    try:
        target.read(path)
    except BadInput as error:
        assert path.name in str(error)  # noqa: PT017


@given(damaged(gzip.compress(TARGETS["groups"].good * 20, mtime=0)))
@settings(max_examples=100 * TIMES, deadline=None)
def test_damaged_archive_is_read_or_raises_bad_input(folder, data):
    (folder / "a.jsonl.gz").write_bytes(data)
    try:
        list(read_jsonl(folder / "a.jsonl.gz", {}))
    except BadInput as error:
        assert "a.jsonl.gz:" in str(error)  # noqa: PT017


@given(
    damaged(
        b"start_layers: [2]\ndatasets: {d: {source: {kind: python_docs}}}\nbase_models: {m: {model: a/b}}\n"
    )
)
@settings(max_examples=60 * TIMES, deadline=None)
def test_config_of_any_bytes_is_read_or_raises_bad_input(folder, data):
    (folder / "grid.yaml").write_bytes(data)
    try:
        read(folder / "grid.yaml")
    except BadInput as error:
        assert "grid.yaml" in str(error)  # noqa: PT017


# --- round trips ---------------------------------------------------------------------------------------


@given(
    st.dictionaries(ids, st.tuples(texts, texts), min_size=1, max_size=5),
    st.dictionaries(ids, nonblank_texts, min_size=1, max_size=4),
    st.integers(-9, 9),
)
@settings(max_examples=100 * TIMES, deadline=None)
def test_collection_survives_the_round_trip(folder, passages, queries, grade):
    corpus = [Passage(doc, title, text) for doc, (title, text) in passages.items()]
    qrels = {"test": {query: dict.fromkeys(passages, grade) for query in queries}}
    write_collection(folder / "collection", corpus, queries, qrels)
    assert list(read_corpus(folder / "collection")) == corpus
    assert read_queries(folder / "collection") == queries
    assert read_qrels(folder / "collection", "test", queries) == qrels["test"]


@given(st.dictionaries(ids, st.dictionaries(ids, scores, min_size=1, max_size=8), max_size=3))
@settings(max_examples=100 * TIMES, deadline=None)
def test_run_survives_the_round_trip(folder, lists):
    try:
        run = {query: best_first(docs.items()) for query, docs in lists.items()}
    except ValueError:  # too many ties at the lowest float32
        return
    if all(np.isfinite(score) for ranked in run.values() for _, score in ranked):
        write_run(folder / "written.trec", run, "tag")
        again = read_run(folder / "written.trec")
        # The file holds enough digits to identify a float32, not the float64 that is read.
        assert {q: [(d, float(np.float32(s))) for d, s in ranked] for q, ranked in again.items()} == run


three_scores = st.lists(scores, min_size=3, max_size=3)
lines = st.lists(
    st.tuples(nonblank_texts, st.lists(texts, min_size=1, max_size=3), three_scores), min_size=1, max_size=4
)


@given(lines)
@settings(max_examples=40 * TIMES, deadline=None)
def test_groups_survive_the_round_trip(folder, lines):
    rows = [
        {
            "query": query,
            "pos": [query],
            "neg": neg,
            "pos_scores": scores[:1],
            "neg_scores": scores[: len(neg)],
        }
        for query, neg, scores in lines
    ]
    for name in ("written.jsonl", "written.jsonl.gz"):
        write_jsonl(folder / name, rows)
        assert list(read_training_groups([folder / name])) == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts, json_values, max_size=4))
@settings(max_examples=60 * TIMES, deadline=None)
def test_json_survives_the_round_trip(folder, value):
    write_json(folder / "written.json", value)
    assert read_json(folder / "written.json", {}) == value


schedules = st.lists(st.tuples(numbers, numbers), max_size=4).map(
    lambda stages: Schedule(
        tuple((place * 3 + layer % 3 + 1, kept + 1) for place, (layer, kept) in enumerate(stages)), 100
    )
)


@given(schedules)
def test_schedule_survives_the_round_trip(schedule):
    assert Schedule.parse(str(schedule)) == schedule


@given(st.one_of(texts, st.text("0123456789:/ -+_٣", max_size=12)))
@example("٣")
@example("1_0")
def test_any_text_is_a_schedule_or_refused(text):
    try:
        schedule = Schedule.parse(text)
    except ValueError as error:
        assert "cascade" in str(error)  # noqa: PT017
    else:
        assert Schedule.parse(str(schedule)) == schedule


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(1, 9),
            "lr": st.floats(1e-8, 10),
            "exit_weights": st.dictionaries(st.integers(1, 40), st.floats(0, 9)),
            "keep_by": st.sampled_from(["mean", "deepest", 3]),
            "distillation": st.just({"teacher": "anchors", "every": 2}),
            "lora": st.just({"rank": 4, "targets": ["q_proj"]}),
        },
    )
)
@settings(max_examples=60 * TIMES, deadline=None)
def test_config_survives_the_round_trip(train):
    grid = {"datasets": {"d": {"source": {"kind": "python_docs"}}}, "base_models": {"m": {"model": "a/b"}}}
    config = GridConfig.model_validate(grid | {"start_layers": [2], "train": train})
    assert GridConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.slice()))) == config
    assert TrainingConfig.model_validate(json.loads(json.dumps(config.train.slice()))) == config.train


# --- prompts, batches, cascades ------------------------------------------------------------------------

SHORT = PromptTemplate(query="{query}", passage="{passage}", after=["?"])


@pytest.mark.parametrize("encoder", [False, True], ids=["decoder", "encoder"])
@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=300)), min_size=1, max_size=3))
@example([("", "")])
@example([("\0\ud800"[:1], "\x1b[31m \u202e")])
@settings(max_examples=60 * TIMES, deadline=None)
def test_any_text_makes_a_row_within_the_maximum_length(encoder, pairs):
    pairs = [tuple(text.encode(errors="ignore").decode() for text in pair) for pair in pairs]
    prompt = Prompt(tiny.tokenizer(encoder), None if encoder else SHORT, 8, 40)
    rows = prompt.rows(pairs)
    frame = prompt.frame(None)
    for row in rows:
        assert len(frame.before) + len(frame.between) + len(frame.after) <= len(row) <= prompt.lengths.row
        assert all(0 <= token < tiny.VOCABULARY for token in row.input_ids)
        assert row.input_ids[: len(frame.before)] == frame.before
        assert not frame.after or row.input_ids[-len(frame.after) :] == frame.after
    assert rows == [row for pair in pairs for row in prompt.rows([pair])]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=30),
    st.integers(1, 200),
    st.booleans(),
)
def test_batches_are_a_partition_within_the_token_budget(which, budget, can_share_prefix):
    rows = [Row([ord(query)] * 3 + [7] * length, None, 3) for query, length in which]
    batches = make_batches(rows, budget, can_share_prefix)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) <= budget


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(0, 2**32 - 1), schedules)
@settings(max_examples=60 * TIMES, deadline=None)
def test_cascade_ranks_every_candidate_once_and_reads_fewer_at_each_stage(sizes, seed, schedule):
    rng, layers = np.random.default_rng(seed), schedule.layers
    pairs = [(f"q{q}", f"d{d}") for q, size in enumerate(sizes) for d in range(size)]
    table = pd.DataFrame(pairs, columns=["query_id", "doc_id"]).assign(tokens=9, first_stage=0.0)
    for layer in layers:
        table[f"layer_{layer}"] = rng.integers(0, 4, len(table)).astype(np.float32)
    candidates = read_candidates(table)
    order, read = replay(candidates, schedule)
    kept = [max(sizes), *(survivors for _, survivors in schedule.keep)]
    for row, size in enumerate(sizes):
        assert sorted(order[row]) == list(range(max(sizes)))
        assert set(order[row][:size]) == set(range(size)), "who is no candidate stands last"
        assert (np.diff(read[row][order[row]]) <= 0).all(), "who is read deeper, stands higher"
        for place, layer in enumerate(layers):
            assert (read[row] >= layer).sum() == min(size, *kept[: place + 1])
