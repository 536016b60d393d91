"""The worker: waiting jobs are scored together, and each gets the scores it would get alone."""

from __future__ import annotations

import itertools
import threading
from threading import Event

import numpy as np
import pytest
import tiny

from lwr.config.evaluation import ScoringConfig, Windows
from lwr.model.cascade_schedule import Deadline, Schedule, plan_ranking
from lwr.model.reranker import LayerwiseReranker
from lwr.serving import worker as worker_module

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return s" + " and more" * (i % 4) for i in range(9)]


def build() -> LayerwiseReranker:
    lengths = {"query_max_len": 16, "passage_max_len": 160}
    return LayerwiseReranker(
        tiny.backbone("llama"), tiny.tokenizer(encoder=False), start_layer=2, **lengths
    ).eval()


@pytest.fixture(scope="module")
def offline() -> LayerwiseReranker:
    return build()


def scores_of(model: LayerwiseReranker, query: str, texts: list[str], layer: int) -> np.ndarray:
    rows = model.prompt.rows([(query, text) for text in texts])
    return model.score_rows(rows, [layer])[0].astype(np.float64)


def gathered(monkeypatch, jobs: list[tuple], scoring: ScoringConfig) -> tuple[list, list[tuple[int, list]]]:
    """Answers to jobs that all wait while the first is scored; and each call of `score_rows`: rows, layers."""
    go, calls, real = Event(), [], LayerwiseReranker.score_rows

    def watched(reranker, rows, layers, *settings):
        go.wait(10)
        calls.append((len(rows), layers))
        return real(reranker, rows, layers, *settings)

    monkeypatch.setattr(LayerwiseReranker, "score_rows", watched)
    worker = worker_module.Worker(build(), scoring)
    answers = [worker.submit(*job) for job in jobs]
    go.set()
    worker.close()
    return answers, calls


def test_waiting_jobs_share_one_pass_to_the_deepest_layer(monkeypatch, offline):
    jobs = [
        (QUERY, TEXTS[:1], [4]),
        (QUERY, TEXTS[1:4], [2]),
        ("another", TEXTS[4:], [3, 2]),
        (QUERY, TEXTS, [2]),
    ]
    answers, calls = gathered(monkeypatch, jobs, ScoringConfig())
    assert sum(rows for rows, _ in calls) == 18
    assert len(calls) <= 2
    assert calls[-1][1] in ([2, 3], [2, 3, 4])
    for (query, texts, layers), answer in zip(jobs, answers, strict=True):
        scored = answer.result(0)
        expected = [scores_of(offline, query, texts, layer) for layer in layers]
        np.testing.assert_allclose(scored.scores, expected, rtol=1e-5, atol=1e-5)
        rows = offline.prompt.rows([(query, text) for text in texts])
        assert scored.tokens.tolist() == list(map(len, rows))


@pytest.mark.parametrize("exits", [[2, 4], "2:3 4", "2/2 4", 1e9])
def test_passages_are_read_in_windows(offline, exits):
    windows = Windows(overlap=4, most=3)
    worker = worker_module.Worker(build(), ScoringConfig(windows=windows))
    texts = [text + " and more" * (25 * i) for i, text in enumerate(TEXTS)]
    schedule = Schedule.parse(exits) if isinstance(exits, str) else Schedule.single(4)
    if isinstance(exits, float):
        submitted = worker_module.TimedPass(Deadline.after(exits), None, False)
    else:
        submitted = plan_ranking(schedule, len(texts)) if isinstance(exits, str) else exits
    scored = worker.submit(QUERY, texts, submitted).result(60)
    worker.close()
    rows = offline.prompt.rows([(QUERY, text) for text in texts], windows=windows)
    assert {len(row.windows) for row in rows} == {1, 2, 3}
    assert scored.tokens.tolist() == [len(window) for row in rows for window in row.windows]
    if schedule.keep:
        ranking = offline.rank_rows(rows, schedule)
        assert (-scored.scores[0]).argsort().tolist() == ranking.order.tolist()
    else:
        layers = exits if isinstance(exits, list) else [4]
        expected = offline.score_rows(rows, layers, compression=schedule.compression)
        np.testing.assert_allclose(scored.scores, expected, rtol=1e-5, atol=1e-5)


def timed(moment: float, clock) -> worker_module.TimedPass:
    return worker_module.TimedPass(Deadline(moment, clock), None, False)


@pytest.mark.parametrize(
    ("moment", "behind", "ends"),
    [
        (8, [], 8),
        (8, [9, 9], 3),  # a third of the time to the last
        (8, [4], 2),  # half of the time to the one behind, whose deadline is earlier
        (8, [0, -5, 9], 4.5),  # two are late already
        (8, [None], 8),  # without a deadline
        (-1, [6], -1),  # late itself
    ],
)
def test_jobs_with_deadlines_share_the_time(moment, behind, ends):
    def clock() -> float:
        return 0.0

    jobs = [
        worker_module.Job(QUERY, TEXTS, [4] if of_one is None else timed(of_one, clock)) for of_one in behind
    ]
    assert worker_module.share_time(timed(moment, clock), jobs).deadline.moment == ends


def test_a_cancelled_job_takes_no_share_of_the_time():
    gone = worker_module.Job(QUERY, TEXTS, timed(4, lambda: 0.0))
    gone.answer.cancel()
    assert worker_module.share_time(timed(8, lambda: 0.0), [gone]).deadline.moment == 8


@pytest.mark.parametrize(("number", "layer"), [(1, 4), (3, 3)])
def test_waiting_jobs_with_deadlines_read_less_deep(monkeypatch, number, layer):
    """With 17 ticks of the clock, one job is read to layer 4, and each of three that wait together to layer 3."""
    ticks, go = itertools.count(), Event()

    def clock() -> float:
        return float(next(ticks))

    real = LayerwiseReranker.score_rows
    monkeypatch.setattr(LayerwiseReranker, "score_rows", lambda *args: (go.wait(10), real(*args))[1])
    worker = worker_module.Worker(build(), ScoringConfig())
    answers = [worker.submit(QUERY, TEXTS[:1], [4])]
    answers += [worker.submit(QUERY, TEXTS, timed(17, clock)) for _ in range(number)]
    go.set()
    worker.close()
    assert [answer.result(0).layer for answer in answers] == [None] + [layer] * number


def test_shared_pass_is_limited_by_tokens_per_batch(monkeypatch):
    jobs = [(QUERY, TEXTS, [4])] * 4
    _, calls = gathered(monkeypatch, jobs, ScoringConfig(tokens_per_batch=64))
    assert calls == [(9, [4])] * 4


def test_cancelled_job_is_not_scored(monkeypatch):
    worker = worker_module.Worker(build(), ScoringConfig())
    go, real, calls = Event(), LayerwiseReranker.score_rows, []

    def watched(reranker, rows, *rest):
        go.wait(10)
        calls.append(len(rows))
        return real(reranker, rows, *rest)

    monkeypatch.setattr(LayerwiseReranker, "score_rows", watched)
    first = worker.submit(QUERY, TEXTS[:2], [4])
    while not first.running():
        pass
    gone = worker.submit(QUERY, TEXTS, [4])
    assert gone.cancel() or gone.running()
    go.set()
    worker.close()
    assert first.result(0).scores.shape == (1, 2)
    assert sum(calls) == (2 if gone.cancelled() else 11)


def test_failing_job_does_not_fail_others(monkeypatch, offline):
    real = LayerwiseReranker.score_rows
    usual = max(map(len, offline.prompt.rows([(QUERY, text) for text in TEXTS])))

    def fragile(reranker, rows, *rest):
        if any(len(row) > usual for row in rows):
            raise MemoryError("too long")
        return real(reranker, rows, *rest)

    monkeypatch.setattr(LayerwiseReranker, "score_rows", fragile)
    worker = worker_module.Worker(build(), ScoringConfig())
    answers = [worker.submit(QUERY, [text], [4]) for text in (TEXTS[0], "long " * 200, TEXTS[1])]
    worker.close()
    assert [type(answer.exception(0)) for answer in answers] == [type(None), MemoryError, type(None)]


def test_jobs_of_a_thread_that_ended_are_refused(monkeypatch):
    go = Event()

    def fail(*_):
        go.wait(10)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(worker_module.Worker, "_answer", fail)
    worker = worker_module.Worker(build(), ScoringConfig())
    assert worker.is_alive
    answers = [worker.submit(QUERY, TEXTS[:1], [4]) for _ in range(2)]  # one is taken, one waits
    go.set()
    for answer in answers:
        with pytest.raises(worker_module.WorkerEnded):
            answer.result(timeout=10)
    assert not worker.is_alive
    with pytest.raises(worker_module.WorkerEnded):
        worker.submit(QUERY, TEXTS[:1], [4]).result(timeout=10)
    worker.close()
