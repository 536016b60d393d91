"""The rows that the figures draw: exits, queries won and lost, losses of training; and a label for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.exits import (
    ARM_COLUMNS,
    CASCADES,
    FIRST_STAGE,
    exit_name,
    is_fused,
    is_layer,
    label,
    layer_of,
    layers_in,
    sort_key,
)
from lwr.common.json_lines import read_jsonl
from lwr.common.results_tree import cell_of_model
from lwr.evaluation.calibrate import read_calibrations
from lwr.evaluation.schedules.front import pareto_front
from lwr.evaluation.statistics.paired_tests import EQUAL
from lwr.reporting.fused import complete_layers

TEXT_COLUMNS = ("dataset", "trained_on", "base_model", "variant", "exit", "schedule", "compression")
OTHER_LOGS = ("distillation", "eval")
"""Names of what training.jsonl logs per exit beside the loss of `train.loss`."""
MOST_POINTS = 60
"""Points of a training curve: a panel is not wide enough for more."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of results/tables; a model or variant named `1` or `null` keeps its name, an empty one is ""."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=[""])
    return table.fillna({name: "" for name in TEXT_COLUMNS if name in table})


def label_arms(table: pd.DataFrame) -> pd.Series:
    """Return a label of each row's arm: base model, start layer, and of the rest what differs between the arms."""
    labels = table["base_model"] + ", start " + table["start_layer"].astype(int).astype(str)
    if table["variant"].nunique() > 1:
        labels += ", " + table["variant"]
    # Models that are each trained on the data set they rank, or all on the same one, do not differ in this.
    if table["trained_on"].nunique() > 1 and table["trained_on"].ne(table["dataset"]).any():
        labels += ", trained on " + table["trained_on"]
    return labels


def exit_rows(layers: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Return the rows of layers.csv with the columns that the figures need.

    Returns:
        ARM_COLUMNS, arm (label; missing for the first stage), exit, kind (`first stage`, `exit`, `fused`: an exit whose
        scores are fused, `compressed`: one that reads compressed passages, `cascade`), what (the exit in words), layer,
        seeds; quality, low, high of the measure `primary`; shares and FLOPs of layers.csv.
    """
    layers = complete_layers(layers)
    kind = layers["exit"].map({FIRST_STAGE: "first stage"} | dict.fromkeys(CASCADES, "cascade"))
    kind = kind.fillna(layers["fused"].map({True: "fused", False: "exit"}))
    is_compressed = layers["compression"].ne("")
    kind = kind.mask(is_compressed, "compressed")
    layer = "layer " + layers["layer"].astype(str)
    table = layers.assign(
        arm=label_arms(layers[kind != "first stage"]).reindex(layers.index),
        kind=kind,
        what=layer.mask(kind == "cascade", "cascade " + layers["schedule"])
        + layers["fused"].map({True: ", fused", False: ""})
        + (", compressed " + layers["compression"]).where(is_compressed, ""),
        quality=layers[primary],
        low=layers[f"{primary} low"],
        high=layers[f"{primary} high"],
    )
    # The columns of measures are dropped: dots and brackets in their names have a meaning in Vega-Lite.
    columns = ["arm", "exit", "kind", "what", "layer", "seeds", "quality", "low", "high"]
    return table[[*ARM_COLUMNS, *columns, "share of score", "share of gain", "flops", "gflops per pair"]]


def complete_front(cascades: pd.DataFrame) -> pd.DataFrame:
    """Return the schedules that read complete passages and are Pareto-optimal among these on dev.

    Args:
        cascades: The completed table of cascades.

    Returns:
        Rows of the arms that also have schedules with compressed passages, the cheapest first; none of other arms.
    """
    fronts = []
    for _, of_arm in cascades.groupby(ARM_COLUMNS, sort=False):
        compresses = of_arm["schedule"].str.contains("/")
        if compresses.any():
            fronts.append(pareto_front(of_arm[~compresses], "dev flops", "dev"))
    return pd.concat(fronts) if fronts else cascades.iloc[:0]


def count_wins(per_query: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Count the test queries that each exit ranks worse than its arm's deepest exit, equally well, and better.

    The deepest exit is the one that is not fused. The first stage, fused exits and cascades are compared like the
    exits. A query counts once, by its mean over seeds.

    Args:
        per_query: Columns ARM_COLUMNS, seed, split, exit, query_id, measure, value.
        primary: The measure that is compared.

    Returns:
        A row per exit and outcome: ARM_COLUMNS, exit, difference (mean over queries), outcome (`lost`, `tied`, `won`),
        queries, share (of all queries).
    """
    test = per_query[(per_query["split"] == "test") & (per_query["measure"] == primary)]
    rows = []
    for arm, of_arm in test.groupby(ARM_COLUMNS, sort=False):
        values = of_arm.groupby(["exit", "query_id"])["value"].mean().unstack("query_id")
        deepest = exit_name(max(layers_in(values.index)))
        for exit in sorted(set(values.index) - {deepest}, key=sort_key):
            difference = values.loc[exit] - values.loc[deepest]
            lost, won = int((difference < -EQUAL).sum()), int((difference > EQUAL).sum())
            counts = {"lost": lost, "tied": len(difference) - lost - won, "won": won}
            for outcome, queries in counts.items():
                rows.append((*arm, exit, difference.mean(), outcome, queries, queries / len(difference)))
    return pd.DataFrame(rows, columns=[*ARM_COLUMNS, "exit", "difference", "outcome", "queries", "share"])


def label_exits(names: set[str]) -> dict[str, str]:
    """Return the axis label of each exit, from the first stage to the cascades; a layer's is its number."""
    ordered = sorted(names, key=sort_key)
    return {
        name: label(name) if name in (FIRST_STAGE, *CASCADES) else label(name).removeprefix("layer ")
        for name in ordered
    }


def select_panels(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the first `most` arms, their label as column `panel`, and a note if there are more arms."""
    panel = label_arms(table)
    if table["dataset"].nunique() > 1:
        panel = table["dataset"] + ": " + panel
    arms = list(dict.fromkeys(panel))
    note = [f"The first {most} of {len(arms)} arms."] if len(arms) > most else []
    return table.assign(panel=panel)[panel.isin(arms[:most])].copy(), note


def read_reliability(calibrations: Sequence[Path]) -> pd.DataFrame:
    """Read the bins of the deepest exit of each cell, fused where there are fused scores, by method.

    Args:
        calibrations: Files that `lwr calibrate` wrote.

    Returns:
        ARM_COLUMNS, seed, exit, what (the exit in words), method (of `METHODS`; `perfect`: the diagonal), predicted
        (mean probability), share (of relevant candidates), candidates.
    """
    table = read_calibrations(calibrations)
    table = table[table["exit"].map(lambda name: is_layer(name) or is_fused(name))]
    ranks = table["exit"].map(lambda name: (layer_of(name), is_fused(name)))
    table = table[ranks == ranks.groupby([table[name] for name in ARM_COLUMNS]).transform("max")]
    rows = []
    for _, row in table.iterrows():
        about = {name: row[name] for name in [*ARM_COLUMNS, "seed", "exit", "method"]}
        rows += [
            about | dict(zip(("predicted", "share", "candidates"), values, strict=True))
            for values in row["bins"]
        ]
    bins = pd.DataFrame(rows)
    arms = bins.drop_duplicates(ARM_COLUMNS).assign(method="perfect", candidates=0)
    diagonal = [arms.assign(predicted=end, share=end) for end in (0.0, 1.0)]
    return pd.concat([bins, *diagonal], ignore_index=True).assign(what=lambda rows: rows["exit"].map(label))


def read_training_losses(models: Sequence[Path]) -> pd.DataFrame:
    """Read the loss of each exit by step: means over seeds and, in long trainings, over adjacent steps.

    The loss is that of the labels or scores (`train.loss`), without that of a teacher among the exits.

    Args:
        models: Folders that `lwr train` wrote, each with its training.jsonl.

    Returns:
        ARM_COLUMNS (the data set is the one trained on), layer, step, loss, name (of the loss).

    Raises:
        BadInput: A training.jsonl is not JSON lines, or a model's cell is not known.
    """
    rows = []
    for model in models:
        cell = cell_of_model(model)
        arm = (cell.trained_on, cell.trained_on, cell.base_model, cell.start_layer, cell.variant)
        for line in read_jsonl(model / "training.jsonl", {}):
            for key, value in line.items():
                name, _, exit = key.partition("_layer_")
                if exit and name not in OTHER_LOGS:
                    rows.append((*arm, name, int(exit), line["step"], value))
    table = pd.DataFrame(rows, columns=[*ARM_COLUMNS, "name", "layer", "step", "loss"])
    if table.empty:
        return table
    steps_per_point = -(-table["step"].max() // MOST_POINTS)  # rounded up
    points = (table["step"] // steps_per_point).rename("point")
    means = table.groupby([*ARM_COLUMNS, "name", "layer", points], sort=False)[["step", "loss"]].mean()
    return means.reset_index().drop(columns="point")
