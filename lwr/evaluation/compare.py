"""Compare exits with the deepest exit, plain and fused, with the first stage, and between arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE, Arm, is_fused, is_layer, label, layer_of
from lwr.evaluation.measures import read_measures
from lwr.evaluation.statistics.paired_tests import compare_pair, holm
from lwr.formats.tables import csv_text, markdown_table, write_text

Exit = tuple[Arm, str]
"""An arm and the name of one of its exits."""

NO_ARM = Arm("", "", 0, "")
"""The arm of the first stage, which is the same for all arms."""

FAMILY_TITLES = {
    "deepest": "Against the deepest exit of the same model",
    "fused deepest": "Against the deepest exit of the same model, fused",
    "first stage": "Against the first stage",
    "arms": "Against the grid's first model, layer by layer",
    "fused arms": "Against the grid's first model, layer by layer, fused",
}
DEEPEST_FAMILIES = ("deepest", "fused deepest")
ARM_FAMILIES = ("arms", "fused arms")

EXIT_COLUMNS = [*ARM_COLUMNS[1:], "exit"]

COLUMNS = [
    "split",
    "dataset",
    "family",
    *EXIT_COLUMNS,
    *(f"versus_{name}" for name in EXIT_COLUMNS),
    "seeds",
    "queries",
    "value",
    "versus_value",
    "difference",
    "low",
    "high",
    "p t",
    "p randomisation",
    "p Holm",
    "effect size",
    "p noninferior",
    "p noninferior Holm",
    "noninferior",
    "wins",
    "ties",
    "losses",
]


def compare(measures: Sequence[Path], primary: str, margin: float, out: Path) -> None:
    """Write comparisons.csv (dev and test) and comparisons.md (test).

    Args:
        measures: Parquet files that `lwr evaluate` wrote.
        primary: The measure that is compared.
        margin: The margin of non-inferiority, in units of the measure.
        out: The folder of both files.
    """
    table = compare_exits(read_measures(measures), primary, margin).assign(measure=primary, margin=margin)
    note = (
        f"Differences in {primary} on test, [95% bootstrap interval over queries and seeds]; p of a paired "
        "randomisation test over queries, by Holm's method within each data set and section; effect size: Cohen's "
        "d_z.\n\n"
    )
    sections = [
        f"## {FAMILY_TITLES[family]}\n\n{markdown_table(format_comparisons(rows, margin))}"
        for family, rows in table[table["split"] == "test"].groupby("family", sort=False)
    ]
    write_text(out / "comparisons.md", note + "\n".join(sections))
    write_text(out / "comparisons.csv", csv_text(table))


def compare_exits(measures: pd.DataFrame, primary: str, margin: float) -> pd.DataFrame:
    """Return a row per comparison; splits, data sets, arms and exits are in the order of `measures`.

    A comparison belongs to a family, within which `p Holm` adjusts `p randomisation`, in each split and data set:

    - deepest: each other exit of an arm (fused ones and a cascade too) with the arm's deepest layer alone.
    - fused deepest: the same with the arm's deepest fused exit, where there are fused exits.
    - first stage: each exit of each arm (a cascade too) with the first stage, whose versus_ columns are empty or 0.
    - arms: each arm with the data set's first arm, at each layer that both have, and the deepest layer with the
      deepest where these differ.
    - fused arms: the same for fused exits.

    Non-inferiority is tested in the families `DEEPEST_FAMILIES` alone; elsewhere `p noninferior`, `p noninferior Holm`
    and `noninferior` are missing.

    Args:
        measures: The files of `lwr evaluate`, concatenated; see `read_measures`.
        primary: The measure that is compared.
        margin: The margin of non-inferiority, in units of the measure.

    Returns:
        A table with the columns `COLUMNS`; for their meaning see `compare_pair`.

    Raises:
        ValueError: An exit lacks a query or a seed that its data set or its arm has, or has one twice.
    """
    chosen = measures[measures["measure"] == primary]
    rows = []
    for (split, dataset), ranked in chosen.groupby(["split", "dataset"], sort=False):
        values = _values_by_exit(ranked, f"{split} split of {dataset}")
        for family, exit, versus in _pairs(list(values)):
            about = {"split": split, "dataset": dataset, "family": family}
            about |= _exit_columns(exit, "") | _exit_columns(versus, "versus_")
            same_training = exit[0] == versus[0]
            rows.append(about | compare_pair(values[exit], values[versus], same_training, margin))
    table = pd.DataFrame(rows)

    families = table.groupby(["split", "dataset", "family"], sort=False)
    is_deepest = table["family"].isin(DEEPEST_FAMILIES)
    adjusted = families["p noninferior"].transform(holm).where(is_deepest)
    table["p Holm"] = families["p randomisation"].transform(holm)
    table["p noninferior"] = table["p noninferior"].where(is_deepest)
    table["p noninferior Holm"] = adjusted
    table["noninferior"] = (adjusted < 0.05).astype("boolean").where(is_deepest)
    return table[COLUMNS]


def _values_by_exit(ranked: pd.DataFrame, where: str) -> dict[Exit, np.ndarray]:
    """Return float64 [seeds, queries] per exit, both sorted; the first stage is there once, [1, queries]."""
    queries = sorted(ranked["query_id"].unique())
    values = {}
    for key, of_arm in ranked.groupby(ARM_COLUMNS[1:], sort=False):
        seeds = sorted(of_arm["seed"].unique())
        for name, rows in of_arm.groupby("exit", sort=False):
            rows = rows.sort_values(["seed", "query_id"])
            if list(zip(rows["seed"], rows["query_id"], strict=True)) != list(product(seeds, queries)):
                raise ValueError(
                    f"{where}: {name} of {' '.join(map(str, key))} must have each of {len(queries)} queries "
                    f"once for each of the seeds {', '.join(map(str, seeds))}"
                )
            grid = rows["value"].to_numpy(np.float64).reshape(len(seeds), len(queries))
            if name == FIRST_STAGE:  # the same for each arm and seed
                values[NO_ARM, name] = grid[:1]
            else:
                values[Arm(*key), name] = grid
    return values


def _pairs(exits: Iterable[Exit]) -> Iterator[tuple[str, Exit, Exit]]:
    """Yield (family, exit, the exit that it is compared with)."""
    by_arm: dict[Arm, list[Exit]] = {}
    for exit in exits:
        by_arm.setdefault(exit[0], []).append(exit)
    [first_stage] = by_arm.pop(NO_ARM)
    for family, of_kind in zip(DEEPEST_FAMILIES, (is_layer, is_fused), strict=True):
        for own in by_arm.values():
            if same_kind := _of_kind(own, of_kind):
                deepest = max(same_kind, key=_layer)
                yield from ((family, exit, deepest) for exit in own if exit != deepest)
    for own in by_arm.values():
        yield from (("first stage", exit, first_stage) for exit in own)
    baseline, *others = by_arm.values()
    for family, of_kind in zip(ARM_FAMILIES, (is_layer, is_fused), strict=True):
        for own in others:
            pairs = _pairs_of_arms(_of_kind(own, of_kind), _of_kind(baseline, of_kind))
            yield from ((family, exit, versus) for exit, versus in pairs)


def _pairs_of_arms(own: list[Exit], baseline: list[Exit]) -> Iterator[tuple[Exit, Exit]]:
    """Yield the exits of two arms at the same layers, and their deepest exits where these differ in the layer."""
    yield from (pair for pair in product(own, baseline) if _layer(pair[0]) == _layer(pair[1]))
    if own and baseline:
        deepest = max(own, key=_layer), max(baseline, key=_layer)
        if _layer(deepest[0]) != _layer(deepest[1]):
            yield deepest


def _of_kind(exits: Iterable[Exit], of_kind: Callable[[str], bool]) -> list[Exit]:
    """Return the exits whose name is of a kind: `is_layer` or `is_fused`."""
    return [exit for exit in exits if of_kind(exit[1])]


def _layer(exit: Exit) -> int:
    return layer_of(exit[1])


def _exit_columns(exit: Exit, prefix: str) -> dict[str, Any]:
    arm, name = exit
    values = [arm.trained_on, arm.base_model, arm.start_layer, arm.variant, name]
    return {f"{prefix}{column}": value for column, value in zip(EXIT_COLUMNS, values, strict=True)}


def format_comparisons(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return the rows of `compare_exits` as text.

    An arm is named by its base model and start layer; by its variant where the table has several; and by the data set
    that it was trained on where that is not the one that is ranked.

    Args:
        table: Rows of `compare_exits`.
        margin: The margin that `compare_exits` was given.
    """
    variants = {*table["variant"], *table["versus_variant"]} - {""}
    show_variant = len(variants) > 1
    show_trained_on = table["trained_on"].ne(table["dataset"]).any()

    def exit_of_arm(row: dict[str, Any], prefix: str) -> str:
        arm = f"{row[f'{prefix}base_model']} start {row[f'{prefix}start_layer']}"
        if show_variant:
            arm += f" {row[f'{prefix}variant']}"
        if show_trained_on:
            arm += f" trained on {row[f'{prefix}trained_on']}"
        return f"{arm}: {label(row[f'{prefix}exit'])}"

    rows = [
        {
            "data set": row["dataset"],
            "what": exit_of_arm(row, ""),
            "against": exit_of_arm(row, "versus_")
            if row["family"] in ARM_FAMILIES
            else label(row["versus_exit"]),
            "difference": f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            "p (Holm)": "<0.001" if row["p Holm"] < 0.001 else f"{row['p Holm']:.3f}",
            "effect size": f"{row['effect size']:+.2f}",
            "won/tied/lost": f"{row['wins']}/{row['ties']}/{row['losses']}",
            f"not worse by {margin:g}": {True: "yes", False: "no"}.get(row["noninferior"], ""),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)
