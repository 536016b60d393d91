"""YAML with the line of each value, and keys that stand twice refused: YAML itself would keep the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lwr.common.errors import BadInput
from lwr.config.problems import Loc

MOST = 100_000  # values of a config; aliases of aliases would make any number of them


@dataclass(frozen=True)
class Source:
    """A YAML file: its values, the line of each of them, and what it says about keys that stand twice."""

    name: str
    values: dict[str, Any]
    lines: dict[Loc, int]
    twice: list[tuple[int, str]]


def read_yaml(path: Path) -> Source:
    """Raises BadInput for what is no YAML or no mapping."""
    name = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}; give a YAML or JSON file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: no YAML in UTF-8: {error}; save the file as UTF-8") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> Source:
    """name: stands before each line's number. Raises BadInput for what is no YAML or no mapping.

    No tag makes an object: `!!python/object` and its like are refused.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        twice = [(line, f"{name}:{line}: {text}") for line, text in _twice(root, "", set())]
        lines = dict(islice(_lines(loader, root, ()), MOST))
        values = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInput(
            f"{name}:{mark.line + 1}: no YAML: {error.problem} {error.context or ''}".rstrip()
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise BadInput(f"{name}: no YAML in UTF-8: {error}") from None
    if len(lines) == MOST:
        raise BadInput(f"{name}: more than {MOST:,} values, by aliases of aliases perhaps; write less")
    if not isinstance(values, dict):
        raise BadInput(f"{name}:1: {'empty' if values is None else 'no mapping'}; write `key: value` lines")
    return Source(name, values, {(): 1} | lines, twice)


def _twice(node: yaml.Node | None, way: str, seen: set[int]) -> Iterator[tuple[int, str]]:
    """YAML would keep the last of two equal keys and say nothing."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    first: dict[str, int] = {}
    for item in node.value:
        key, inner = item if isinstance(node, yaml.MappingNode) else (None, item)
        at = way if key is None else f"{way}{key.value}"
        if key is not None:
            line = key.start_mark.line + 1
            if at in first:
                yield line, f"{at}: stands twice, in lines {first[at]} and {line}; remove one"
            first[at] = line
        yield from _twice(inner, at if key is None else f"{at}.", seen)


def _lines(loader: yaml.SafeLoader, node: yaml.Node | None, loc: Loc) -> Iterator[tuple[Loc, int]]:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # what `<<` brings stands first, so that the node's own keys win
        for key, inner in node.value:
            if isinstance(key, yaml.CollectionNode):
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            at = (*loc, loader.construct_object(key, deep=True))
            yield at, key.start_mark.line + 1
            yield from _lines(loader, inner, at)
    elif isinstance(node, yaml.SequenceNode):
        for place, inner in enumerate(node.value):
            yield (*loc, place), inner.start_mark.line + 1
            yield from _lines(loader, inner, (*loc, place))
