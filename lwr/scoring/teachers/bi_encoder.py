"""Score with a bi-encoder: the cosine of the embeddings of query and passage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lwr.config.teachers.sections import BiEncoderTeacher
from lwr.scoring.bi_encoder import BiEncoder
from lwr.scoring.query_candidates import QueryCandidates, split_into_chunks


def score_with_bi_encoder(
    teacher: BiEncoderTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and `scale` times the cosines of their pairs, float32 [pairs], query by query.

    Each passage is embedded once; memory holds all embeddings. The count of pairs grows by chunk.

    Raises:
        BadInput: The checkpoint is missing or damaged, or texts may be longer than it has positions.
    """
    encoder = BiEncoder.load(teacher)
    embedded: dict[str, np.ndarray] = {}  # passage id -> float32 [H], of length 1
    for chunk in split_into_chunks(queries):
        of_queries = encoder.embed_queries([query.query for query in chunk])  # [queries, H]
        passages = (pair for query in chunk for pair in zip(query.doc_ids, query.passages, strict=True))
        new = {doc_id: text for doc_id, text in passages if doc_id not in embedded}
        embedded |= dict(zip(new, encoder.embed_passages(list(new.values())), strict=True))
        cosines = [
            vector @ embedded[doc_id]
            for vector, query in zip(of_queries, chunk, strict=True)
            for doc_id in query.doc_ids
        ]
        on_scored(len(cosines))
        yield chunk, np.float32(teacher.scale) * np.array(cosines, dtype=np.float32)
