"""Read YAML with the line of each value and with its duplicate keys, of which YAML itself keeps only the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lwr.common.errors import BadInput

Loc = tuple[str | int, ...]
"""The keys and list indexes that lead from the root of a YAML file to a value."""

MAX_VALUES = 100_000
"""Limit of values in a file, because aliases of aliases can expand to any number."""


@dataclass(frozen=True)
class YamlFile:
    """The values of a YAML file, the line of each of them, and the duplicate keys."""

    name: str
    values: dict[str, Any]
    lines: dict[Loc, int]
    duplicates: list[tuple[int, str]]  # line, message


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file.

    Raises:
        BadInput: The file cannot be read, or `parse_yaml` refuses it.
    """
    name = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}; give a YAML or JSON file") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: not UTF-8: {error}; save the file as UTF-8") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlFile:
    """Parse YAML with the safe loader, which refuses tags such as `!!python/object`.

    Args:
        text: Content of the file.
        name: Name of the file in messages, followed by the line: `name:12: ...`.

    Raises:
        BadInput: The text is not YAML, not a mapping, or has too many values.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        duplicates = [
            (line, f"{name}:{line}: {message}") for line, message in _duplicate_keys(root, "", set())
        ]
        lines = dict(islice(_lines(loader, root, ()), MAX_VALUES))
        values = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise BadInput(f"{name}:{line}: not YAML: {error.problem} {error.context or ''}".rstrip()) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise BadInput(f"{name}: not YAML in UTF-8: {error}") from None
    if len(lines) == MAX_VALUES:
        raise BadInput(f"{name}: more than {MAX_VALUES:,} values; write fewer, or fewer aliases of aliases")
    if not isinstance(values, dict):
        problem = "empty" if values is None else "not a mapping"
        raise BadInput(f"{name}:1: {problem}; write `key: value` lines")
    return YamlFile(name, values, {(): 1} | lines, duplicates)


def _duplicate_keys(node: yaml.Node | None, prefix: str, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Yield the line and the message of each duplicate key; `seen` has the ids of the nodes already visited."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicate_keys(item, prefix, seen)
        return
    first_lines: dict[str, int] = {}
    for key, value in node.value:
        dotted, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if dotted in first_lines:
            first = first_lines[dotted]
            where = f"line {line}" if first == line else f"lines {first} and {line}"
            yield line, f"{dotted}: duplicated in {where}; remove one"
        first_lines[dotted] = line
        yield from _duplicate_keys(value, f"{dotted}.", seen)


def _lines(loader: yaml.SafeLoader, node: yaml.Node | None, loc: Loc) -> Iterator[tuple[Loc, int]]:
    """Yield the location and the line of each value below a node."""
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # puts merged keys (`<<`) first, so that the node's own keys win
        for key, value in node.value:
            if isinstance(key, yaml.CollectionNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is a mapping or a list", problem_mark=key.start_mark
                )
            inner = (*loc, loader.construct_object(key, deep=True))
            yield inner, key.start_mark.line + 1
            yield from _lines(loader, value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*loc, index), item.start_mark.line + 1
            yield from _lines(loader, item, (*loc, index))
