"""Scoring and ranking of one request, within the limits of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwr.common.exits import describe_layers
from lwr.model.cascade_schedule import RankingPlan, Schedule, plan_ranking
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
    """A worker, the schedule that ranks by default, the limits of a request, and whether scores are fused."""

    worker: Worker
    schedule: Schedule
    limits: Limits
    fused: bool = False

    @property
    def reranker(self) -> LayerwiseReranker:
        """The worker's reranker."""
        return self.worker.reranker

    @property
    def exits(self) -> list[int]:
        """The layers that have a head."""
        return self.reranker.exits

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        layer: int | None,
        first_stage: Sequence[float] | None = None,
        compression: str | None = None,
    ) -> Ranking:
        """Rank documents by one exit, or, where `layer` is None, by the server's schedule; compress them if asked to.

        The scores of a cascade are reciprocal ranks: its documents leave it at different exits, whose scores are not
        comparable.

        Raises:
            Refused: A limit is exceeded, `layer` has no head, `compression` is too deep or not possible (409), or
                `first_stage` is missing, has no use, or is not one finite number per document.
        """
        if layer is not None and layer not in self.exits:
            raise Refused(422, f"layer is {layer}, but exits are {describe_layers(self.exits)}")
        schedule = self.schedule if layer is None else Schedule.single(layer)
        try:
            if compression is not None:
                schedule = schedule.compress(compression)
            if schedule.compression is not None:
                self.reranker.check_compression(schedule.compression)
        except ValueError as error:
            raise Refused(409, str(error)) from None
        try:
            plan = plan_ranking(schedule, len(documents), first_stage, self.reranker.fusion, self.fused)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        is_cascade = len(schedule.keep) > 0
        is_own_pass = is_cascade or schedule.compression is not None
        scored = await self.score(query, documents, plan if is_own_pass else plan.layers)
        scores = (scored.scores[0] if is_own_pass else plan.fuse(scored.scores)).astype(np.float64)
        relevance = scores if is_cascade else logistic(scores)
        best_first = np.argsort(-scores, kind="stable")
        return Ranking(best_first.tolist(), scores.tolist(), relevance.tolist(), int(scored.tokens.sum()))

    async def score(
        self, query: str, documents: Sequence[str], exits: Sequence[int] | RankingPlan
    ) -> ScoredPassages:
        """Score documents at the layers `exits`, or by a plan. Raises Refused if a limit is exceeded."""
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
