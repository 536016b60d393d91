"""Requests that wait together are scored together: one thread owns the model, all others hand it what to score."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np

from lwr.config.evaluation import ScoringConfig
from lwr.model.cascade_schedule import Schedule
from lwr.model.prompt import Row
from lwr.model.reranker import LayerwiseReranker


@dataclass(frozen=True)
class Scored:
    """scores: float32 [layers asked for, passages]. tokens: int64 [passages], of each pair as the backbone reads it."""

    scores: np.ndarray
    tokens: np.ndarray


@dataclass
class Job:
    """Passages to score at some layers, or by a cascade, whose one row of scores are reciprocal ranks."""

    query: str
    passages: Sequence[str]
    depth: Sequence[int] | Schedule
    answer: Future[Scored] = field(default_factory=Future)
    rows: list[Row] = field(default_factory=list)  # once it is tokenised


class Worker:
    """Takes jobs in the order they come. Whoever waits when it is free shares one call of `score_rows`, up to the
    deepest layer that one of them asks for, until their tokens fill a batch; a cascade is ranked by itself.

    In float32 the scores are those of a job scored alone, to 1e-5, whoever shares the call.
    """

    def __init__(self, reranker: LayerwiseReranker, scoring: ScoringConfig):
        """reranker: in evaluation mode; until `close`, neither it nor its tokenizer may be used by another thread."""
        self.reranker, self.scoring = reranker, scoring
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="lwr-worker", daemon=True)
        self._thread.start()

    def submit(self, query: str, passages: Sequence[str], depth: Sequence[int] | Schedule) -> Future[Scored]:
        """From any thread. What is cancelled before its turn is not computed; the future raises what scoring raised."""
        job = Job(query, passages, depth)
        self._waiting.put(job)
        return job.answer

    def close(self) -> None:
        """Answer what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        budget = self.scoring.tokens_per_batch or self.reranker.default_tokens_per_batch
        while (job := self._waiting.get()) is not None:
            together, tokens = [], 0
            while job is not None:
                if self._begin(job):
                    together.append(job)
                    tokens += sum(map(len, job.rows))
                job = self._another() if tokens < budget else None
            at_exits = [job for job in together if not isinstance(job.depth, Schedule)]
            self._answer(at_exits)
            for job in together:
                if isinstance(job.depth, Schedule):
                    self._answer([job])

    def _another(self) -> Job | None:
        """Who waits already. None: nobody, or it is time to close."""
        try:
            job = self._waiting.get_nowait()
        except Empty:
            return None
        if job is None:
            self._waiting.put(None)
        return job

    def _begin(self, job: Job) -> bool:
        """Tokenise it. False where it was cancelled, or could not be tokenised."""
        if not job.answer.set_running_or_notify_cancel():
            return False
        try:
            job.rows = self.reranker.prompt.rows([(job.query, passage) for passage in job.passages])
        except Exception as error:
            job.answer.set_exception(error)
            return False
        return True

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Of jobs at exits, or of one cascade. What fails together is tried apart: one must not fail the others."""
        try:
            scores = [self._ranked(job) for job in jobs if isinstance(job.depth, Schedule)] or self._scored(
                jobs
            )
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, of_job in zip(jobs, scores, strict=True):
            job.answer.set_result(Scored(of_job, np.array(list(map(len, job.rows)))))

    def _scored(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        rows = [row for job in jobs for row in job.rows]
        if not rows:
            return []
        layers = sorted({layer for job in jobs for layer in job.depth})
        how = self.scoring
        scores = self.reranker.score_rows(rows, layers, how.tokens_per_batch, how.precision)
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"a score in {how.precision} is not finite; look at the weights")
        ends = np.cumsum([len(job.rows) for job in jobs])
        return [
            part[[layers.index(layer) for layer in job.depth]]
            for job, part in zip(jobs, np.split(scores, ends[:-1], axis=1), strict=True)
        ]

    def _ranked(self, job: Job) -> np.ndarray:
        how = self.scoring
        order = self.reranker.rank_rows(job.rows, job.depth, how.tokens_per_batch, how.precision).order
        scores = np.empty((1, len(order)), dtype=np.float32)
        scores[0, order] = 1 / np.arange(1, len(order) + 1)
        return scores
