"""One thread that owns the model and scores together the requests that wait together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import cast

import numpy as np

from lwr.config.evaluation import ScoringConfig
from lwr.model.cascade_schedule import Deadline, RankingPlan
from lwr.model.prompt import LinePrompts, Row
from lwr.model.reranker import LayerwiseReranker


@dataclass(frozen=True)
class ScoredPassages:
    """The scores of a request's passages, and how many tokens the backbone read."""

    scores: np.ndarray  # float32 [layers, passages]; of a cascade [1, passages], reciprocal ranks
    tokens: np.ndarray  # int64 [windows of all passages]
    layer: int | None = None  # the exit that a deadline allowed


@dataclass(frozen=True)
class TimedPass:
    """A pass that ends at the deepest exit that is reached before a deadline."""

    deadline: Deadline
    first_stage: Sequence[float] | None
    fused: bool


Exits = Sequence[int] | RankingPlan | TimedPass
"""The layers that a job is scored at, or a pass of its own: a cascade, compressed passages, or one with a deadline."""


@dataclass
class Job:
    """Passages to score."""

    query: str
    passages: Sequence[str]
    exits: Exits
    prompts: LinePrompts = LinePrompts()  # noqa: RUF009 - frozen
    answer: Future[ScoredPassages] = field(default_factory=Future)
    rows: list[Row | None] = field(default_factory=list)  # filled when the job is tokenised; None: not read

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window of a passage that are read."""
        return [len(window) for row in self.rows if row is not None for window in row.windows]


def share_time(timed: TimedPass, behind: Sequence[Job]) -> TimedPass:
    """Return a pass with an earlier deadline, so that each job behind it that has a deadline, too, gets as much time.

    A job whose deadline has passed gets none: it will be answered by the first exit.
    """
    deadline = timed.deadline
    now = deadline.clock()
    waiting = [job.exits for job in behind if isinstance(job.exits, TimedPass) and not job.answer.cancelled()]
    moments = [other.deadline.moment for other in waiting if other.deadline.moment > now]
    share = min((moment - now) / place for place, moment in enumerate([deadline.moment, *moments], start=1))
    return replace(timed, deadline=replace(deadline, moment=now + share))


class WorkerEnded(RuntimeError):
    """The thread has ended, so that a job is not answered."""


class Worker:
    """A thread that scores jobs in the order in which they come.

    The jobs that wait when the thread is free share one call of `score_rows`, up to the deepest layer that one of them
    needs, until their tokens fill a batch. A cascade, compressed passages, and a deadline have a pass of their own. In
    float32, a job's scores equal those of the job scored alone, to 1e-5. Jobs with deadlines that wait together share
    the time: each reads less deep, so that those behind it are in time, too.
    """

    def __init__(self, reranker: LayerwiseReranker, scoring: ScoringConfig):
        """Start the thread.

        Args:
            reranker: The model, in evaluation mode. No other thread may use it or its tokenizer until `close` returns.
            scoring: Tokens per batch, and windows.
        """
        self.reranker, self.scoring = reranker, scoring
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()  # None: close
        self._queue: list[Job] = []  # from `_waiting`, in order
        self._batch: list[Job] = []  # from `_queue`, being answered
        self._is_closing = False
        self._ended = Event()
        self._thread = Thread(target=self._run, name="lwr-worker", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are answered."""
        return not self._ended.is_set()

    def submit(
        self,
        query: str,
        passages: Sequence[str],
        exits: Exits,
        prompts: LinePrompts = LinePrompts(),  # noqa: B008 - frozen
    ) -> Future[ScoredPassages]:
        """Queue passages to be scored, from any thread.

        Args:
            query: The query.
            passages: Its passages.
            exits: The layers to score at, or a pass of its own.
            prompts: What replaces the template's prompts.

        Returns:
            A future that raises what scoring raises, and WorkerEnded if the thread has ended. A job that is cancelled
            before its turn is not computed.
        """
        job = Job(query, passages, exits, prompts)
        self._waiting.put(job)
        if self._ended.is_set():
            self._refuse_jobs()
        return job.answer

    def close(self) -> None:
        """Answer the jobs that wait, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Answer jobs until `close`. If the thread ends otherwise, no job waits for ever."""
        try:
            self._answer_all()
        finally:
            self._ended.set()
            self._refuse_jobs()

    def _refuse_jobs(self) -> None:
        """Answer the jobs that wait, or were taken, by WorkerEnded."""
        error = WorkerEnded("the thread that scores has ended; restart the server")
        self._receive()
        for job in (*self._batch, *self._queue):
            with suppress(InvalidStateError):  # answered, or cancelled
                job.answer.set_exception(error)

    def _answer_all(self) -> None:
        while True:
            self._receive(wait=not self._queue and not self._is_closing)
            if not self._queue:
                return  # as the worker is closing
            jobs = self._fill_batch()
            self._answer([job for job in jobs if not isinstance(job.exits, RankingPlan | TimedPass)])
            for place, job in enumerate(jobs):
                if isinstance(job.exits, TimedPass):
                    self._receive()
                    job.exits = share_time(job.exits, [*jobs[place + 1 :], *self._queue])
                if isinstance(job.exits, RankingPlan | TimedPass):
                    self._answer([job])

    def _receive(self, wait: bool = False) -> None:
        """Move the jobs that wait into the queue; `wait`: wait for one first."""
        with suppress(Empty):
            while True:
                job = self._waiting.get(wait)
                wait = False
                if job is None:
                    self._is_closing = True
                else:
                    self._queue.append(job)

    def _fill_batch(self) -> list[Job]:
        """Take jobs from the queue and tokenise them, until their tokens fill a batch, and return them."""
        budget = self.scoring.tokens_per_batch or self.reranker.default_tokens_per_batch
        self._batch, jobs, tokens = [], [], 0
        while self._queue and tokens < budget:
            job = self._queue.pop(0)
            self._batch.append(job)
            if self._tokenise(job):
                jobs.append(job)
                tokens += sum(job.lengths)
            self._receive()
        return jobs

    def _tokenise(self, job: Job) -> bool:
        """Fill a job's rows. Returns False if it was cancelled or could not be tokenised."""
        if not job.answer.set_running_or_notify_cancel():
            return False
        try:
            pairs = [(job.query, passage) for passage in job.passages]
            if isinstance(job.exits, RankingPlan):
                plan = job.exits
                job.rows = self.reranker.rows_to_read(
                    pairs, plan.schedule, plan.first_stage, job.prompts, self.scoring.windows
                )
            else:
                job.rows = list(self.reranker.prompt.rows(pairs, job.prompts, self.scoring.windows))
        except Exception as error:
            job.answer.set_exception(error)
            return False
        return True

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answer jobs at layers, or one with a pass of its own. Jobs that fail together are tried each alone."""
        try:
            answers = self._compute(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)

    def _compute(self, jobs: Sequence[Job]) -> list[ScoredPassages]:
        """Return the answer of each of some jobs at layers, or of one with a pass of its own."""
        if not jobs:
            return []
        [job, *others] = jobs
        match job.exits:
            case RankingPlan() as plan:
                assert not others
                return [ScoredPassages(self._rank(job.rows, plan), np.array(job.lengths))]
            case TimedPass() as timed:
                assert not others
                return [self._rank_in_time(job, timed)]
        scores = self._score_together(jobs)
        return [
            ScoredPassages(of_job, np.array(job.lengths)) for job, of_job in zip(jobs, scores, strict=True)
        ]

    def _rank_in_time(self, job: Job, timed: TimedPass) -> ScoredPassages:
        """Score a job by the deepest exit that its deadline allows."""
        rows = cast(Sequence[Row], job.rows)
        budget = self.scoring.tokens_per_batch
        ranking = self.reranker.rank_rows_by(timed.deadline, rows, budget, timed.first_stage, timed.fused)
        return ScoredPassages(ranking.scores[None], np.array(job.lengths), int(ranking.layers[0]))

    def _score_together(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        rows = [cast(Row, row) for job in jobs for row in job.rows]
        exits = [cast(Sequence[int], job.exits) for job in jobs]
        layers = sorted({layer for of_job in exits for layer in of_job})
        # [layers, rows]
        scores = self.reranker.score_rows(rows, layers, self.scoring.tokens_per_batch)
        self._check_finite(scores)
        ends = np.cumsum([len(job.rows) for job in jobs])
        chunks = np.split(scores, ends[:-1], axis=1)  # of each job [layers, its rows]
        return [
            chunk[[layers.index(layer) for layer in of_job]]
            for of_job, chunk in zip(exits, chunks, strict=True)
        ]

    def _rank(self, rows: Sequence[Row | None], plan: RankingPlan) -> np.ndarray:
        """Return the scores of one exit, or the reciprocal ranks of a cascade: float32 [1, rows].

        Rows leave a cascade at exits whose scores are not comparable.
        """
        ranking = self.reranker.rank_rows(
            rows,
            plan.schedule,
            self.scoring.tokens_per_batch,
            first_stage=plan.first_stage,
            fused=plan.weights is not None,
        )
        if not plan.schedule.keep:
            return ranking.scores[None]
        scores = np.empty((1, len(ranking.order)), dtype=np.float32)
        scores[0, ranking.order] = 1 / np.arange(1, len(ranking.order) + 1)
        return scores

    def _check_finite(self, scores: np.ndarray) -> None:
        """Raise FloatingPointError if a score is not finite."""
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"a score in {self.reranker.precision} is not finite; look at the weights"
            )
