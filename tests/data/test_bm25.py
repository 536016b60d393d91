"""BM25 has the scores of the package bm25s, for any block size."""

import random
from io import BytesIO

import bm25s
import numpy as np
import pytest
import Stemmer

from lwr.data import bm25
from lwr.data.best import top_positions
from lwr.data.words import tokenizer_of
from lwr.formats.trec import best_first

tokenize = tokenizer_of("english")
VOCABULARY = [
    "cat",
    "cats",
    "Dog's",
    "running",
    "runner",
    "the",
    "zebra",
    "of",
    "x",
    "naïve",
    "co-op",
    "2nd",
    "42",
]


def texts(passages, seed=0):
    rng = random.Random(seed)
    return [
        (f"d{i}", " ".join(rng.choices(VOCABULARY, range(13, 0, -1), k=rng.randrange(1, 30))))
        for i in range(passages)
    ]


def search(corpus, queries, top_k=100, k1=0.9, b=0.4):
    vocabulary = {
        word: n for n, word in enumerate(sorted({w for text in queries.values() for w in tokenize(text)}))
    }
    numbered = {query: [vocabulary[word] for word in tokenize(text)] for query, text in queries.items()}
    return bm25.search(bm25.build_index(corpus, vocabulary, tokenize, BytesIO()), numbered, top_k, k1, b)


QUERIES = {
    "q1": "Cats running",
    "q2": "zebra zebra dog",
    "q3": "co-op the runner 2nd",
    "q4": "nothing",
    "q5": "of",
}


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0)])
def test_scores_equal_those_of_bm25s(k1, b):
    corpus = texts(300)
    complete = bm25s.tokenize(
        [text for _, text in corpus],
        stopwords="english",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    assert complete == [tokenize(text) for _, text in corpus]
    theirs = bm25s.BM25(method="lucene", k1=k1, b=b)
    theirs.index(complete, show_progress=False)
    found = search(corpus, QUERIES, 300, k1, b)
    assert found.keys() == {"q1", "q2", "q3"}
    for query_id, ranked in found.items():
        scores = theirs.get_scores_from_ids(theirs.get_tokens_ids(tokenize(QUERIES[query_id])))
        expected = best_first((f"d{i}", scores[i]) for i in np.flatnonzero(scores))
        assert [doc_id for doc_id, _ in ranked] == [doc_id for doc_id, _ in expected]
        assert [score for _, score in ranked] == [score for _, score in expected]


@pytest.mark.parametrize("block", [1, 7, 100])
def test_block_size_does_not_change_the_run(block, monkeypatch):
    corpus = texts(250, seed=1) + [(f"twin{i}", "identical cat twins") for i in range(40)]
    complete = search(corpus, QUERIES | {"twins": "twin"}, top_k=20)
    assert [len(ranked) for ranked in complete.values()] == [20] * 4
    monkeypatch.setattr(bm25, "BLOCK_SIZE", block)
    assert search(corpus, QUERIES | {"twins": "twin"}, top_k=20) == complete


def test_corpus_may_be_a_stream(monkeypatch):
    monkeypatch.setattr(bm25, "BLOCK_SIZE", 10)
    assert (
        search(iter(texts(35)), {"q": "cat"}, top_k=3)["q"] == search(texts(35), {"q": "cat"}, top_k=3)["q"]
    )


def test_top_positions_include_all_ties_with_the_last():
    scores = np.array([0, 3, 1, 2, 2, 0, 2], dtype=np.float32)
    assert top_positions(scores, 2, least=0.5).tolist() == [1, 3, 4, 6]
    assert top_positions(scores, 10, least=0.5).tolist() == [1, 2, 3, 4, 6]
    assert top_positions(scores, 10, least=2.0).tolist() == [1, 3, 4, 6]
