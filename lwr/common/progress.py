"""Report progress on stderr, readable in a terminal and in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], total: int, label: str, every: float = 10.0) -> Iterator[Item]:
    """Yield the items, and show how many are done.

    A terminal gets a progress bar, any other stderr a line per interval.

    Args:
        items: Any iterable.
        total: Number of items.
        label: Name of the work, in front of the bar or line.
        every: Least seconds between two lines.
    """
    if sys.stderr.isatty():
        yield from track(items, label, total, console=Console(stderr=True))  # stdout may hold results
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every or done == total:
            last = now
            log(
                f"{label}: {done}/{total} ({done / total:.0%}), {format_duration(now - start)} passed, "
                f"{format_duration((now - start) * (total - done) / done)} left"
            )


def format_duration(seconds: float) -> str:
    """Format seconds as `h:mm:ss`, or as `m:ss` under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def log(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)
