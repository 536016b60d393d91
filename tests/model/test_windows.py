"""Tests of windows: how a passage is split, and that it scores by the scores of its windows' texts."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lwr import Windows
from lwr.common.hashing import hash_share
from lwr.config.model import PromptTemplate
from lwr.evaluation.schedules.replay import read_candidates, replay
from lwr.formats.fusion import Fusion
from lwr.model.cascade_schedule import Schedule
from lwr.model.prompt import PromptTooLong, Row, split_into_windows
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
LENGTH, OVERLAP = 30, 6  # tokens of a window of the passage, of which the first repeat the window before
WINDOWS = Windows(overlap=OVERLAP, most=4)
SHORT = ["def decode(s): return s", "a list", "def encode(s)"]

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
architectures = pytest.mark.parametrize("architecture", ["llama", "bert", "lfm2"])


WITHOUT = {
    2: {"layer_2": 1.5},
    3: {"layer_2": -0.7, "layer_3": 1.1},
    4: {"layer_2": 0.4, "layer_3": -0.9, "layer_4": 1.3},
}
FUSION = Fusion({k: {"first_stage": 0.8} | weights for k, weights in WITHOUT.items()}, WITHOUT)


@cache
def reranker(architecture: str) -> LayerwiseReranker:
    """Build a reranker of which a row has place for `LENGTH` tokens of a passage beside the query."""
    tokenizer = tiny.tokenizer(encoder=architecture in tiny.ENCODERS)
    template = PromptTemplate(query="{query}", between="|", passage="{passage}", after=["?"])
    for passage_max_len in range(20, 60):
        model = LayerwiseReranker(
            tiny.backbone(architecture),
            tokenizer,
            start_layer=2,
            template=template,
            query_max_len=8,
            passage_max_len=passage_max_len,
        )
        [row] = model.prompt.rows([(QUERY, " s" * 200)])
        if row.passage_tokens == LENGTH:
            model.fusion = FUSION
            return model.eval()
    raise AssertionError("no length of a row leaves place for such a window")


@cache
def words() -> list[str]:
    """Return words that are one token each, also where they follow each other."""
    tokenizer = tiny.tokenizer(encoder=False)
    texts = (tokenizer.decode([i]) for i in range(3, tiny.VOCABULARY))
    return [text for text in texts if text[0] == " " and text[1:].isalpha() and len(text) > 3]


def passage(tokens: int, seed: int) -> list[str]:
    return list(np.random.default_rng(seed).choice(words(), tokens))


def window_texts(passage: list[str], most: int = 4) -> list[str]:
    """Return the texts of the windows of a passage, by hand."""
    starts = range(0, max(1, len(passage) - OVERLAP), LENGTH - OVERLAP)
    return ["".join(passage[start : start + LENGTH]) for start in starts][:most]


def pooled_by_hand(model: LayerwiseReranker, passages: list[list[str]], pool: str = "max") -> np.ndarray:
    """Score each window's text as a passage of its own; return float32 [exits, passages]."""
    of_each = [
        model.score([(QUERY, text) for text in window_texts(words)], layers="all") for words in passages
    ]
    return np.stack([getattr(scores, pool)(axis=1) for scores in of_each], axis=1)


LONG = [
    passage(tokens, seed) for seed, tokens in enumerate([20, 30, 31, 54, 55, 78, 79, 90, 300, 5, 102, 103])
]
TEXTS = ["".join(words) for words in LONG]


# --- splitting -----------------------------------------------------------------------------------------


@given(
    tokens=st.integers(0, 60),
    length=st.integers(1, 12),
    overlap=st.integers(0, 12),
    most=st.integers(1, 8),
    before=st.integers(0, 3),
)
def test_windows_overlap_and_cover_the_passage(tokens, length, overlap, most, before):
    ids, before = list(range(tokens)), min(before, tokens)
    windows = Windows(overlap=overlap, most=most)
    if overlap + before >= length:
        with pytest.raises(ValueError, match=f"windows overlap by {overlap} tokens, but"):
            split_into_windows(ids, length, windows, before)
        return
    split, is_cut = split_into_windows(ids, length, windows, before)
    assert split[0] == ids[:length]
    assert 1 <= len(split) <= most
    assert all(len(window) == length for window in split[:-1])
    assert len(split[-1]) <= length
    covered = list(split[0])
    for window, following in pairwise(split):
        assert following[:before] == ids[:before]
        assert following[before : before + overlap] == window[len(window) - overlap :]
        assert len(following) > before + overlap  # something new
        covered += following[before + overlap :]
    assert covered == ids[: len(covered)]
    assert is_cut == (len(covered) < tokens)
    assert len(split) == most or not is_cut


def test_every_window_begins_with_what_the_template_writes_before_a_passage():
    tokenizer = tiny.tokenizer(encoder=False)
    model = LayerwiseReranker(tiny.backbone("llama"), tokenizer, 2, query_max_len=16, passage_max_len=100)
    [row] = model.prompt.rows([(QUERY, "def decode" + "".join(passage(200, 1)))], windows=WINDOWS)
    texts = [
        tokenizer.decode(window.input_ids[window.before_passage : len(window) - window.after_passage])
        for window in row.windows
    ]
    assert len(texts) == 4
    assert all(text.startswith("B: ") for text in texts)
    assert texts[0].startswith("B: def decode")
    fixed = [(window.input_ids[: window.before_passage], window.after_passage) for window in row.windows]
    assert all(each == fixed[0] for each in fixed)


def test_cut_pairs_are_those_with_more_windows():
    prompt = reranker("bert").prompt
    longest = LENGTH + 3 * (LENGTH - OVERLAP)
    pairs = [(QUERY, "".join(passage(tokens, 0))) for tokens in (5, LENGTH, longest, longest + 1, 500)]
    rows = prompt.rows(pairs, windows=WINDOWS)
    assert [len(row.windows) for row in rows] == [1, 1, 4, 4, 4]
    assert prompt.count_cut(rows) == 2
    said = prompt.describe_cut(2, 5, WINDOWS)
    assert said == ("2 of 5 pairs (40%) have a passage of more than 4 windows, the rest of which is not read")
    assert [row.tokens_of_windows for row in rows] == [sum(map(len, row.windows)) for row in rows]


def test_overlap_that_fills_a_window_is_refused():
    model = reranker("llama")
    model.prompt.check_windows(Windows(overlap=LENGTH - 1), QUERY)
    with pytest.raises(PromptTooLong, match=f"overlap by {LENGTH} tokens, but a window has {LENGTH} tokens"):
        model.prompt.check_windows(Windows(overlap=LENGTH), QUERY)
    model.prompt.check_windows(Windows(overlap=LENGTH))  # beside a shorter query there is place
    with pytest.raises(ValueError, match=f"windows overlap by {LENGTH} tokens, but a window has {LENGTH}"):
        model.rank(QUERY, SHORT, windows=Windows(overlap=LENGTH))
    for wrong in ({"overlap": -1}, {"most": 0}, {"pool": "min"}, {"size": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Windows(**wrong)


def test_instruction_that_leaves_too_little_for_windows_is_refused():
    lengths = {"query_max_len": 16, "passage_max_len": 100}
    model = LayerwiseReranker(tiny.backbone("llama"), tiny.tokenizer(encoder=False), 2, **lengths).eval()
    for words in range(1, 200):
        try:
            model.score((QUERY, TEXTS[8]), windows=WINDOWS, instruction=" return" * words)
        except PromptTooLong as error:
            assert words > 1
            assert f"windows overlap by {OVERLAP} tokens, but a window has" in str(error)  # noqa: PT017 - the first
            return
    raise AssertionError("no instruction was too long")


# --- scores --------------------------------------------------------------------------------------------


@architectures
@pytest.mark.parametrize(("texts", "most"), [(SHORT, 4), (SHORT + TEXTS, 1)], ids=["short", "most 1"])
def test_one_window_scores_bit_for_bit_as_without(architecture, texts, most):
    model, windows = reranker(architecture), Windows(overlap=OVERLAP, most=most)
    pairs = [(QUERY, text) for text in texts]
    assert np.array_equal(model.score(pairs, layers="all", windows=windows), model.score(pairs, layers="all"))
    calls = [{}, {"layer": 2}, {"cascade": "2:2 4"}, {"budget_ms": 1e9}, {"fused": True}]
    for how in calls if architecture == "lfm2" else [*calls, {"compression": "2/2"}]:
        assert model.rank(QUERY, texts, windows=windows, **how) == model.rank(QUERY, texts, **how)


@architectures
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_scores_are_those_of_the_texts_of_windows(architecture, pool):
    model = reranker(architecture)
    expected = pooled_by_hand(model, LONG, pool)
    windows = WINDOWS.model_copy(update={"pool": pool})
    scores = model.score([(QUERY, text) for text in TEXTS], layers="all", windows=windows)
    assert_close(scores, expected)
    in_time = {each["corpus_id"]: each for each in model.rank(QUERY, TEXTS, budget_ms=1e9, windows=windows)}
    assert {each["layer"] for each in in_time.values()} == {4}
    found = [in_time[i]["score"] for i in range(len(TEXTS))]
    assert_close(found, expected[-1])


@architectures
def test_what_is_behind_the_cut_decides_only_with_windows(architecture):
    """The passage that scores best alone is found at the end of a long one."""
    model = reranker(architecture)
    alone = model.score([(QUERY, text) for text in window_texts(LONG[8])])
    best = int(alone.argmax())
    filler = LONG[8][int(alone.argmin()) * (LENGTH - OVERLAP) :][:LENGTH]
    relevant = LONG[8][best * (LENGTH - OVERLAP) :][:LENGTH]
    # the windows of the long text: filler, a mixture, and the relevant one
    long = "".join(filler + [" return"] * (LENGTH - 2 * OVERLAP) + relevant)
    texts = ["".join(filler), long]
    cut = model.score([(QUERY, text) for text in texts])
    assert cut[0] == pytest.approx(cut[1], abs=1e-5)
    found = model.score([(QUERY, text) for text in texts], windows=WINDOWS)
    assert found[0] == pytest.approx(cut[0], abs=1e-5)
    assert found[1] >= alone[best] - 1e-5 > found[0]
    assert model.rank(QUERY, texts, windows=WINDOWS)[0]["corpus_id"] == 1


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize(
    ("text", "fused", "first_stage"),
    [
        *((text, fused, False) for text in ("4", "2:5 4", "2:7 3:4 4", "2:1 3") for fused in (False, True)),
        *((text, True, True) for text in ("4", "2:7 3:4 4", "0:6 4", "0:6 2:3 4")),
    ],
)
def test_cascade_equals_replay_of_scores_of_windows(architecture, text, fused, first_stage):
    """A cascade keeps or drops all windows of a passage together."""
    schedule = Schedule.parse(text)
    model = reranker(architecture)
    doc_ids = sorted((f"d{i}" for i in range(len(TEXTS))), key=hash_share)  # ties are broken as in `replay`
    retrieved = np.random.default_rng(3).normal(size=len(TEXTS))
    scores = model.score([(QUERY, text) for text in TEXTS], layers="all", windows=WINDOWS)
    table = pd.DataFrame(
        {"query_id": "q", "doc_id": doc_ids, "tokens": 1, "first_stage": retrieved}
        | {f"layer_{k}": of_exit for k, of_exit in zip(model.exits, scores, strict=True)}
    )
    fusion = None
    if fused:
        fusion = FUSION if first_stage else Fusion(WITHOUT, WITHOUT)
    order, depth = replay(read_candidates(table, fusion=fusion), schedule)
    pairs = [(QUERY, text) for text in TEXTS]
    given_scores = retrieved if first_stage else None
    rows = model.rows_to_read(pairs, schedule, given_scores, windows=WINDOWS)
    ranking = model.rank_rows(rows, schedule, first_stage=given_scores, fused=fused)
    assert ranking.order.tolist() == order[0].tolist()
    assert ranking.layers.tolist() == depth[0].tolist()
    if not fused:
        read = np.array([model.exits.index(layer) for layer in ranking.layers])
        expected = scores[read, np.arange(len(TEXTS))]
        assert_close(ranking.scores, expected)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_windows_of_compressed_passages(architecture):
    model = reranker(architecture)
    of_each = [
        model.score([(QUERY, text) for text in window_texts(words)], compression="2/2").max()
        for words in LONG
    ]
    found = model.score([(QUERY, text) for text in TEXTS], compression="2/2", windows=WINDOWS)
    assert_close(found, of_each)
    ranked = model.rank(QUERY, TEXTS, cascade="2/2:12 4", windows=WINDOWS)
    by_cascade = {each["corpus_id"]: each["score"] for each in ranked}
    assert_close([by_cascade[i] for i in range(len(TEXTS))], of_each)


def test_progress_counts_pairs():
    model, counted = reranker("llama"), []
    rows: list[Row] = model.prompt.rows([(QUERY, text) for text in TEXTS], windows=WINDOWS)
    model.score_rows(rows, [4], tokens_per_batch=100, on_scored=counted.append)
    assert sum(counted) == len(TEXTS)
    assert len(counted) > 1
