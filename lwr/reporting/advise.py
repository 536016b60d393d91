"""Which layer, or which cascade, to deploy: chosen on dev, with what test says of the choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS
from lwr.reporting.tables import format_number, format_percent

TABLES = ("layers", "cost", "cascades", "comparisons")
SCHEDULES = {"schedule": str, "deepest": str}  # a column of single exits would be read as numbers


@dataclass(frozen=True)
class Evidence:
    """The tables of a grid, for one data set."""

    layers: pd.DataFrame
    cost: pd.DataFrame
    cascades: pd.DataFrame
    comparisons: pd.DataFrame
    primary: str
    margin: float


def read_evidence(tables: Path) -> dict[str, Evidence]:
    """By data set, what `lwr tables` and `lwr compare` wrote in a folder. Raises BadInput where a table is missing."""
    for name in TABLES:
        if not (tables / f"{name}.csv").is_file():
            raise BadInput(
                f"{tables}/{name}.csv: no such file; run the workflow, or give its results with --results"
            )
    layers, *others = (pd.read_csv(tables / f"{name}.csv", dtype=SCHEDULES) for name in TABLES)
    comparisons = others[-1]
    primary, margin = comparisons["measure"].iloc[0], float(comparisons["margin"].iloc[0])
    return {
        dataset: Evidence(of_dataset, *(t[t["dataset"] == dataset] for t in others), primary, margin)
        for dataset, of_dataset in layers.groupby("dataset", sort=False)
    }


def advice_text(tables: Path, budget_ms: float | None = None, candidates: int | None = None) -> str:
    """Markdown: per data set the shallowest exit that is as good as the deepest, the best exit or cascade within a
    latency budget, and the best cascade; each chosen on dev, with the test outcome.

    budget_ms: what 95 of 100 lists may take, of `candidates` passages each (None: as many as were timed); None tells
    the best for every budget. Times of other numbers of candidates than were timed are scaled in proportion.
    Raises BadInput where a table is missing, or a budget is asked about and nothing was timed.
    """
    parts = [
        "# Which layer to deploy\n\nEverything is chosen on dev; what test says of the choice stands beside it."
    ]
    for dataset, evidence in read_evidence(tables).items():
        parts += [f"## {dataset}", *_advice(evidence, budget_ms, candidates)]
    return "\n\n".join(parts) + "\n"


def advise(tables: Path, out: Path, budget_ms: float | None = None, candidates: int | None = None) -> None:
    """Write the advice of `advice_text` to the file `out`."""
    text = advice_text(tables, budget_ms, candidates)
    with atomic(out) as draft:
        draft.write_text(text, encoding="utf-8")


def _advice(evidence: Evidence, budget_ms: float | None, candidates: int | None) -> Iterator[str]:
    best = best_arm(evidence)
    deepest = deepest_exit(evidence, best)
    yield (
        f"The best model on dev is **{_name(best)}**: its deepest exit, layer {deepest['layer']}, has "
        f"{evidence.primary} {deepest[f'dev {evidence.primary}']:.3f} there and {_score(evidence, deepest)} on test "
        f"(first stage: {evidence.layers.iloc[0][evidence.primary]:.3f})."
    )
    yield shallowest_exit_advice(evidence, best)
    yield _budget_advice(evidence, budget_ms, candidates)
    yield cascade_advice(evidence, best)


# --- the shallowest exit that is as good ---------------------------------------------------------------


def best_arm(evidence: Evidence) -> pd.Series:
    """The arm whose deepest exit ranks dev best."""
    exits = evidence.layers[(evidence.layers["layer"] > 0) & (evidence.layers["exit"] != "cascade")]
    deepest = exits.groupby(ARM_COLUMNS, sort=False).tail(1)
    return deepest.loc[deepest[f"dev {evidence.primary}"].idxmax(), ARM_COLUMNS]


def comparisons_to_deepest(evidence: Evidence, arm: pd.Series, split: str) -> pd.DataFrame:
    """The comparisons of an arm's exits to its deepest, shallowest first, on one split."""
    rows = rows_of_arm(evidence.comparisons, arm)
    rows = rows[(rows["family"] == "deepest") & (rows["split"] == split) & (rows["exit"] != "cascade")]
    return rows.set_index("exit")


def deepest_exit(evidence: Evidence, arm: pd.Series) -> pd.Series:
    """The row of an arm's deepest exit in the table of layers."""
    quality = rows_of_arm(evidence.layers, arm)
    return quality[quality["exit"] != "cascade"].iloc[-1]


def shallowest_exit_advice(evidence: Evidence, arm: pd.Series) -> str:
    """Markdown: the shallowest exit of an arm that dev shows to be as good as the deepest, and what test says."""
    deepest = deepest_exit(evidence, arm)
    title = f"### The shallowest exit as good as layer {deepest['layer']}\n\n"
    margin = f"{evidence.margin:g} {evidence.primary}"
    dev, test = (comparisons_to_deepest(evidence, arm, split) for split in ("dev", "test"))
    as_good = dev[dev["noninferior"].astype(bool)]
    if as_good.empty:
        return (
            f"{title}**Layer {deepest['layer']}** itself: on dev, no shallower exit is shown to lose less than {margin}"
            f"{_closest(dev)}."
        )
    exit = as_good.index[0]
    on_dev, on_test = as_good.loc[exit], test.loc[exit]
    family = evidence.comparisons[["family", "split"]].value_counts()["deepest", "dev"]
    confirmed = "confirms it" if on_test["noninferior"] in (True, "True") else "does not confirm it"
    return (
        f"{title}**{exit.replace('_', ' ').capitalize()}**. Dev: {_difference(on_dev)} to layer {deepest['layer']}, so "
        f"it loses less than {margin} (one-sided p = {on_dev['p noninferior Holm']:.3f} by Holm's method "
        f"over the {family} exits and cascades of all models that are held against their deepest).\n"
        f"Test {confirmed}: {_difference(on_test)}, p = {on_test['p noninferior Holm']:.3f}. "
        f"{_price(evidence, arm, exit)}"
    )


def _closest(dev: pd.DataFrame) -> str:
    if dev.empty:
        return ""
    closest = dev.loc[dev["p noninferior"].idxmin()]
    return f" (the closest, {closest.name.replace('_', ' ')}: {_difference(closest)})"


def _difference(comparison: pd.Series) -> str:
    return f"{comparison['difference']:+.3f} [{comparison['low']:+.3f}, {comparison['high']:+.3f}]"


# --- within a budget -----------------------------------------------------------------------------------


def latency_front(evidence: Evidence, candidates: int | None) -> pd.DataFrame:
    """The exits and cascades that no faster one beats on dev, fastest first; `p95 ms` for lists of `candidates`."""
    timed = evidence.cost.dropna(subset=["p95 ms"])
    scale = 1 if candidates is None else candidates / timed["candidates"]
    timed = timed.assign(**{"p95 ms": timed["p95 ms"] * scale})[
        [*ARM_COLUMNS, "exit", "p95 ms", "candidates"]
    ]
    ranked = (
        evidence.layers.drop(columns="p95 ms").merge(timed, on=[*ARM_COLUMNS, "exit"]).sort_values("p95 ms")
    )
    quality = ranked[f"dev {evidence.primary}"]
    return ranked[quality > quality.cummax().shift(fill_value=-1)]


def _budget_advice(evidence: Evidence, budget_ms: float | None, candidates: int | None) -> str:
    title = "### The best within a latency budget\n\n"
    if evidence.cost["p95 ms"].isna().all():
        if budget_ms is not None:
            raise BadInput(
                "nothing was timed in this grid; set `cost: {queries: 20}` in its config and run it again"
            )
        return f"{title}Nothing was timed (`cost: queries` in the config)."
    front = latency_front(evidence, candidates)
    timed = evidence.cost["candidates"].iloc[0]
    listed = f"lists of {candidates or timed} candidates on {evidence.cost['device'].iloc[0]}"
    listed += f" (scaled from {timed})" if candidates not in (None, timed) else ""
    if budget_ms is None:
        lines = ["| from ms | take | dev | test |", "|--:|:--|--:|--:|"]
        for _, row in front.iterrows():
            dev = row[f"dev {evidence.primary}"]
            lines.append(
                f"| {format_number(row['p95 ms'])} | {_choice(row)} | {dev:.3f} | {_score(evidence, row)} |"
            )
        return f"{title}By what 95 of 100 {listed} take ({evidence.primary}):\n\n" + "\n".join(lines)
    within = front[front["p95 ms"] <= budget_ms]
    if within.empty:
        fastest = front.iloc[0]
        return f"{title}Nothing: the fastest, {_choice(fastest)}, takes {format_number(fastest['p95 ms'])} ms for {listed}."
    best = within.iloc[-1]
    return (
        f"{title}**{_choice(best)}**: 95 of 100 {listed} take at most {format_number(best['p95 ms'])} ms. Of all within "
        f"{format_number(budget_ms)} ms it ranks dev best, {evidence.primary} {best[f'dev {evidence.primary}']:.3f}; on test "
        f"it has {_score(evidence, best)}."
    )


# --- the cascade ---------------------------------------------------------------------------------------


def cascade_advice(evidence: Evidence, arm: pd.Series) -> str:
    """Markdown: the cascade of an arm that was chosen on dev, and what test says."""
    schedules = rows_of_arm(evidence.cascades, arm)
    chosen = schedules[schedules["chosen"]].iloc[0]
    deepest = schedules[schedules["schedule"] == schedules["deepest"]].iloc[0]
    goal, title = 1 - chosen["epsilon"], "### The best cascade\n\n"
    if chosen["schedule"] == chosen["deepest"]:
        whose = f"layer {chosen['deepest']}'s {chosen['measure']}"
        return f"{title}None: on dev no cascade keeps {goal:.0%} of {whose} for less."
    kept = {split: chosen[split] / deepest[split] for split in ("dev", "test")}
    verdict = "holds that on test" if kept["test"] >= goal else "does not hold that on test"
    half = kept["test"] >= 0.99 and chosen["test flops"] <= 0.5
    return (
        f"{title}**`{chosen['schedule']}`**: {describe_schedule(chosen['schedule'])}. On dev it is the cheapest that keeps "
        f"{goal:.0%} of layer {chosen['deepest']}'s {chosen['measure']}: {kept['dev']:.1%} ({chosen['dev']:.3f} of "
        f"{deepest['dev']:.3f}) at {chosen['dev flops']:.0%} of its FLOPs.\nIt {verdict}: {kept['test']:.1%} "
        f"({chosen['test']:.3f} of {deepest['test']:.3f}) at {chosen['test flops']:.0%}; 99% at half the FLOPs: "
        f"{'yes' if half else 'no'}. {_price(evidence, arm, 'cascade')}"
    )


def describe_schedule(schedule: str) -> str:
    """`2:20 4:10 6` in words."""
    *keep, last = schedule.split()
    stages = [stage.split(":") for stage in keep]
    words = [f"layer {layer} keeps the best {survivors}" for layer, survivors in stages]
    return ", ".join([*words, f"layer {last} ranks {'them' if words else 'all'}"])


# --- words ---------------------------------------------------------------------------------------------


def rows_of_arm(table: pd.DataFrame, arm: pd.Series) -> pd.DataFrame:
    """The rows of an arm. arm: the values of ARM_COLUMNS, by name."""
    return table[(table[ARM_COLUMNS] == arm).all(axis=1)]


def _name(arm: pd.Series) -> str:
    trained = "" if arm["trained_on"] == arm["dataset"] else f" trained on {arm['trained_on']}"
    return f"{arm['base_model']}, start {arm['start_layer']}, {arm['variant']}{trained}"


def _choice(row: pd.Series) -> str:
    what = f"cascade `{row['schedule']}`" if row["exit"] == "cascade" else f"layer {row['layer']}"
    return f"{what} of {_name(row)}"


def _score(evidence: Evidence, row: pd.Series) -> str:
    name = evidence.primary
    return f"{row[name]:.3f} [{row[f'{name} low']:.3f}, {row[f'{name} high']:.3f}]"


def _price(evidence: Evidence, arm: pd.Series, exit: str) -> str:
    cost = rows_of_arm(evidence.cost, arm).set_index("exit")
    if exit not in cost.index:  # a cascade of one exit
        return ""
    time = cost.loc[exit, "time"]
    timed = (
        ""
        if pd.isna(time)
        else f" and {format_percent(time)} of its time, {format_number(cost.loc[exit, 'p50 ms'])} ms a list"
    )
    return f"It takes {format_percent(cost.loc[exit, 'flops'])} of the deepest exit's FLOPs{timed}."
