"""Score with a layerwise reranker at one layer: alone, or fused with all shallower exits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.exits import describe_layers, exit_name, layer_of
from lwr.config.evaluation import ScoringConfig
from lwr.config.teachers.sections import LayerwiseTeacher
from lwr.formats.fusion import fuse_scores
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import read_fusion_of, read_stored_exits
from lwr.scoring.query_candidates import QueryCandidates, score_in_chunks


def score_with_layerwise(
    teacher: LayerwiseTeacher, queries: Sequence[QueryCandidates], on_scored: Callable[[int], object]
) -> Iterator[tuple[Sequence[QueryCandidates], np.ndarray]]:
    """Yield chunks of queries, and the scores of their pairs, float64 [pairs], query by query.

    Raises:
        BadInput: There is no reranker, the layer has no head, or the weights of fused scores are of other exits.
        FloatingPointError: A score is not finite.
    """
    exits = read_stored_exits(teacher.model, teacher.revision)
    if teacher.layer not in exits:
        raise BadInput(
            f"{teacher.model}: layer {teacher.layer} has no head; exits are {describe_layers(exits)}"
        )
    weights = {exit_name(teacher.layer): 1.0}
    if teacher.fusion is not None:
        weights = read_fusion_of(Path(teacher.fusion), exits).weights(teacher.layer, has_first_stage=False)
    reranker = LayerwiseReranker.from_pretrained(
        teacher.model, revision=teacher.revision, precision=teacher.precision
    )
    settings = ScoringConfig(precision=teacher.precision, tokens_per_batch=teacher.tokens_per_batch)
    layers = [layer_of(name) for name in weights]
    for chunk, _, scores in score_in_chunks(reranker, queries, layers, settings, on_scored):
        yield chunk, fuse_scores(weights, dict(zip(weights, scores.astype(np.float64), strict=True)))
