"""Report progress on stderr, readable in a terminal and in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import Self, TypeVar

import rich.progress
from rich.console import Console

Item = TypeVar("Item")

LONGEST_SILENCE = 10.0
"""Seconds until the next line, outside a terminal."""


class Progress:
    """A count of finished items, shown on stderr while its `with` block runs.

    A terminal gets a bar, any other stderr a line per interval. A thread prints the lines, so that they appear even
    while one item takes long, and counting an item costs next to nothing.

    Attributes:
        label: Name of the work, in front of the bar or line.
        total: Number of items; None: not known.
        done: Number of finished items.
        current: What is being done now, at the end of the line; may be set at any time.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "",
        *,
        only_if_long: bool = False,
        hidden: bool = False,
    ):
        """Set what is shown.

        Args:
            label: See above.
            total: See above.
            unit: Name of the items in the line, such as `pairs`.
            only_if_long: Print no line at the end, so that short work prints none.
            hidden: Show nothing.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done, self.current = 0, ""
        self._done_before, self._only_if_long, self._hidden = 0, only_if_long, hidden
        self._bar: rich.progress.Progress | None = None
        self._ended = Event()
        self._thread = Thread(target=self._report_until, args=(self._ended,), name=label, daemon=True)

    def __enter__(self) -> Self:
        """Start the clock, the thread and in a terminal the bar."""
        self._start = self._last_line = time.monotonic()
        if self._hidden:
            return self
        if sys.stderr.isatty():
            # stdout may hold results
            self._bar = rich.progress.Progress(console=Console(stderr=True), transient=self._only_if_long)
            self._bar.add_task(self.label, total=self.total, completed=self.done)
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the thread, and show the last count if there was no error."""
        if self._hidden:
            return
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            self._update(self._bar)
            self._bar.stop()
        elif error is None and not self._only_if_long:
            log(self._line())

    def resume(self, done: int, total: int) -> None:
        """Set the number of items, and how many of them were finished before the clock started."""
        self.done = self._done_before = done
        self.total = total

    def advance(self, items: int = 1) -> None:
        """Count finished items."""
        self.done += items

    def log(self, line: str) -> None:
        """Print a line of the caller's, above the bar; the next line of progress is due an interval later."""
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self._hidden:
            log(line)

    def report_if_due(self) -> None:
        """Update the bar, or print a line if the last one is an interval ago."""
        now = time.monotonic()
        if self._bar is not None:
            self._update(self._bar)
        elif now - self._last_line >= LONGEST_SILENCE:
            self._last_line = now
            log(self._line())

    def _update(self, bar: rich.progress.Progress) -> None:
        description = f"{self.label} {self.current}".rstrip()
        bar.update(bar.task_ids[0], completed=self.done, total=self.total, description=description)

    def _report_until(self, ended: Event) -> None:
        while not ended.wait(0.5):
            self.report_if_due()

    def _line(self) -> str:
        passed = time.monotonic() - self._start
        done, total, unit = self.done, self.total, f" {self.unit}" if self.unit else ""
        parts = [f"{self.label}: {done:,}{unit}" if total is None else f"{self.label}: {done}/{total}{unit}"]
        if total:
            parts[0] += f" ({format_share(done, total)})"
        parts.append(f"{format_duration(passed)} passed")
        if total and done > self._done_before:
            parts.append(f"{format_duration(passed * (total - done) / (done - self._done_before))} left")
        if self.current:
            parts.append(self.current)
        return ", ".join(parts)


def show_progress(
    items: Iterable[Item], total: int | None, label: str, unit: str = "", *, only_if_long: bool = False
) -> Iterator[Item]:
    """Yield the items, and show how many are done; the arguments are those of `Progress`."""
    with Progress(label, total, unit, only_if_long=only_if_long) as progress:
        for item in items:
            yield item
            progress.advance()


def format_duration(seconds: float) -> str:
    """Format seconds as `h:mm:ss`, or as `m:ss` under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_share(part: int, whole: int) -> str:
    """Format a share in percent: `0%` only of nothing, and `100%` only of all."""
    percent = round(100 * part / max(1, whole))
    return f"{min(max(percent, 1), 99) if 0 < part < whole else percent}%"


def log(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)
