"""Render config/schema.json and config/README.md from the sections of the config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lwr.config.grid import GridConfig

HEAD = Path(__file__).with_name("head.md")
OVERRIDE = "TrainingOverride"  # has the keys of TrainingConfig, so that it needs no table of its own

Schema = dict[str, Any]


def schema() -> Schema:
    """Return the JSON schema of a config, without defaults that are sections: their keys have their own."""
    grid = GridConfig.model_json_schema()
    for section in [grid, *grid["$defs"].values()]:
        for key in section["properties"].values():
            if "$ref" in key or (_references(key) and isinstance(key.get("default"), dict)):
                key.pop("default", None)
            if "patternProperties" in key:
                key["additionalProperties"] = False
    for key in grid["$defs"][OVERRIDE]["properties"].values():
        key.pop("default", None)  # None is the default of a key that is not given, and is not a valid value
    grid["properties"]["variants"]["default"] = {"default": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **grid}


def render_schema() -> str:
    """Return the text of config/schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def render_readme() -> str:
    """Return the text of config/README.md: the head, then a table per section."""
    grid = schema()
    titles: dict[str, str] = {}
    for name, title in _titles(grid, grid, "", "The grid"):
        titles.setdefault(name, title)  # a section that is used in two places has its table at the first
    parts = [HEAD.read_text(encoding="utf-8")]
    for name, title in titles.items():
        section = grid["$defs"][name] if name else grid
        lines = ["| key | type | unit | default | meaning |", "|---|---|---|---|---|"]
        for key, field in section["properties"].items():
            lines.append(_row(grid, titles, key, field, key in section.get("required", [])))
        table = "\n".join(lines)
        parts.append(f"## {title}\n\n{section['description']}\n\n{table}\n")
    return "\n".join(parts)


def _titles(grid: Schema, section: Schema, name: str, title: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each section's definition and its title, in the order of reading."""
    yield name, title
    prefix = f"{title.partition('`, kind')[0].strip('`')}." if name else ""
    for key, field in section["properties"].items():
        for inner_name in _references(field):
            if inner_name == OVERRIDE:
                continue
            inner = grid["$defs"][inner_name]
            placeholder = ".NAME" if "patternProperties" in field else ""
            kind = inner["properties"].get("kind")
            suffix = f", kind `{kind['const']}`" if kind else ""
            yield from _titles(grid, inner, inner_name, f"`{prefix}{key}{placeholder}`{suffix}")


def _row(grid: Schema, titles: dict[str, str], key: str, field: Schema, is_required: bool) -> str:
    references = _references(field)
    if "const" in field:
        meaning = "selects this kind"
    elif "description" in field:
        meaning = field["description"]
    else:
        meaning = (
            grid["$defs"][references[0]]["description"] if len(references) == 1 else "one of these sources"
        )
    default = "required" if is_required else f"`{json.dumps(field['default'])}`" if "default" in field else ""
    cells = [f"`{key}`", _type(field, titles), _unit(field), default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _references(field: Any) -> list[str]:
    """Return the names of the sections that a key's value may be or hold."""
    if isinstance(field, list):
        return [name for inner in field for name in _references(inner)]
    if not isinstance(field, dict):
        return []
    own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
    return own + _references(list(field.values()))


def _unit(field: Any) -> str:
    """Return the first unit that a key's value has, or that a value inside it has."""
    if isinstance(field, list):
        return next(filter(None, map(_unit, field)), "")
    if not isinstance(field, dict):
        return ""
    return field.get("unit") or _unit(list(field.values()))


def _type(field: Schema, titles: dict[str, str]) -> str:
    """Return the type of a key's value in words, with links to sections."""
    match field:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            title = titles["TrainingConfig" if name == OVERRIDE else name]
            anchor = re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-")
            return f"[{title.rpartition(' ')[2]}](#{anchor})"
        case {"anyOf": alternatives} | {"oneOf": alternatives}:
            return " or ".join(_type(alternative, titles) for alternative in alternatives)
        case {"const": value}:
            return "`off`" if value is False else f"`{value}`"
        case {"enum": values}:
            return " or ".join(f"`{value}`" for value in values)
        case {"patternProperties": inner}:
            [value] = inner.values()
            return f"NAME: {_type(value, titles)}"
        case {"propertyNames": names, "additionalProperties": inner}:
            return f"{_type(names, titles)}: {_type(inner, titles)}"
        case {"additionalProperties": inner}:
            return f"integer: {_type(inner, titles)}"
        case {"prefixItems": items}:
            return f"[{', '.join(_type(item, titles) for item in items)}]"
        case {"items": inner}:
            return f"list of {_type(inner, titles)}"
        case {"type": kind}:
            word = {"string": "text", "boolean": "true or false"}.get(kind) or str(kind)
            return " ".join([word, *_bounds(field)])
    raise ValueError(f"no words for the type of {field}")


def _bounds(field: Schema) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for word, sign in signs.items():
        if word in field and f"exclusive{word.title()}" not in field:
            yield f"{sign} {field[word]:g}"
