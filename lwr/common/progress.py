"""Progress that reads well in a terminal and in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], total: int, label: str, every: float = 10.0) -> Iterator[Item]:
    """The items, with a bar in a terminal and, elsewhere, a line at least `every` seconds apart."""
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
    """h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
