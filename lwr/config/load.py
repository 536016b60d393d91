"""Read config files: a config, or all of its problems at once as `file:line: key: what is wrong; how to fix it`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lwr.common.errors import BadInput, shorten
from lwr.common.yaml_lines import Loc, YamlFile, parse_yaml, read_yaml
from lwr.config.consistency import problems_between_sections, problems_of_sections
from lwr.config.grid import GridConfig
from lwr.config.problems import Problem, dotted, follow, has_key, suggest
from lwr.config.section import Section
from lwr.config.teachers.consistency import problems_of_checkpoints, problems_of_teachers

AnySection = TypeVar("AnySection", bound=Section)

# Used in place of a required section that is missing or wrong, so that the other sections can still be validated.
PLACEHOLDERS = {
    "datasets": {"any": {"source": {"kind": "python_docs"}}},
    "base_models": {"any": {"model": "any/any"}},
    "start_layers": [1],
}


def read(path: Path) -> GridConfig:
    """Read the config of a grid from one file. Raises BadInput with one line per problem."""
    return load(read_yaml(path).values, [path])


def load(values: dict[str, Any], files: list[Path]) -> GridConfig:
    """Validate the config of a grid.

    Args:
        values: Values merged from `files`, of which later ones override earlier ones, and from a command line.
        files: The files to locate problems in; a value that is in none of them is reported as `--config`.

    Raises:
        BadInput: There are problems; the message has one line for each, in the order of the files.
    """
    sources = [read_yaml(file) for file in files]
    config, problems = _validate(values)
    if config is not None:
        is_valid = not problems
        problems += problems_of_sections(config) + problems_of_checkpoints(config)
        if is_valid:
            problems += problems_between_sections(config) + problems_of_teachers(config)
    lines = [(order, *duplicate) for order, source in enumerate(sources) for duplicate in source.duplicates]
    lines += [locate(problem, values, sources) for problem in problems]
    if lines or config is None:
        raise BadInput("\n".join(text for _, _, text in sorted(set(lines))))
    return config


def read_settings(text: str, *sections: type[AnySection]) -> AnySection:
    """Read one section from YAML text, or from the file that `text` names. Raises BadInput.

    Args:
        text: The YAML text or the name of the file.
        sections: The section; of several, the value of `kind` chooses one, or else the one whose `kind` has a default.
    """
    is_yaml = "{" in text or "\n" in text
    source = parse_yaml(text, "settings") if is_yaml else read_yaml(Path(text))
    if source.duplicates:
        raise BadInput("\n".join(message for _, message in source.duplicates))
    section = _choose_by_kind(sections, source)
    try:
        return section.model_validate(source.values)
    except ValidationError as error:
        problems = [problem for _, problem in _problems(error, section, source.values)]
        lines = [f"{source.name}: {dotted(problem.loc, source.values)}{problem.text}" for problem in problems]
        raise BadInput("\n".join(lines)) from None


def _choose_by_kind(sections: Sequence[type[AnySection]], source: YamlFile) -> type[AnySection]:
    if len(sections) == 1:
        return sections[0]
    kinds = {name: section for section in sections for name in _kinds(section)}
    defaults = [section.model_fields["kind"].get_default() for section in sections]
    default = next((name for name in defaults if name in kinds), None)
    kind = source.values.get("kind", default) if isinstance(source.values, dict) else default
    if kind not in kinds:
        raise BadInput(f"{source.name}: kind: {shorten(kind)} is not a kind; use one of {', '.join(kinds)}")
    return kinds[kind]


def locate(problem: Problem, values: dict[str, Any], sources: list[YamlFile]) -> tuple[int, int, str]:
    """Return the file's index, the line and the message of a problem.

    Where the value itself is missing, it is the line of what should hold it.
    """
    loc, value = follow(problem.loc, values)
    text = f"{dotted(problem.loc, values)}{problem.text}"
    for order, source in reversed(list(enumerate(sources))):
        loc_here, value_here = follow(loc, source.values)
        if loc_here == loc and (isinstance(value, dict) or value_here == value):
            line = source.lines[loc]
            return order, line, f"{source.name}:{line}: {text}"
    return len(sources), 0, f"--config: {text}"


# --- Pydantic's errors as problems ---


def _validate(values: dict[str, Any]) -> tuple[GridConfig | None, list[Problem]]:
    """Return a config of what is valid in `values`, and the problems of the rest.

    A problem between the keys of a section shows only once each key is valid; so what is wrong is removed, and the
    rest is validated again.
    """
    values = copy.deepcopy(values)
    found: list[Problem] = []
    while True:
        try:
            return GridConfig.model_validate(values), found
        except ValidationError as error:
            problems = _problems(error, GridConfig, values)
        is_first = not found  # later, only a `value_error` is not a consequence of what was removed
        found += [problem for kind, problem in problems if is_first or kind == "value_error"]
        before = copy.deepcopy(values)
        for kind, problem in reversed(problems):
            _remove(values, problem.loc[:-1] if kind == "missing" else problem.loc)
        values = PLACEHOLDERS | values
        if values == before:
            return None, found


def _remove(values: Any, loc: Loc) -> None:
    if not loc:
        return
    reached, holder = follow(loc[:-1], values)
    if reached == loc[:-1] and has_key(holder, loc[-1]):
        del holder[loc[-1]]


def _problems(error: ValidationError, section: type[Section], values: Any) -> list[tuple[str, Problem]]:
    """Return pydantic's kind and our description of each problem; the alternatives of a union are one problem."""
    found: dict[Loc, tuple[str, list[str]]] = {}
    for detail in error.errors():
        # pydantic puts the names of a union's alternatives into the location; they are dropped here
        loc, _ = follow(detail["loc"], values)
        if detail["type"] == "missing":
            loc = (*loc, detail["loc"][-1])
        found.setdefault(loc, (detail["type"], []))[1].append(_describe(detail, section))
    return [(kind, Problem(loc, _join_alternatives(texts))) for loc, (kind, texts) in found.items()]


def _join_alternatives(texts: list[str]) -> str:
    first, *others = dict.fromkeys(texts)
    return " or ".join([first, *(text.rpartition(" should be ")[2] for text in others)])


def _describe(detail: ErrorDetails, section: type[Section]) -> str:
    """Describe one of pydantic's errors and how to fix it."""
    value, context = detail["input"], detail.get("ctx", {})
    shown = "null" if value is None else shorten(value, 60)
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"no such key{suggest(str(detail['loc'][-1]), _keys(section, detail['loc'][:-1]))}"
        case "missing":
            return "missing"
        case "union_tag_not_found":
            return "its `kind` is missing"
        case "union_tag_invalid":
            return f"{context['tag']!r} is not a kind; use one of {context['expected_tags']}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{shown} should be a mapping, `key: value`"
        case "string_type":
            return f"{shown} should be text; put it in quotes"
        case "string_pattern_mismatch":
            return f"{shown} is not a valid name; use A-Z a-z 0-9, and after the first character also . _ -"
        case "too_short":
            return "empty; give at least one"
        case _:
            return detail["msg"].partition(", unable")[0].replace("Input", shown, 1)


def _keys(section: type[Section], loc: Loc) -> list[str]:
    """Return the keys that are valid at `loc`; parts of it that are the user's own names are skipped."""
    sections = [section]
    for part in loc:
        fields = [inner.model_fields[part] for inner in sections if part in inner.model_fields]
        of_kind = [inner for inner in sections if "kind" in inner.model_fields and part in _kinds(inner)]
        below = [inner for field in fields for inner in _sections(field.annotation)]
        sections = below or of_kind or sections
    return [key for inner in sections for key in inner.model_fields]


def _kinds(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation)


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the sections that a type annotation holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
