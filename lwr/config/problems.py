"""Problems of a config, and where in the config they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwr.common.yaml_lines import Loc


@dataclass(frozen=True)
class Problem:
    """A fault of the value at `loc`, and its fix."""

    loc: Loc
    text: str

    def below(self, *parents: str) -> Problem:
        """Return the problem as seen from the section that holds this section under `parents`."""
        return Problem((*parents, *self.loc), self.text)


def missing_file(loc: Loc, file: str) -> list[Problem]:
    """Return a problem where a file that the config names does not exist."""
    return [] if Path(file).expanduser().is_file() else [Problem(loc, f"no such file: {file}")]


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known one, or all of them."""
    spellings = {other.lower(): other for other in known}
    close = difflib.get_close_matches(word.lower(), spellings, n=1)
    if close:
        return f"; did you mean `{spellings[close[0]]}`?"
    names = ", ".join(f"`{other}`" for other in sorted(spellings.values()))
    return f"; use one of {names}" if names else ""


def has_key(values: Any, key: Any) -> bool:
    """Return whether a mapping has this key, or a list this index."""
    if isinstance(values, dict):
        return key in values
    return isinstance(values, list) and isinstance(key, int) and key < len(values)


def follow(loc: Loc, values: Any) -> tuple[Loc, Any]:
    """Follow `loc` into nested values, skipping parts that do not exist there.

    Returns:
        The parts that exist, and the value that they lead to.
    """
    found: Loc = ()
    for part in loc:
        if has_key(values, part):
            found, values = (*found, part), values[part]
    return found, values


def dotted(loc: Loc, values: Any) -> str:
    """Return a place as messages begin with it, `train.lr: `, without the indexes of lists."""
    keys = [str(part) for i, part in enumerate(loc) if not isinstance(follow(loc[:i], values)[1], list)]
    return f"{'.'.join(keys)}: " if keys else ""
