"""A clock that a test sets."""

from __future__ import annotations


class Clock:
    """A clock in place of the module `time` in `lwr.common.progress`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now
