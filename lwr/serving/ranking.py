"""Scoring and ranking of one request, within the limits of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwr.model.cascade_schedule import Schedule
from lwr.model.reranker import LayerwiseReranker, logistic
from lwr.serving.admission import Limits
from lwr.serving.errors import Refused
from lwr.serving.worker import ScoredPassages, Worker


@dataclass(frozen=True)
class Ranking:
    """A request's documents, ranked."""

    best_first: list[int]  # indices of documents
    scores: list[float]  # of each document, in the request's order
    relevance: list[float]  # the same in 0..1
    tokens: int  # of all pairs together


@dataclass(frozen=True)
class Ranker:
    """A worker, the schedule that ranks by default, and the limits of a request."""

    worker: Worker
    schedule: Schedule
    limits: Limits

    @property
    def reranker(self) -> LayerwiseReranker:
        """The worker's reranker."""
        return self.worker.reranker

    @property
    def exits(self) -> list[int]:
        """The layers that have a head."""
        return self.reranker.exits

    async def rank(self, query: str, documents: Sequence[str], layer: int | None) -> Ranking:
        """Rank documents by one exit, or, where `layer` is None, by the server's schedule.

        The scores of a cascade are reciprocal ranks: its documents leave it at different exits, whose scores are not
        comparable.

        Raises:
            Refused: A limit is exceeded, or `layer` has no head.
        """
        if layer is not None and layer not in self.exits:
            raise Refused(422, f"layer is {layer}, but exits are {self.exits[0]}..{self.exits[-1]}")
        is_cascade = layer is None and len(self.schedule.keep) > 0
        scored = await self.score(
            query, documents, self.schedule if is_cascade else [layer or self.schedule.last]
        )
        scores = scored.scores[0].astype(np.float64)
        relevance = scores if is_cascade else logistic(scores)
        best_first = np.argsort(-scores, kind="stable")
        return Ranking(best_first.tolist(), scores.tolist(), relevance.tolist(), int(scored.tokens.sum()))

    async def score(
        self, query: str, documents: Sequence[str], exits: Sequence[int] | Schedule
    ) -> ScoredPassages:
        """Score documents at the layers `exits`, or rank them by a cascade. Raises Refused if a limit is exceeded."""
        limits = self.limits
        if len(documents) > limits.documents:
            raise Refused(
                422, f"{len(documents)} documents; at most {limits.documents}, send several requests"
            )
        longest = max(map(len, [query, *documents]))
        if longest > limits.characters:
            raise Refused(
                422, f"a text has {longest} characters; at most {limits.characters}, send parts of it"
            )
        return await asyncio.wrap_future(self.worker.submit(query, documents, exits))
