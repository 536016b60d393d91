"""BM25 over a corpus of any size: memory holds one block of passages, and of each query its best so far.

The scores are those of Lucene's variant, as the package bm25s computes them. What is known of the queries
before the corpus is read makes this small: only postings of their words are kept, on disk, block after block.
"""

from __future__ import annotations

import pickle
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO

import numpy as np
import Stemmer

from lwr.formats.trec import Run, best_first, ranking_key

BLOCK = 50_000  # passages
WORD = re.compile(r"\b\w\w+\b")
STOP_WORDS = frozenset(  # Lucene's
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with".split()
)
STEM = lru_cache(2**16)(Stemmer.Stemmer("english", 0).stemWord)  # faster than the stemmer's own cache
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)  # a candidate scores at least this: above 0


def words(text: str) -> list[str]:
    """Lower-cased words of two letters and more, without English stop words, stemmed (Snowball English)."""
    return [STEM(word) for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


@dataclass(frozen=True)
class Block:
    """Some passages, and the postings of the words asked for: which stands in which passage, how often."""

    doc_ids: list[str]
    lengths: np.ndarray  # int32 [passages], in words
    words: np.ndarray  # int32 [postings], numbers in the vocabulary, ascending
    docs: np.ndarray  # int32 [postings], positions in doc_ids
    counts: np.ndarray  # int32 [postings]


@dataclass(frozen=True)
class Index:
    """A file of blocks, and what BM25 has to know of the whole corpus before it scores the first."""

    file: IO[bytes]
    blocks: int
    passages: int
    words: int
    frequencies: np.ndarray  # int64 [vocabulary], passages that hold the word

    def read(self) -> Iterator[Block]:
        self.file.seek(0)
        for _ in range(self.blocks):
            yield pickle.load(self.file)


def build(texts: Iterable[tuple[str, str]], vocabulary: dict[str, int], file: IO[bytes]) -> Index:
    """Write the blocks of (passage id, text) to `file`. vocabulary: word -> number from 0, of the queries' words."""
    blocks = passages = total = 0
    frequencies = np.zeros(len(vocabulary), dtype=np.int64)
    texts = iter(texts)
    while (block := _block(islice(texts, BLOCK), vocabulary)).doc_ids:
        pickle.dump(block, file)
        blocks += 1
        passages += len(block.doc_ids)
        total += int(block.lengths.sum())
        frequencies += np.bincount(block.words, minlength=len(vocabulary))
    return Index(file, blocks, passages, total, frequencies)


def _block(texts: Iterable[tuple[str, str]], vocabulary: dict[str, int]) -> Block:
    doc_ids: list[str] = []
    lengths, numbers, docs, counts = array("i"), array("i"), array("i"), array("i")
    for doc, (doc_id, text) in enumerate(texts):
        found = words(text)
        held = Counter(vocabulary[word] for word in found if word in vocabulary)
        doc_ids.append(doc_id)
        lengths.append(len(found))
        numbers.extend(held.keys())
        counts.extend(held.values())
        docs.extend([doc] * len(held))
    order = np.argsort(np.array(numbers), kind="stable")
    return Block(doc_ids, np.array(lengths), *(np.array(column)[order] for column in (numbers, docs, counts)))


def search(index: Index, queries: dict[str, list[int]], depth: int, k1: float, b: float) -> Run:
    """The `depth` best passages of each query (numbers of its words); a query that nothing matches is left out.

    Candidates score above 0. Ties: `lwr.formats.trec.ranking_key`, also for who is in the last place.
    """
    there = index.frequencies
    idf = np.log(1 + (index.passages - there + 0.5) / (there + 0.5)).astype(np.float32)
    best: dict[str, list[tuple[float, float, str]]] = {query_id: [] for query_id in queries}
    for block in index.read():
        norms = k1 * ((1 - b) + b * block.lengths / (index.words / index.passages))
        weights = idf[block.words] * (block.counts / (norms[block.docs] + block.counts))
        weights = weights.astype(np.float32)
        ends = np.searchsorted(block.words, np.arange(len(idf)), side="right")
        starts = np.searchsorted(block.words, np.arange(len(idf)))
        for query_id, numbers in queries.items():
            scores = np.zeros(len(block.doc_ids), dtype=np.float32)
            for number in numbers:
                postings = slice(starts[number], ends[number])
                scores[block.docs[postings]] += weights[postings]
            kept = best[query_id]
            least = -kept[-1][0] if len(kept) == depth else SMALLEST
            named = ((block.doc_ids[i], scores[i]) for i in candidates(scores, depth, least))
            best[query_id] = sorted([*kept, *((*ranking_key(*pair), pair[0]) for pair in named)])[:depth]
    return {
        query_id: best_first((doc_id, -negated) for negated, _, doc_id in kept)
        for query_id, kept in best.items()
        if kept
    }


def candidates(scores: np.ndarray, depth: int, least: float = SMALLEST) -> np.ndarray:
    """Positions of the `depth` best scores and of all equal to the last of them, unsorted; none below `least`."""
    found = np.flatnonzero(scores >= np.float32(least))
    if len(found) > depth:
        last = np.partition(scores[found], -depth)[-depth]
        found = found[scores[found] >= last]
    return found
