"""Whether a graph scores as the reranker does, on queries and passages from Python's own library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from lwr.data.sources.python_docs import find_modules, read_pairs
from lwr.export.classifier import TOLERANCE, fit_pairs
from lwr.export.pair_tokenizer import PairTokenizer
from lwr.model.reranker import LayerwiseReranker

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Computes float32 [rows] from the tokenizer's features."""

PACKAGES = ("shutil", "statistics")
QUERIES = 8
"""Number of queries; each is scored with the passages of all of them."""
MAX_CHARACTERS = 400  # of a passage
MIN_CORRELATION = 0.9
"""Smallest accepted rank correlation of an approximate graph."""


@dataclass(frozen=True)
class Agreement:
    """How a graph's scores compare with the reranker's.

    Attributes:
        score: The reranker's score of the README's pair.
        difference: The largest difference.
        largest: The largest absolute score of the reranker.
        correlation: Spearman's rank correlation, the mean over queries.
        pairs: The number of pairs.
    """

    score: float
    difference: float
    largest: float
    correlation: float
    pairs: int


def sample_pairs() -> list[tuple[str, str]]:
    """Return QUERIES² pairs, query by query: the first sentence of a function's docstring, and a function's code."""
    documented = [
        list(islice(read_pairs(path, module, "test"), QUERIES // len(PACKAGES)))
        for package in PACKAGES
        for module, path in find_modules(package)
    ]
    codes = [each for of_module in documented for each in of_module]
    return [(query.query, passage.code[:MAX_CHARACTERS]) for query in codes for passage in codes]


@torch.inference_mode()
def measure_agreement(reranker: LayerwiseReranker, layer: int, pair: PairTokenizer, run: Run) -> Agreement:
    """Score pairs by the reranker and by a graph, a query's passages in one batch. Both read the same tokens."""
    (sample, *_), pairs = fit_pairs(reranker.prompt), sample_pairs()
    expected, actual = [], []
    for batch in ([sample], *(pairs[i : i + QUERIES] for i in range(0, len(pairs), QUERIES))):
        queries, passages = zip(*(pair.write(*texts) for texts in batch), strict=True)
        features = pair.tokenizer(
            list(queries), list(passages), padding=True, truncation=True, return_tensors="pt"
        )
        expected.append(reranker.encode(features, [layer])[0].numpy())
        actual.append(run({name: tensor.numpy() for name, tensor in features.items()}))
    correlations = [_rank_correlation(*each) for each in zip(expected[1:], actual[1:], strict=True)]
    ours, theirs = np.concatenate(expected), np.concatenate(actual)
    return Agreement(
        score=float(ours[0]),
        difference=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(ours).max()),
        correlation=float(np.mean(correlations)),
        pairs=len(pairs),
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 if all values of one are equal."""
    from scipy.stats import rankdata

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def check_agreement(agreement: Agreement, approximate: bool, name: str) -> None:
    """Refuse a graph whose scores are not the reranker's.

    Args:
        agreement: What was measured.
        approximate: Whether the order is compared, and not the scores.
        name: What the message calls the graph.

    Raises:
        ValueError: The largest difference is above TOLERANCE, times the largest score if that is above 1; or, if
            approximate, the rank correlation is below MIN_CORRELATION.
    """
    if approximate and not agreement.correlation >= MIN_CORRELATION:
        raise ValueError(
            f"{name}: it orders the passages of a query otherwise than the reranker does; their rank correlation is "
            f"{agreement.correlation:.2f} on {agreement.pairs} pairs, and {MIN_CORRELATION} is needed; export "
            "in float32"
        )
    if not approximate and not agreement.difference <= TOLERANCE * max(1, agreement.largest):
        raise ValueError(
            f"{name}: its scores differ from the reranker's by up to {agreement.difference:.2g}; serve this reranker "
            "with lwr"
        )
