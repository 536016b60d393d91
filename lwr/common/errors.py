"""Define the error for unusable input, and shorten errors to one line."""

from __future__ import annotations


class BadInput(ValueError):
    """A problem of a user's file or setting; the message gives the place (`file:line`), the problem and the fix."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
