"""Progress is shown on stderr, one line per interval outside a terminal."""

from __future__ import annotations

import io
import sys
from threading import Event
from threading import enumerate as running_threads

import pytest
from fake_clock import Clock

from lwr.common import progress as progress_module
from lwr.common.progress import LONGEST_SILENCE, Progress, format_duration, format_share, show_progress


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_duration_has_hours_only_if_needed(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0%"), (1, 900, "1%"), (2, 5, "40%"), (6_779, 6_792, "99%"), (9, 9, "100%"), (0, 0, "0%")],
)
def test_format_share_is_0_or_100_percent_only_of_nothing_or_all(part, whole, text):
    assert format_share(part, whole) == text


def test_progress_yields_all_items_and_reports_the_last(capsys):
    assert list(show_progress("abc", 3, "score")) == ["a", "b", "c"]
    assert lines(capsys) == ["score: 3/3 (100%), 0:00 passed, 0:00 left"]


def test_short_work_says_nothing_if_asked(capsys):
    assert list(show_progress("abc", 3, "score", only_if_long=True)) == ["a", "b", "c"]
    assert lines(capsys) == []


def test_a_long_item_is_not_silent(capsys, clock):
    with Progress("score", 6400, "pairs", only_if_long=True) as progress:
        for clock.now in range(60):
            progress.report_if_due()
        progress.advance(640)
        clock.now = 60.0
        progress.report_if_due()
    printed = lines(capsys)
    assert printed[0] == "score: 0/6400 pairs (0%), 0:10 passed"
    assert printed[-1] == "score: 640/6400 pairs (10%), 1:00 passed, 9:00 left"
    assert len(printed) == 60 // LONGEST_SILENCE


def test_unknown_total_and_current_work(capsys, clock):
    with Progress("mine", unit="passages", only_if_long=True) as progress:
        progress.advance(1234)
        progress.current = "of wiki"
        clock.now = 75.0
        progress.report_if_due()
    assert lines(capsys) == ["mine: 1,234 passages, 1:15 passed, of wiki"]


def test_time_left_counts_from_where_work_resumed(capsys, clock):
    with Progress("train") as progress:
        progress.resume(50, 100)
        clock.now = 10.0
        progress.advance(10)
    assert lines(capsys) == ["train: 60/100 (60%), 0:10 passed, 0:40 left"]


def test_line_of_the_caller_postpones_the_next(capsys, clock):
    with Progress("train", 2, only_if_long=True) as progress:
        clock.now = 9.0
        progress.log("loss 1.0")
        clock.now = 18.0
        progress.report_if_due()
        clock.now = 19.0
        progress.report_if_due()
    assert lines(capsys) == ["loss 1.0", "train: 0/2 (0%), 0:19 passed"]


def test_thread_reports_until_the_end(capsys, clock, monkeypatch):
    ticks = iter([9.0, 10.0, 29.0, 60.0])

    def wait(self, seconds):
        clock.now = next(ticks, None) or clock.now
        return clock.now == 60.0

    progress = Progress("score", 1)
    progress._start = progress._last_line = 0.0
    monkeypatch.setattr(Event, "wait", wait)
    progress._report_until(Event())
    assert lines(capsys) == ["score: 0/1 (0%), 0:10 passed", "score: 0/1 (0%), 0:29 passed"]


def test_thread_ends_with_the_work_and_with_an_error(capsys):
    def is_running() -> bool:
        return "two items" in {thread.name for thread in running_threads()}

    with Progress("two items", 2):
        assert is_running()
    assert not is_running()
    with pytest.raises(ValueError, match="broken"), Progress("two items", 2):
        raise ValueError("broken")
    assert not is_running()
    assert lines(capsys) == ["two items: 0/2 (0%), 0:00 passed"]


def test_hidden_progress_shows_nothing(capsys):
    with Progress("train", 2, hidden=True) as progress:
        progress.advance()
        progress.log("loss 1.0")
    assert lines(capsys) == []


def test_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", 2) as progress:
        progress.advance(2)
        progress.log("step 2/2, [bold] stays")
    shown = terminal.getvalue()
    assert "step 2/2, [bold] stays\n" in shown
    assert "100%" in shown
