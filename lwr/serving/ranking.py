"""Scoring and ranking of one request, within the limits of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.exits import CompressionStep, describe_layers
from lwr.formats.calibration import Logistic, lines_of_layers
from lwr.model.cascade_schedule import Deadline, Schedule, plan_ranking
from lwr.model.prompt import PromptTooLong
from lwr.model.reranker import LayerwiseReranker, logistic
from lwr.serving.admission import Limits
from lwr.serving.errors import Refused
from lwr.serving.worker import Exits, ScoredPassages, TimedPass, Worker


@dataclass(frozen=True)
class Ranking:
    """A request's documents, ranked."""

    best_first: list[int]  # indices of documents
    scores: list[float]  # of each document, in the request's order
    relevance: list[float]  # the same in 0..1
    tokens: int  # of all pairs together
    layer: int | None = None  # the exit that ranked, where a budget of time chose it


@dataclass(frozen=True)
class Ranker:
    """A worker, what ranks by default, and the limits of a request.

    Attributes:
        worker: The worker.
        schedule: The schedule that ranks where a request names no layer and there is no budget.
        limits: The limits.
        fused: Whether scores are fused.
        budget_ms: The budget of requests that name neither a layer nor a budget of their own; None: there is none.
    """

    worker: Worker
    schedule: Schedule
    limits: Limits
    fused: bool = False
    budget_ms: float | None = None

    @property
    def reranker(self) -> LayerwiseReranker:
        """The worker's reranker."""
        return self.worker.reranker

    @property
    def exits(self) -> list[int]:
        """The layers that have a head."""
        return self.reranker.exits

    def describe_depth(self) -> str:
        """Return what ranks by default, as text."""
        return str(self.schedule) if self.budget_ms is None else f"deepest exit within {self.budget_ms:g} ms"

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        layer: int | None,
        first_stage: Sequence[float] | None = None,
        compression: str | None = None,
        budget_ms: float | None = None,
        instruction: str | None = None,
        probabilities: bool = False,
    ) -> Ranking:
        """Rank documents by one exit, by what a budget of time allows, or by the server's schedule.

        The scores of a cascade are reciprocal ranks: its documents leave it at different exits, whose scores are not
        comparable. The time that a request waits counts for its budget.

        Args:
            query: The query.
            documents: The documents.
            layer: The exit that ranks.
            first_stage: The score of each document from the first stage.
            compression: How documents are compressed.
            budget_ms: The budget in milliseconds, from now on; the deepest exit that is reached in time ranks.
            instruction: The text in place of the instruction of the model's prompt.
            probabilities: Whether `relevance` is the calibrated probability.

        Raises:
            Refused: A limit is exceeded, `layer` has no head, `compression` is too deep or not possible (409),
                `budget_ms` is given with `layer` or `compression` (409), the prompt has no place for `instruction`, or
                too few tokens (409), there are no probabilities of what ranks (409), or `first_stage` is missing, has
                no use, or is not one finite number per document.
        """
        if budget_ms is not None and (layer is not None or compression is not None):
            raise Refused(409, "budget_ms chooses the exit: leave out layer and compression")
        if budget_ms is None and layer is None and compression is None:
            budget_ms = self.budget_ms
        if budget_ms is not None:
            deadline = Deadline.after(budget_ms)
            return await self._rank_in_time(
                query, documents, deadline, first_stage, instruction, probabilities
            )
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
        if probabilities and is_cascade:
            raise Refused(409, f"probabilities: cascade {schedule} ranks by several exits; name a layer")
        lines = self._lines([schedule.last], schedule.steps, first_stage) if probabilities else None
        is_own_pass = is_cascade or schedule.compression is not None
        scored = await self.score(query, documents, plan if is_own_pass else plan.layers, instruction)
        scores = (scored.scores[0] if is_own_pass else plan.fuse(scored.scores)).astype(np.float64)
        relevance = scores if is_cascade else _relevance(scores, schedule.last, lines)
        best_first = np.argsort(-scores, kind="stable")
        return Ranking(best_first.tolist(), scores.tolist(), relevance.tolist(), int(scored.tokens.sum()))

    async def _rank_in_time(
        self,
        query: str,
        documents: Sequence[str],
        deadline: Deadline,
        first_stage: Sequence[float] | None,
        instruction: str | None,
        probabilities: bool,
    ) -> Ranking:
        """Rank documents by the deepest exit that is reached before a deadline."""
        try:  # the same for each exit
            plan_ranking(
                Schedule.single(self.exits[0]), len(documents), first_stage, self.reranker.fusion, self.fused
            )
        except ValueError as error:
            raise Refused(422, str(error)) from None
        lines = self._lines(self.exits, (), first_stage) if probabilities else None
        exits = TimedPass(deadline, first_stage, self.fused)
        scored = await self.score(query, documents, exits, instruction)
        scores = scored.scores[0].astype(np.float64)
        best_first = np.argsort(-scores, kind="stable").tolist()
        tokens = int(scored.tokens.sum())
        relevance = _relevance(scores, cast(int, scored.layer), lines)
        return Ranking(best_first, scores.tolist(), relevance.tolist(), tokens, scored.layer)

    def _lines(
        self, layers: Sequence[int], steps: Sequence[CompressionStep], first_stage: Sequence[float] | None
    ) -> dict[int, Logistic]:
        """Return the lines that turn scores of layers into probabilities. Raises Refused (409) if there are none."""
        try:
            calibration = self.reranker.calibration
            return lines_of_layers(calibration, layers, steps, self.fused, first_stage is not None)
        except ValueError as error:
            raise Refused(409, f"probabilities: {error}") from None

    async def score(
        self, query: str, documents: Sequence[str], exits: Exits, instruction: str | None = None
    ) -> ScoredPassages:
        """Score documents at the layers `exits`, or in a pass of its own.

        Raises:
            Refused: A limit is exceeded, or the prompt has no place for `instruction`, or too few tokens (409).
        """
        limits = self.limits
        if len(documents) > limits.documents:
            raise Refused(
                422, f"{len(documents)} documents; at most {limits.documents}, send several requests"
            )
        longest = max(map(len, [query, instruction or "", *documents]))
        if longest > limits.characters:
            raise Refused(
                422, f"a text has {longest} characters; at most {limits.characters}, send parts of it"
            )
        try:
            prompts = self.reranker.prompt.with_instruction(instruction)
            return await asyncio.wrap_future(self.worker.submit(query, documents, exits, prompts))
        except (BadInput, PromptTooLong) as error:
            raise Refused(409, str(error)) from None


def _relevance(scores: np.ndarray, layer: int, lines: Mapping[int, Logistic] | None) -> np.ndarray:
    """Map scores to 0..1 by the line of their layer; None: by the logistic function alone."""
    return logistic(scores) if lines is None else lines[layer].probabilities(scores)
