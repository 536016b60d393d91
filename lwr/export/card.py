"""A model card for a whole reranker: what it is, how well each of its layers ranks, which to take, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS
from lwr.export.readme import SAMPLE, front_matter
from lwr.formats.checkpoint import fetch_checkpoint, find_local_folder
from lwr.formats.tables import markdown_table
from lwr.model.storage import read_stored_exits
from lwr.reporting.advise import (
    Evidence,
    cascade_advice,
    comparisons_to_deepest,
    read_evidence,
    rows_of_arm,
    shallowest_exit_advice,
)
from lwr.reporting.tables import format_arms, format_cascades, format_costs, format_layers

CELL = re.compile(r"(.+)/cells/([^/]+)/([^/]+)/start(\d+)/([^/]+)/seed(-?\d+)/model")
"""Where the workflow puts a model: results, data set, base model, start layer, variant, seed."""
UNKNOWN = "unknown"  # as the hub writes it; not guessed, as the base model's licence has a say, too

CARD = """\
{front}

# {title}

A layerwise reranker: it reads a query and a passage together and has a relevance head at every layer from {first} to
{last}. One checkpoint is {many} rerankers: shallow layers are fast, deep ones accurate, and no block above the layer
that is asked for runs. {origin}

## Use

It needs the package lwr (this card is by version {version}).

```python
from lwr.model.reranker import LayerwiseReranker

reranker = LayerwiseReranker.from_pretrained({quoted_name})
query = "{query}"
passages = ["{passage}", "to_csv(path) writes a table."]
{calls}
```

On the command line, passages one a line in a file:

```
lwr rerank --model {name} --query "{query}" --passages passages.txt --layer {layer}
```

{results}## Training

{training}

## Limits

{limits}
"""


def card(
    model: Path,
    results: Path | None = None,
    name: str = "path/to/this/folder",
    license: str = UNKNOWN,
) -> str:
    """Markdown with the hub's front matter, from a reranker's folder and the tables of its grid; no weights are read.

    results: folder of the grid; None: the one that the model lies in, or, elsewhere, a card without results.
    name: what users load it by. Raises BadInput where a table is missing or has no row of this model, and ValueError
    where the folder holds no reranker.
    """
    exits = read_stored_exits(str(model))
    folder = fetch_checkpoint(str(model), None)
    about, origin = (_json(folder / file) for file in ("lwr.json", "provenance.json"))
    cell = CELL.fullmatch(str(folder.resolve()))
    if results is not None and cell is None:
        raise BadInput(
            f"{model}: not in the place of a grid's model, so its rows can't be told; leave out --results"
        )
    measured = _evidence(results or Path(cell[1]), cell) if cell else {}
    base = (about.get("base") or {}).get("model")
    cascade, layer = _deployed(measured, exits)
    return CARD.format(
        front=front_matter(
            library_name="lwr",
            license=license,
            base_model=base if base and _on_hub(base) else None,
            tags=["reranker", "cross-encoder", "layerwise", "lwr"],
            datasets=[cell[2]] if cell else None,
            metrics=list(dict.fromkeys(metric for e, _ in measured.values() for metric in _measures(e))),
        ),
        title=_title(name, cell),
        first=exits[0],
        last=exits[-1],
        many=len(exits),
        origin=_origin(base, cell),
        version=version("lwr"),
        name=name,
        quoted_name=json.dumps(name),
        query=SAMPLE[0],
        passage=SAMPLE[1],
        calls="\n".join(_calls(exits[-1], layer, cascade)),
        layer=layer,
        results="".join(_results(dataset, *found) for dataset, found in measured.items()),
        training="\n".join(_training(origin)) or "Nothing is written down of it.",
        limits="\n".join(f"- {limit}" for limit in _limits(about, license, measured, cell)),
    )


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _on_hub(model: str) -> bool:
    """Whether the hub would know that name; a path of this machine has no place on a card."""
    try:
        return find_local_folder(model) is None
    except ValueError:
        return False


def _evidence(results: Path, cell: re.Match[str]) -> dict[str, tuple[Evidence, pd.Series]]:
    """By data set that it ranked: the grid's tables, and which of their rows are this model's."""
    _, trained_on, base_model, start_layer, variant, _ = cell.groups()
    found = {}
    for dataset, evidence in read_evidence(results / "tables").items():
        values = [dataset, trained_on, base_model, int(start_layer), variant]
        arm = pd.Series(dict(zip(ARM_COLUMNS, values, strict=True)))
        if len(rows_of_arm(evidence.layers, arm)):
            found[dataset] = evidence, arm
    if not found:
        raise BadInput(
            f"{results}/tables/layers.csv: no row of {trained_on}, {base_model}, start {start_layer}, {variant}; "
            "run the workflow, or give the results of this model's grid"
        )
    return found


def _deployed(measured: dict[str, tuple[Evidence, pd.Series]], exits: list[int]) -> tuple[str | None, int]:
    """For the examples: the cascade that was chosen, if one was, and the exit that dev shows to be as good as the
    deepest, else the one in the middle."""
    cascade, layer = None, exits[len(exits) // 2]
    for evidence, arm in list(measured.values())[:1]:
        schedules = rows_of_arm(evidence.cascades, arm)
        chosen = schedules[schedules["chosen"]]["schedule"].iloc[0]
        cascade = chosen if ":" in chosen else None
        dev = comparisons_to_deepest(evidence, arm, "dev")
        as_good = dev[dev["noninferior"].astype(bool)]
        layer = layer if as_good.empty else int(as_good.index[0].removeprefix("layer_"))
    return cascade, layer


def _title(name: str, cell: re.Match[str] | None) -> str:
    if "/" in name and not name.startswith((".", "/", "path/")):
        return name.rpartition("/")[2]
    return f"{cell[3]}, start {cell[4]}, {cell[5]}" if cell else "A layerwise reranker"


def _origin(base: str | None, cell: re.Match[str] | None) -> str:
    known = (
        f"`{base}`"
        if base and (_on_hub(base) or base.startswith("package:"))
        else "a model that is not named"
    )
    trained = f", trained on {cell[2]}" if cell else ""
    return f"Its backbone started as {known}{trained}."


def _calls(deepest: int, layer: int, cascade: str | None) -> Iterator[str]:
    yield f"reranker.rank(query, passages)  # by the deepest layer, {deepest}"
    yield f"reranker.rank(query, passages, layer={layer})"
    if cascade:
        yield f'reranker.rank(query, passages, cascade="{cascade}")  # chosen on dev'
    yield 'reranker.score([(query, passage) for passage in passages], layers="all")  # float32 [layers, pairs]'


# --- results -------------------------------------------------------------------------------------------


def _measures(evidence: Evidence) -> list[str]:
    return [name.removesuffix(" sd") for name in evidence.layers if name.endswith(" sd")]


def _results(dataset: str, evidence: Evidence, arm: pd.Series) -> str:
    exits = rows_of_arm(evidence.layers, arm)
    quality = pd.concat([evidence.layers.iloc[[0]], exits])  # the data set's first stage stands first
    cost = rows_of_arm(evidence.cost, arm)
    seeds = int(exits["seeds"].iloc[0])
    text = f"""## Results on {dataset}

Test queries; the *first stage* found the candidates. *Share of gain*: what a layer keeps of the deepest layer's
improvement over it.{f" Means over {seeds} trainings, of which this is one." if seeds > 1 else ""}

{_table(format_layers(quality, _measures(evidence)), quality)}
{shallowest_exit_advice(evidence, arm)}

{cascade_advice(evidence, arm)}

### What each layer costs

{_table(format_costs(cost), cost)}"""
    if cost["p50 ms"].notna().any():
        text += f"\nTimes of one list of {cost['candidates'].iloc[0]} passages, from texts to ranking, on "
        text += f"{cost['device'].iloc[0]}, {cost['precision'].iloc[0]}.\n"
    schedules = rows_of_arm(evidence.cascades, arm)
    text += f"\n### Cascades that no other beats on dev\n\n{_table(format_cascades(schedules), schedules)}"
    return text + "\n"


def _table(text: pd.DataFrame, of: pd.DataFrame) -> str:
    """Without the columns that name the model: the card is about one."""
    return markdown_table(text.drop(columns=list(format_arms(of))))


# --- where it came from, and what it is not -------------------------------------------------------------


def _training(origin: dict[str, Any]) -> Iterator[str]:
    """Settings, versions and checksums; nothing of the machine, which is nobody's business on a hub."""
    if not origin:
        return
    yield "| setting | value |\n|:--|:--|"
    for name, value in origin["settings"].items():
        yield f"| {name} | {json.dumps(value)} |"
    yield f"| seed | {origin['seed']} |"
    yield f"\nBy lwr {origin['lwr']}{_commit(origin)} with {_versions(origin['packages'])}."
    yield f"sha256 of the training groups: `{origin['groups_sha256']}`."
    yield f"Fingerprint of the base model's weights (`lwr base`): `{origin['base_fingerprint']}`."


def _commit(origin: dict[str, Any]) -> str:
    return f" (commit {origin['git_commit'][:12]})" if origin.get("git_commit") else ""


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _limits(
    about: dict[str, Any],
    license: str,
    measured: dict[str, tuple[Evidence, pd.Series]],
    cell: re.Match[str] | None,
) -> Iterator[str]:
    if measured:
        yield (
            f"Measured on {', '.join(measured)} alone, on a first stage's candidates. Other domains, languages and "
            "candidates may rank otherwise: measure before you deploy, and choose the layer again."
        )
    else:
        yield "This card has no results: measure before you deploy."
    if "passage_max_len" in about:
        row = about["query_max_len"] + about["passage_max_len"]
        yield f"Pairs above {row} tokens are cut, as in training; a passage's end is not read then."
    yield (
        "Scores are raw: good for the order of one query's passages, no probabilities, and those of different layers "
        "can't be compared."
    )
    if cell and measured:
        yield f"This checkpoint is of seed {cell[6]}; another seed ranks a little otherwise."
    if license == UNKNOWN:
        yield "No licence was named. The base model's applies to what is made of it."
