"""Define the error for unusable input or a missing package, and shorten errors and values for messages."""

from __future__ import annotations

from typing import Any


class BadInput(ValueError):
    """A problem of a user's file or setting; the message gives the place (`file:line`), the problem and the fix."""


def missing_extra(what: str, package: str, extra: str) -> BadInput:
    """Return the error that `what` needs a package of an extra of lwr, and how to install it."""
    return BadInput(f"{what} needs {package}: pip install 'lwr[{extra}]'")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def shorten(value: Any, length: int = 80) -> str:
    """Return `repr(value)`, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
