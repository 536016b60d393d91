"""Score with a cross-encoder: a sequence classifier with one label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lwr.config.teachers.sections import CrossEncoderTeacher
from lwr.model.batching import choose_pad_id
from lwr.model.loading import count_embeddings
from lwr.scoring.loading import load_checkpoint
from lwr.scoring.query_candidates import QueryCandidates, tokenize_ahead
from lwr.scoring.teachers.loading import make_prompt


def score_with_cross_encoder(
    teacher: CrossEncoderTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and the logits of their pairs, float32 [pairs], query by query.

    Pairs are written in the tokenizer's format. No activation is applied: the loss wants logits.

    Raises:
        BadInput: The checkpoint is missing, damaged, or has more labels than one.
    """
    loaded = load_checkpoint(teacher, AutoModelForSequenceClassification, "right")
    prompt = make_prompt(teacher, loaded, None)
    # decoders look for the last token that is not padding
    loaded.model.config.pad_token_id = choose_pad_id(loaded.tokenizer, count_embeddings(loaded.model))

    def compute_batch(features: dict[str, Tensor]) -> Tensor:
        return loaded.model(**features).logits[:, 0]  # [B]

    for chunk, rows in tokenize_ahead(prompt, queries):
        yield chunk, loaded.compute(rows, compute_batch, on_scored).numpy()
