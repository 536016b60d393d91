"""Rank passages by the cosine of embeddings: exact search, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.progress import show_progress
from lwr.config.data.first_stage import EmbeddingFirstStage
from lwr.data.best import BestPassages
from lwr.formats.beir import Split, read_corpus, read_queries
from lwr.formats.embeddings import DESCRIPTION, Embeddings, digest_texts, read_embeddings
from lwr.formats.trec import Run

SCORES_AT_ONCE = 2**24
"""Cosines that memory holds at the same time: 64 MiB."""


def search(
    embeddings: Embeddings, collection: Path, split: Split, query_ids: Iterable[str], top_k: int
) -> Run:
    """Return the `top_k` passages of a split's corpus whose embeddings have the highest cosine with each query's.

    Memory holds the vectors of the queries and of one block of passages.

    Args:
        embeddings: The embeddings of the collection.
        collection: Folder in BEIR layout.
        split: Whose corpus to search.
        query_ids: The queries to search for.
        top_k: Candidates per query.

    Raises:
        BadInput: A file of the embeddings is damaged.
    """
    position = {query_id: i for i, query_id in enumerate(read_queries(collection))}
    names = list(query_ids)
    queries = embeddings.read_queries()[[position[name] for name in names]]  # [queries, H]
    best = BestPassages(names, top_k, least=-np.inf)
    passages = read_corpus(collection, quiet=True)
    blocks = show_progress(
        embeddings.read_blocks(), embeddings.block_count, "search", "blocks", only_if_long=True
    )
    for block in blocks:
        of_block = list(islice(passages, len(block)))
        searched = [i for i, passage in enumerate(of_block) if passage.split in (None, split)]
        doc_ids = [of_block[i].doc_id for i in searched]
        vectors = block[searched].T  # [H, passages]
        at_once = max(1, SCORES_AT_ONCE // max(1, len(doc_ids)))
        for start in range(0, len(names), at_once):
            cosines = queries[start : start + at_once] @ vectors  # [queries, passages]
            for name, scores in zip(names[start : start + at_once], cosines, strict=True):
                best.add(name, doc_ids, scores)
    return best.as_run()


def read_embeddings_of(folder: Path, collection: Path, first_stage: EmbeddingFirstStage) -> Embeddings:
    """Read embeddings that belong to a collection and to the model of a first stage.

    Raises:
        BadInput: They are of other texts or of another model, or cannot be read.
    """
    embeddings = read_embeddings(folder)
    where = folder / DESCRIPTION
    for name, digest in digest_texts(collection).items():
        if embeddings.description["inputs"].get(name) != digest:
            raise BadInput(f"{where}: made of another {name} than {collection} has; run `lwr embed` again")
    for key, made_with in embeddings.description["settings"].items():
        wanted = getattr(first_stage, key, None)
        if made_with != wanted:
            raise BadInput(
                f"{where}: made with {key} {made_with!r}, but first_stage has {wanted!r}; run `lwr embed` again"
            )
    return embeddings
