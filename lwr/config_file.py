"""Config files -> a Config, or all problems at once: `file:line: key: what is wrong, and how to mend it`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lwr.config import Config
from lwr.config_errors import Loc, Problem, dotted, inside, validate
from lwr.files import BadInput
from lwr.grid import problems_between_parts, problems_of_parts


def read(path: Path) -> Config:
    """The Config of one file. Raises BadInput, one line for each problem."""
    return load(read_yaml(path).values, [path])


def load(values: dict[str, Any], files: list[Path]) -> Config:
    """The Config of values that were merged from files (later ones count) and from a command line.

    Raises BadInput, one line for each problem in the order of the files; what no file says, `--config` says.
    """
    sources = [read_yaml(file) for file in files]
    config, problems = validate(values)
    if config is not None:
        problems += problems_of_parts(config) + ([] if problems else problems_between_parts(config))
    lines = [(order, *twice) for order, source in enumerate(sources) for twice in source.twice]
    lines += [_place(problem, values, sources) for problem in problems]
    if lines:
        raise BadInput("\n".join(text for _, _, text in sorted(set(lines))))
    return config


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
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        twice = [(line, f"{name}:{line}: {text}") for line, text in _twice(root, "", set())]
        lines = dict(_lines(loader, root, ()))
        values = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInput(
            f"{name}:{mark.line + 1}: no YAML: {error.problem} {error.context or ''}".rstrip()
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{name}: no YAML in UTF-8: {error}") from None
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
            at = (*loc, loader.construct_object(key, deep=True))
            yield at, key.start_mark.line + 1
            yield from _lines(loader, inner, at)
    elif isinstance(node, yaml.SequenceNode):
        for place, inner in enumerate(node.value):
            yield (*loc, place), inner.start_mark.line + 1
            yield from _lines(loader, inner, (*loc, place))


def _place(problem: Problem, values: dict[str, Any], sources: list[Source]) -> tuple[int, int, str]:
    """File, line and text; the line of what should hold the value, where the value itself is missing."""
    at, value = inside(problem.loc, values)
    text = f"{dotted(problem.loc, values)}{problem.text}"
    for order, source in reversed(list(enumerate(sources))):
        there, its_value = inside(at, source.values)
        if there == at and (isinstance(value, dict) or its_value == value):
            return order, source.lines[at], f"{source.name}:{source.lines[at]}: {text}"
    return len(sources), 0, f"--config: {text}"
