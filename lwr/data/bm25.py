"""Rank passages by BM25, over a corpus of any size.

This is our own code and not the package bm25s, because it streams the corpus, knows the queries in advance and breaks
ties by a fixed rule; a test compares its scores (Lucene's variant of BM25) with those of bm25s.

As the queries are known, only the postings of their words are kept. They are written to disk, block by block. Memory
holds one block of passages and the best passages of each query so far.
"""

from __future__ import annotations

import pickle
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

import numpy as np

from lwr.common.progress import show_progress
from lwr.data.best import BestPassages
from lwr.data.words import Tokenize
from lwr.formats.trec import Run

BLOCK_SIZE = 50_000
"""Passages per block."""
SMALLEST_SCORE = float(np.finfo(np.float32).smallest_subnormal)
"""Candidates score at least this: above 0."""


@dataclass(frozen=True)
class Block:
    """Consecutive passages and their postings: how often a word of the vocabulary occurs in a passage."""

    doc_ids: list[str]
    lengths: np.ndarray  # int32 [passages], in words
    words: np.ndarray  # int32 [postings], positions in the vocabulary, ascending
    docs: np.ndarray  # int32 [postings], positions in doc_ids
    counts: np.ndarray  # int32 [postings]


@dataclass(frozen=True)
class Index:
    """A file of blocks, and the statistics of the corpus on which the scores of each block depend."""

    file: IO[bytes]
    block_count: int
    passage_count: int
    word_count: int  # of all passages together
    document_frequencies: np.ndarray  # int64 [vocabulary], number of passages that contain the word

    def read_blocks(self) -> Iterator[Block]:
        """Stream the blocks from the start of the file."""
        self.file.seek(0)
        for _ in range(self.block_count):
            yield pickle.load(self.file)


def build_index(
    texts: Iterable[tuple[str, str]], vocabulary: dict[str, int], tokenize: Tokenize, file: IO[bytes]
) -> Index:
    """Index a corpus.

    Args:
        texts: (passage id, text), read once.
        vocabulary: Word of the queries -> its number, counted from 0.
        tokenize: Splits a text into words, as the queries were split.
        file: The file that the blocks are written to.
    """
    blocks = passages = words = 0
    frequencies = np.zeros(len(vocabulary), dtype=np.int64)
    texts = iter(texts)
    while (block := _build_block(islice(texts, BLOCK_SIZE), vocabulary, tokenize)).doc_ids:
        pickle.dump(block, file)
        blocks += 1
        passages += len(block.doc_ids)
        words += int(block.lengths.sum())
        frequencies += np.bincount(block.words, minlength=len(vocabulary))
    return Index(file, blocks, passages, words, frequencies)


def _build_block(texts: Iterable[tuple[str, str]], vocabulary: dict[str, int], tokenize: Tokenize) -> Block:
    doc_ids: list[str] = []
    lengths, words, docs, counts = array("i"), array("i"), array("i"), array("i")
    for doc, (doc_id, text) in enumerate(texts):
        tokens = tokenize(text)
        occurrences = Counter(vocabulary[token] for token in tokens if token in vocabulary)
        doc_ids.append(doc_id)
        lengths.append(len(tokens))
        words.extend(occurrences.keys())
        counts.extend(occurrences.values())
        docs.extend([doc] * len(occurrences))
    order = np.argsort(np.array(words), kind="stable")  # [postings]
    return Block(doc_ids, np.array(lengths), *(np.array(column)[order] for column in (words, docs, counts)))


def search(index: Index, queries: dict[str, list[int]], top_k: int, k1: float, b: float) -> Run:
    """Return the `top_k` best passages of each query; a query without a match is left out.

    Candidates score above 0. Ties are broken by `lwr.formats.trec.ranking_key`, also at the last rank.

    Args:
        index: The corpus.
        queries: Query id -> numbers of its words in the vocabulary.
        top_k: Candidates per query.
        k1: Saturation of repeated words; higher saturates later.
        b: Strength of the penalty on long passages, from 0 to 1.
    """
    frequencies = index.document_frequencies
    idf = np.log(1 + (index.passage_count - frequencies + 0.5) / (frequencies + 0.5))
    idf = idf.astype(np.float32)  # [vocabulary]
    best = BestPassages(queries, top_k, SMALLEST_SCORE)
    blocks = show_progress(index.read_blocks(), index.block_count, "search", "blocks", only_if_long=True)
    for block in blocks:
        weights = _posting_weights(block, index, idf, k1, b)
        starts = np.searchsorted(block.words, np.arange(len(idf)))  # [vocabulary], positions of postings
        ends = np.searchsorted(block.words, np.arange(len(idf)), side="right")
        for query_id, words in queries.items():
            scores = np.zeros(len(block.doc_ids), dtype=np.float32)  # [passages]
            for word in words:
                postings = slice(starts[word], ends[word])
                scores[block.docs[postings]] += weights[postings]
            best.add(query_id, block.doc_ids, scores)
    return best.as_run()


def _posting_weights(block: Block, index: Index, idf: np.ndarray, k1: float, b: float) -> np.ndarray:
    """Return what each posting adds to the score of its passage: float32 [postings]."""
    mean_length = index.word_count / index.passage_count
    norms = k1 * ((1 - b) + b * block.lengths / mean_length)  # [passages]
    saturation = block.counts / (norms[block.docs] + block.counts)  # [postings]
    return (idf[block.words] * saturation).astype(np.float32)
