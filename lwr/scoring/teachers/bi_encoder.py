"""Score with a bi-encoder: the cosine of the embeddings of query and passage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from lwr.common.errors import BadInput
from lwr.config.teachers.sections import BiEncoderTeacher
from lwr.model.loading import count_positions
from lwr.model.prompt import Row
from lwr.scoring.score import QueryCandidates, split_into_chunks
from lwr.scoring.teachers.loading import LoadedTeacher, load_teacher


def score_with_bi_encoder(
    teacher: BiEncoderTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and `scale` times the cosines of their pairs, float32 [pairs], query by query.

    Each passage is embedded once; memory holds all embeddings. The count of pairs grows by chunk.

    Raises:
        BadInput: The checkpoint is missing or damaged, or texts may be longer than it has positions.
    """
    loaded = load_teacher(teacher, AutoModel, "right")
    positions = count_positions(loaded.model)
    if positions is not None and teacher.max_len > positions:
        raise BadInput(
            f"max_len is {teacher.max_len}, but {teacher.model} has {positions} positions; lower it to them"
        )
    embedded: dict[str, Tensor] = {}  # passage id -> float32 [H], of length 1
    for chunk in split_into_chunks(queries):
        texts = {query.query_id: teacher.query_prefix + query.query for query in chunk}
        of_queries = _embed(loaded, teacher, texts)
        passages = (pair for query in chunk for pair in zip(query.doc_ids, query.passages, strict=True))
        new = {doc_id: teacher.passage_prefix + text for doc_id, text in passages if doc_id not in embedded}
        embedded |= _embed(loaded, teacher, new)
        cosines = [
            of_queries[query.query_id] @ embedded[doc_id] for query in chunk for doc_id in query.doc_ids
        ]
        on_scored(len(cosines))
        yield chunk, teacher.scale * torch.stack(cosines).numpy()


def _embed(loaded: LoadedTeacher, teacher: BiEncoderTeacher, texts: Mapping[str, str]) -> dict[str, Tensor]:
    """Return id -> embedding, float32 [H], of length 1."""
    if not texts:
        return {}
    encoded = loaded.tokenizer(list(texts.values()), truncation=True, max_length=teacher.max_len)
    types = encoded.get("token_type_ids") or [None] * len(texts)
    rows = [Row(ids, its_types) for ids, its_types in zip(encoded["input_ids"], types, strict=True)]

    def compute_batch(features: dict[str, Tensor]) -> Tensor:
        states = loaded.model(**features).last_hidden_state.float()  # [B, tokens, H]
        if teacher.pooling == "first":
            pooled = states[:, 0]
        else:
            mask = features["attention_mask"].unsqueeze(-1)  # [B, tokens, 1]
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1)  # [B, H]

    return dict(zip(texts, loaded.compute(rows, compute_batch), strict=True))
