"""One page of HTML that holds everything a run found out: what to deploy, figures, tables, where it came from.

The page is one file and asks no network for anything: it can be mailed, and opened from a disk years later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from lwr.common.atomic import atomic
from lwr.common.exits import ARM_COLUMNS
from lwr.common.json_lines import read_json
from lwr.reporting.figures import FIGURES

CAPTIONS = {
    "quality": (
        "Quality by layer",
        "Where a line flattens, deeper layers buy little. Exits below the dashed line rank worse than the first "
        "stage alone. Points of several arms stand side by side for legibility.",
    ),
    "gain": (
        "Gain kept at each depth",
        "What reranking adds to the first stage at the deepest exit is 100%; below 0% an exit ranks worse than the "
        "first stage. The share of the score flatters shallow exits, as it counts what the first stage had done.",
    ),
    "flops": (
        "Quality by computation",
        "Up and left is better. A cascade lets only its best passages go on to deeper layers; schedules were chosen "
        "on dev and are shown by what they do on test, so the dashed line may fall.",
    ),
    "latency": (
        "Quality by measured time",
        "Up and left is better. A point is the median time to rerank one list on the machine named, and its bar "
        "reaches to the 95th percentile.",
    ),
    "wins": (
        "Queries won and lost",
        "Each bar holds all test queries: those an exit ranks worse than the deepest exit, alike, and better. A mean "
        "that barely moves can hide many of both.",
    ),
    "training": (
        "Training",
        "The loss of each exit against the labels. Lines that still fall at the end ask for more steps; a shallow "
        "exit that stays high has not learnt to rank.",
    ),
}
TABLES = {
    "layers": ("Quality by layer", "Means over test queries and seeds, ± the standard deviation over seeds."),
    "cost": ("Measured cost", "Per list of candidates, on the device named."),
    "cascades": (
        "Cascades",
        "Schedules that no other beats on dev, and the deepest exit. 2:20 4:10 6: the best 20 at layer 2, of these the "
        "best 10 at layer 4, are ranked at layer 6. FLOPs are shares of the deepest exit's.",
    ),
    "comparisons": ("Comparisons", "Paired over test queries; p Holm counts all comparisons of its family."),
}
ABOUT = (
    *("split", "family", "measure", "margin", "epsilon", "deepest", "front"),
    *("seeds", "queries", "candidates", "device", "precision"),
)
NUMBER = re.compile(r"(-?[\d.,]+(e-?\d+)?( (±|to) .*)?)?")


def report(tables: Path, figures: Path, provenance: Sequence[Path], title: str, out: Path) -> None:
    """The page `out`: recommendation, figures, tables, provenance.

    tables: the folder of recommendation.md and of TABLES as .csv. figures: the folder of FIGURES as .json.
    provenance: `…/{dataset}/{base_model}/start{k}/{variant}/seed{n}/model/provenance.json`; these names are read.

    Raises FileNotFoundError where a file is missing.
    """
    shared, models = origins(provenance)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    text = template.render(
        title=title,
        recommendation=Markup(recommendation((tables / "recommendation.md").read_text(encoding="utf-8"))),
        figures=[_figure(figures, name) for name in FIGURES],
        tables=[_table(tables, name) for name in TABLES],
        shared=shared,
        models=models,
        numeric=numeric,
        zip=zip,
        vega=Markup(vl_convert.javascript_bundle().replace("</script", "<\\/script")),
    )
    with atomic(out) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def recommendation(markdown: str) -> str:
    """HTML, its headings one level down, as the page has a title; HTML in the Markdown stays text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    return parser.renderer.render(tokens, parser.options, {})


def _figure(folder: Path, name: str) -> dict[str, Any]:
    spec = (folder / f"{name}.json").read_text(encoding="utf-8")
    title, caption = CAPTIONS[name]
    wide = "facet" in json.loads(spec)
    in_script = spec.replace("<", "\\u003c")  # the same to JSON, and no tag to HTML
    return {"name": name, "title": title, "caption": caption, "wide": wide, "spec": Markup(in_script)}


def _table(folder: Path, name: str) -> dict[str, Any]:
    table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    if name == "comparisons":
        table = table[table["split"] == "test"]
    title, about = TABLES[name]
    common, rows = set_apart(readable(table))
    return {"name": name, "title": title, "about": about, "common": common, "rows": rows}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of text for people: three decimals, `mean ± sd` and `low to high` in one cell, no empty column."""
    text = table.loc[:, table.ne("").any()].apply(_rounded)
    for name in [name for name in text if f"{name} sd" in text]:
        sd = text.pop(f"{name} sd")
        text[name] = (text[name] + " ± " + sd).where(sd != "", text[name])
    for low in [name for name in text if name.split()[-1] == "low"]:
        start = low.removesuffix("low")
        high = text.pop(f"{start}high")
        interval = (text.pop(low) + " to " + high).where(high != "", "")
        beside = text.columns.get_loc(start.strip() or "difference") + 1
        text.insert(beside, f"{start}95% interval", interval)
    return text.rename(columns=lambda name: name.replace("_", " "))


def _rounded(column: pd.Series) -> pd.Series:
    """`yes` and `no` for truth, three decimals for decimals, thousands marked; other text as it is."""
    numbers = pd.to_numeric(column.where(column != ""), errors="coerce")
    if numbers.isna().ne(column == "").any():
        names = column.str.replace(
            r"^(first_stage|layer_\d+)$", lambda exit: exit[0].replace("_", " "), regex=True
        )
        return names.replace({"True": "yes", "False": "no"})
    decimals = 0 if numbers.dropna().mod(1).eq(0).all() else 3 if numbers.abs().max() < 100 else 1
    return numbers.map(lambda number: "" if pd.isna(number) else _short(number, decimals))


def _short(number: float, decimals: int) -> str:
    tiny = number != 0 and abs(number) < 0.0005
    return f"{number:.1e}" if tiny else f"{number:,.{decimals}f}"


def set_apart(table: pd.DataFrame) -> tuple[dict[str, str], pd.DataFrame]:
    """What all rows share, and the other columns. The first stage, which is of no arm, shares what all arms do."""
    arm = [name.replace("_", " ") for name in ARM_COLUMNS]
    about = [*arm, *ABOUT, *(f"versus {name}" for name in arm)]
    said = {name: set(table[name]) - ({""} if name in arm else set()) for name in about if name in table}
    common = {name: values.pop() for name, values in said.items() if len(values) == 1 < len(table)}
    return common, table.drop(columns=list(common))


def numeric(table: pd.DataFrame) -> set[str]:
    """The columns of a table of text that are sorted as numbers: by the number each cell begins with."""
    return {name for name in table if all(map(NUMBER.fullmatch, table[name]))}


def origins(provenance: Sequence[Path]) -> tuple[dict[str, str], pd.DataFrame]:
    """What the provenance of all models shares, and a table with a row per model of what differs.

    Nested names are joined by dots; of checksums and commits the first twelve digits are told.
    """
    flat = {"/".join(path.parts[-7:-2]): _flat(_without_files(read_json(path, {}))) for path in provenance}
    models = pd.DataFrame.from_dict(flat, orient="index").fillna("")
    shared = {name: models[name].iloc[0] for name in models if models[name].nunique() == 1}
    models = models.drop(columns=list(shared)).rename_axis("model").reset_index()
    return {name: value for name, value in shared.items() if value}, models


def _without_files(about: dict[str, Any]) -> dict[str, Any]:
    """The checksums of every file of a model are for `lwr verify`."""
    return {name: value for name, value in about.items() if name != "files"}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        inner = [_flat(below, f"{name}.{key}" if name else key) for key, below in value.items()]
        return {key: text for found in inner for key, text in found.items()}
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return {name: re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}", r"\1…", text)}
