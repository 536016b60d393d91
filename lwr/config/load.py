"""Config files -> a Config, or all problems at once: `file:line: key: what is wrong, and how to mend it`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwr.common.errors import BadInput
from lwr.config.check import problems_between_parts, problems_of_parts
from lwr.config.grid import GridConfig
from lwr.config.problems import Problem, dotted, inside, validate
from lwr.config.yaml_lines import Source, read_yaml


def read(path: Path) -> GridConfig:
    """The Config of one file. Raises BadInput, one line for each problem."""
    return load(read_yaml(path).values, [path])


def load(values: dict[str, Any], files: list[Path]) -> GridConfig:
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


def _place(problem: Problem, values: dict[str, Any], sources: list[Source]) -> tuple[int, int, str]:
    """File, line and text; the line of what should hold the value, where the value itself is missing."""
    at, value = inside(problem.loc, values)
    text = f"{dotted(problem.loc, values)}{problem.text}"
    for order, source in reversed(list(enumerate(sources))):
        there, its_value = inside(at, source.values)
        if there == at and (isinstance(value, dict) or its_value == value):
            return order, source.lines[at], f"{source.name}:{source.lines[at]}: {text}"
    return len(sources), 0, f"--config: {text}"
