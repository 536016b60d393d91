"""One query's candidates, best first: by one exit, or by a cascade in a single forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lwr.batching import pad
from lwr.cascade import Schedule
from lwr.reranker import LayerwiseReranker
from lwr.score import score_rows


def rank(
    reranker: LayerwiseReranker,
    query: str,
    passages: Sequence[str],
    schedule: Schedule,
    tokens_per_batch: int | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """Indices of the passages from best to worst, int64; of equals the first given comes first.

    The candidates of a cascade share one batch, whatever their number; those of one exit are batched by length.
    The reranker must be in evaluation mode.
    """
    rows = reranker.prompt.rows([(query, passage) for passage in passages])
    if not schedule.keep or not rows:
        (scores,) = score_rows(reranker, rows, [schedule.last], tokens_per_batch, precision)
        return np.argsort(-scores, kind="stable")
    device = reranker.heads[0].device
    features = {name: tensor.to(device) for name, tensor in pad(rows, reranker.tokenizer).items()}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = reranker.cascade(features, dict(schedule.keep), schedule.last).cpu().numpy()
    last_read = (~np.isnan(scores)).sum(axis=0) - 1  # who left late, stands above who left early
    return np.lexsort((-scores[last_read, np.arange(len(rows))], -last_read))
