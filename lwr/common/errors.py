"""The error for input that cannot be used, and the first line of any error."""

from __future__ import annotations


class BadInput(ValueError):
    """A file that cannot be used as it is: the message says where (`file:line`), what, and how to mend it."""


def first_line(error: Exception) -> str:
    """Of what an error says; of one that says nothing its name."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
