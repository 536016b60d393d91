"""The report: one HTML page with the recommendation, the figures, the tables, and the provenance of the models.

The page is one file that loads nothing from a network: it can be mailed, and opened from a disk years later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
import yaml
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from lwr.common.atomic import atomic
from lwr.common.exits import ARM_COLUMNS, CASCADES, FIRST_STAGE, compression_steps, is_layer, label
from lwr.common.json_lines import read_json
from lwr.common.results_tree import FIGURES, TABLES, ResultsTree, cell_of_model
from lwr.evaluation.arm_files import CHOICE_COLUMNS, CHOICE_FOR_FUSED_COLUMNS
from lwr.reporting.palette import read_stylesheet

TEMPLATE = Path(__file__).with_suffix(".html")
CAPTIONS = Path(__file__).with_name("captions.yaml")
SHARED_COLUMNS = (
    "split",
    "family",
    "measure",
    "margin",
    "epsilon",
    "deepest",
    *CHOICE_COLUMNS,
    *CHOICE_FOR_FUSED_COLUMNS,
    "front",
    "seeds",
    "queries",
    "candidates",
    "device",
    "precision",
)
"""Columns that are given once, above a table, where all its rows agree; those of the arm are, too."""
NUMBER = re.compile(r"(-?[\d.,]+(e-?\d+)?( (±|to) .*)?)?")


def report(tables: Path, figures: Path, models: Sequence[Path], title: str, out: Path) -> None:
    """Write the page `out`.

    Args:
        tables: Folder of recommendation.md and of the tables as .csv.
        figures: Folder of the figures as .json.
        models: Folders that `lwr train` wrote, each with its provenance.json.
        title: The headline of the page.
        out: The HTML file.

    Raises:
        FileNotFoundError: A file is missing.
        BadInput: The cell of a model is not known.
    """
    shared, differing = model_origins(models)
    captions = yaml.safe_load(CAPTIONS.read_text(encoding="utf-8"))
    recommendation = (tables / "recommendation.md").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    bundle = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] - its argument is optional
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        style=Markup(read_stylesheet()),
        recommendation=Markup(render_markdown(recommendation)),
        figures=[captions["figures"][name] | _read_figure(figures, name) for name in FIGURES],
        tables=[captions["tables"][name] | _read_table(tables, name) for name in TABLES],
        shared=shared,
        models=differing,
        numeric=numeric_columns,
        zip=zip,
        vega=Markup(bundle.replace("</script", "<\\/script")),
    )
    with atomic(out) as draft:
        draft.write_text(page, encoding="utf-8")


def render_markdown(text: str) -> str:
    """Render Markdown as HTML, with headings one level down, below the page's title. HTML in `text` is escaped."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    return parser.renderer.render(tokens, parser.options, {})


def _read_figure(folder: Path, name: str) -> dict[str, Any]:
    spec = (folder / f"{name}.json").read_text(encoding="utf-8")
    wide = "facet" in json.loads(spec)
    in_script = spec.replace("<", "\\u003c")  # the same JSON, without a tag that could end the script
    return {"name": name, "wide": wide, "spec": Markup(in_script)}


def _read_table(folder: Path, name: str) -> dict[str, Any]:
    table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    if name == "comparisons":
        table = table[table["split"] == "test"]
    shared, rows = separate_shared_values(format_table(table))
    return {"name": name, "shared": shared, "rows": rows}


# --- Tables as text ---


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Format a table for readers: three decimals, `mean ± sd` and `low to high` in one cell, no empty columns.

    Args:
        table: Text as it is in a .csv of results/tables.
    """
    text = table.loc[:, table.ne("").any()].apply(_format_column)
    for name in [name for name in text if f"{name} sd" in text]:
        sd = text.pop(f"{name} sd")
        text[name] = (text[name] + " ± " + sd).where(sd != "", text[name])
    for low in [name for name in text if name.split()[-1] == "low"]:
        prefix = low.removesuffix("low")
        high = text.pop(f"{prefix}high")
        interval = (text.pop(low) + " to " + high).where(high != "", "")
        place = text.columns.get_loc(prefix.strip() or "difference") + 1
        text.insert(place, f"{prefix}95% interval", interval)
    return text.rename(columns=lambda name: name.replace("_", " "))


def _format_column(column: pd.Series) -> pd.Series:
    """Format numbers, truth values and the names of exits; leave other text as it is."""
    numbers = pd.to_numeric(column.where(column != ""), errors="coerce")
    if numbers.isna().ne(column == "").any():
        return column.map(_format_word)
    decimals = 0 if numbers.dropna().mod(1).eq(0).all() else 3 if numbers.abs().max() < 100 else 1
    return numbers.map(lambda number: "" if pd.isna(number) else _format_number(number, decimals))


def _format_word(word: str) -> str:
    plain = word.removesuffix("_fused")
    if word in (FIRST_STAGE, *CASCADES) or is_layer(plain) or compression_steps(plain):
        return label(word)
    return {"True": "yes", "False": "no"}.get(word, word)


def _format_number(number: float, decimals: int) -> str:
    tiny = number != 0 and abs(number) < 0.0005
    return f"{number:.1e}" if tiny else f"{number:,.{decimals}f}"


def separate_shared_values(table: pd.DataFrame) -> tuple[dict[str, str], pd.DataFrame]:
    """Return the values that all rows share, by column, and the table without these columns.

    Only columns of the arm and of SHARED_COLUMNS are considered. The first stage does not belong to an arm: its empty
    cells do not count as other values.
    """
    arm = [name.replace("_", " ") for name in ARM_COLUMNS]
    names = [*arm, *SHARED_COLUMNS, *(f"versus {name}" for name in arm)]
    values = {name: set(table[name]) - ({""} if name in arm else set()) for name in names if name in table}
    shared = {name: found.pop() for name, found in values.items() if len(found) == 1 < len(table)}
    return shared, table.drop(columns=list(shared))


def numeric_columns(table: pd.DataFrame) -> set[str]:
    """Return the columns of a table of text that are sorted by the number that each cell begins with."""
    return {name for name in table if all(map(NUMBER.fullmatch, table[name]))}


# --- Provenance ---


def model_origins(models: Sequence[Path]) -> tuple[dict[str, str], pd.DataFrame]:
    """Return what the provenance of all models shares, and a table with a row per model of what differs.

    Nested names are joined by dots. Checksums and commits are cut to twelve digits.
    """
    facts = {_model_name(model): _read_provenance(model) for model in models}
    table = pd.DataFrame.from_dict(facts, orient="index").fillna("")
    shared = {name: table[name].iloc[0] for name in table if table[name].nunique() == 1}
    table = table.drop(columns=list(shared)).rename_axis("model").reset_index()
    return {name: value for name, value in shared.items() if value}, table


def _model_name(model: Path) -> str:
    """Return the path of the model's cell below results/cells."""
    return ResultsTree(Path()).cell(cell_of_model(model)).relative_to("cells").as_posix()


def _read_provenance(model: Path) -> dict[str, str]:
    """Read a provenance.json without the cell, which is the model's name, and the checksums of all its files."""
    facts = read_json(model / "provenance.json", {})
    return _flatten({name: value for name, value in facts.items() if name not in ("cell", "files")})


def _flatten(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        inner = [_flatten(below, f"{name}.{key}" if name else key) for key, below in value.items()]
        return {key: text for found in inner for key, text in found.items()}
    if value is None:
        return {name: ""}
    text = value if isinstance(value, str) else json.dumps(value)
    return {name: re.sub(r"\b([0-9a-f]{12})[0-9a-f]{8,}", r"\1…", text)}
