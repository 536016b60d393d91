"""What the figures draw: rows by exit, queries won and lost, training curves, and a name for each arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE
from lwr.common.json_lines import read_jsonl
from lwr.evaluation.paired_tests import EQUAL

TEXT = ("dataset", "trained_on", "base_model", "variant", "exit", "schedule")
POINTS = 60  # of a training curve: no panel is wide enough for more


def read_table(path: Path) -> pd.DataFrame:
    """A table of results/tables; a model or variant named `1` or `null` keeps its name, none is ""."""
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    return table.fillna({name: "" for name in TEXT if name in table})


def arm_label(arms: pd.DataFrame) -> pd.Series:
    """Per row a name for its arm: base model and start, and of the rest what not all arms share."""
    label = arms["base_model"] + ", start " + arms["start_layer"].astype(int).astype(str)
    if arms["variant"].nunique() > 1:
        label += ", " + arms["variant"]
    # each on its own data set is no difference between arms, and neither is one for all
    if arms["trained_on"].nunique() > 1 and arms["trained_on"].ne(arms["dataset"]).any():
        label += ", trained on " + arms["trained_on"]
    return label


def by_exit(layers: pd.DataFrame, primary: str) -> pd.DataFrame:
    """The rows of layers.csv as the figures need them.

    Columns: the arm, arm (label; none for the first stage), exit, kind (`first stage`, `exit`, `cascade`), what (the
    exit in words), layer, seeds; quality, low, high of the primary measure; shares and FLOPs as they were.
    """
    kind = layers["exit"].map({FIRST_STAGE: "first stage", "cascade": "cascade"}).fillna("exit")
    table = layers.assign(
        arm=arm_label(layers[kind != "first stage"]).reindex(layers.index),
        kind=kind,
        what=("layer " + layers["layer"].astype(str)).mask(
            kind == "cascade", "cascade " + layers["schedule"]
        ),
        quality=layers[primary],
        low=layers[f"{primary} low"],
        high=layers[f"{primary} high"],
    )
    # the other measures' names, with dots and brackets, mean something else in a Vega-Lite specification
    about = ["arm", "exit", "kind", "what", "layer", "seeds", "quality", "low", "high"]
    return table[[*ARM_COLUMNS, *about, "share of score", "share of gain", "flops", "gflops per pair"]]


def won_and_lost(per_query: pd.DataFrame, primary: str) -> pd.DataFrame:
    """On how many test queries an exit ranks worse than the deepest of its arm, alike, better: a row each.

    per_query: columns of the arm, seed, split, exit, query_id, measure, value. A query counts once, by its mean over
    seeds. The first stage and a cascade are compared like the exits; the deepest exit is not.

    Columns: the arm, exit, outcome (`lost`, `tied`, `won`), queries, share (of all queries), difference (mean).
    """
    test = per_query[(per_query["split"] == "test") & (per_query["measure"] == primary)]
    found = []
    for arm, of_arm in test.groupby(ARM_COLUMNS, sort=False):
        values = of_arm.groupby(["exit", "query_id"])["value"].mean().unstack("query_id")
        exits = sorted((name for name in values.index if name.startswith("layer_")), key=layer_of)
        for exit in [FIRST_STAGE, *exits[:-1], "cascade"]:
            if exit in values.index:
                difference = values.loc[exit] - values.loc[exits[-1]]
                lost, won = int((difference < -EQUAL).sum()), int((difference > EQUAL).sum())
                about = [*arm, exit, difference.mean()]
                counts = {"lost": lost, "tied": len(difference) - lost - won, "won": won}
                found += [(*about, outcome, n, n / len(difference)) for outcome, n in counts.items()]
    return pd.DataFrame(found, columns=[*ARM_COLUMNS, "exit", "difference", "outcome", "queries", "share"])


def by_panel(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the first `most` arms, with their label as `panel`; and a note if these are not all."""
    panel = arm_label(table)
    if table["dataset"].nunique() > 1:
        panel = table["dataset"] + ": " + panel
    arms = list(dict.fromkeys(panel))
    note = [f"The first {most} of {len(arms)} arms."] if len(arms) > most else []
    return table.assign(panel=panel)[panel.isin(arms[:most])].copy(), note


def layer_of(name: str) -> int:
    """6 of `layer_6`; the first stage sorts before, a cascade after all layers."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else 10**6 * (name == "cascade")


def training_losses(training: Sequence[Path]) -> pd.DataFrame:
    """The contrastive loss of each exit by step, the mean over seeds and over neighbours beyond POINTS steps.

    training: `…/{dataset}/{base_model}/start{k}/{variant}/seed{n}/model/training.jsonl`. Raises BadInput.

    Columns: ARM_COLUMNS (its dataset is what it was trained on), layer, step, loss (nats).
    """
    rows = []
    for path in training:
        dataset, base_model, start, variant, _ = path.parts[-7:-2]
        arm = (dataset, dataset, base_model, int(start.removeprefix("start")), variant)
        for line in read_jsonl(path, {}):
            of_layer = {name: loss for name, loss in line.items() if name.startswith("contrastive_layer_")}
            rows += [(*arm, layer_of(name), line["step"], loss) for name, loss in of_layer.items()]
    table = pd.DataFrame(rows, columns=[*ARM_COLUMNS, "layer", "step", "loss"])
    if table.empty:
        return table
    bins = table["step"] // -(-table["step"].max() // POINTS)
    means = table.groupby([*ARM_COLUMNS, "layer", bins.rename("bin")], sort=False)[["step", "loss"]].mean()
    return means.reset_index().drop(columns="bin")
