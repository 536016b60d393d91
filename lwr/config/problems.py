"""What pydantic says of a config, in our words: every problem at once, and the nearest right key."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from lwr.config.grid import GridConfig
from lwr.config.section import Section

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value at `loc` of the config, and how to mend it."""

    loc: Loc
    text: str


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is none of the known ones."""
    spelt = {other.lower(): other for other in known}
    close = difflib.get_close_matches(word.lower(), spelt, n=1)
    if close:
        return f"; did you mean `{spelt[close[0]]}`?"
    return f"; there is {', '.join(f'`{other}`' for other in sorted(spelt.values()))}" if spelt else ""


# What a needed section is looked at as while it is missing or wrong, so that the others can be looked at too.
STAND_INS = {
    "datasets": {"any": {"source": {"kind": "python_docs"}}},
    "base_models": {"any": {"model": "any/any"}},
    "start_layers": [1],
}


def explain(error: ValidationError, section: type[Section], values: Any, source: str) -> str:
    """All problems of a section that stands alone, one line each."""
    problems = [problem for _, problem in _problems(error, section, values)]
    return "\n".join(f"{source}: {dotted(problem.loc, values)}{problem.text}" for problem in problems)


def validate(values: dict[str, Any]) -> tuple[GridConfig | None, list[Problem]]:
    """A Config of what is right in `values`, and the problems of the rest.

    What a section says of several keys shows once each key is right: so the wrong ones are taken out.
    """
    values = copy.deepcopy(values)
    found: list[Problem] = []
    while True:
        try:
            return GridConfig.model_validate(values), found
        except ValidationError as error:
            problems = _problems(error, GridConfig, values)
        first = not found  # later, only a `value_error` is no consequence of what was taken out
        found += [problem for kind, problem in problems if first or kind == "value_error"]
        before = copy.deepcopy(values)
        for kind, problem in reversed(problems):
            _take_out(values, problem.loc[:-1] if kind == "missing" else problem.loc)
        values = STAND_INS | values
        if values == before:
            return None, found


def _take_out(values: Any, loc: Loc) -> None:
    at, holder = inside(loc[:-1], values)
    if loc and at == loc[:-1] and _holds(holder, loc[-1]):
        del holder[loc[-1]]


def _problems(error: ValidationError, section: type[Section], values: Any) -> list[tuple[str, Problem]]:
    """pydantic's kinds of problems with ours; the alternatives of a union are one problem."""
    found: dict[Loc, tuple[str, list[str]]] = {}
    for about in error.errors():
        loc, _ = inside(about["loc"], values)  # without the names that pydantic gives to a union's sides
        if about["type"] == "missing":
            loc = (*loc, about["loc"][-1])
        found.setdefault(loc, (about["type"], []))[1].append(_text(about, section))
    return [(kind, Problem(loc, _either(texts))) for loc, (kind, texts) in found.items()]


def _either(texts: list[str]) -> str:
    first, *others = dict.fromkeys(texts)
    return " or ".join([first, *(text.rpartition(" should be ")[2] for text in others)])


def _text(about: dict[str, Any], section: type[Section]) -> str:
    kind, value, context = about["type"], about["input"], about.get("ctx", {})
    shown = "null" if value is None else repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    match kind:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"no such key{nearest(str(about['loc'][-1]), _keys(section, about['loc'][:-1]))}"
        case "missing":
            return "missing"
        case "union_tag_not_found":
            return "its `kind` is missing"
        case "union_tag_invalid":
            return f"{context['tag']!r} is no kind; there is {context['expected_tags']}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"{shown} should be a mapping, `key: value`"
        case "string_type":
            return f"{shown} should be text; put it in quotes"
        case "string_pattern_mismatch":
            return f"{shown} is no name; use A-Z a-z 0-9, and after the first also . _ -"
        case "too_short":
            return "empty; give at least one"
        case _:
            message = about["msg"].partition(", unable")[0]
            return message.replace("Input", shown, 1)


def _keys(section: type[Section], loc: Loc) -> list[str]:
    """The keys that may stand at `loc`; its parts that are names of the user's lead nowhere."""
    here = [section]
    for part in loc:
        fields = [inner.model_fields[part] for inner in here if part in inner.model_fields]
        sides = [inner for inner in here if "kind" in inner.model_fields and part in _choices(inner)]
        here = [inner for field in fields for inner in _sections(field.annotation)] or sides or here
    return [key for inner in here for key in inner.model_fields]


def _choices(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation)


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


# --- ways into a config --------------------------------------------------------------------------------


def _holds(values: Any, key: Any) -> bool:
    return (isinstance(values, dict) and key in values) or (
        isinstance(values, list) and isinstance(key, int) and key < len(values)
    )


def inside(loc: Loc, values: Any) -> tuple[Loc, Any]:
    """As far as `loc` leads, and what stands there; parts that lead nowhere are passed over."""
    found: Loc = ()
    for part in loc:
        if _holds(values, part):
            found, values = (*found, part), values[part]
    return found, values


def dotted(loc: Loc, values: Any) -> str:
    """`train.lr: `, without the places in lists."""
    parts = [str(part) for i, part in enumerate(loc) if not isinstance(inside(loc[:i], values)[1], list)]
    return f"{'.'.join(parts)}: " if parts else ""
