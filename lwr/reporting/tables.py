"""The step `tables`: quality, cost and calibration by exit, and cascades that nothing beats on dev."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.exits import (
    ARM_COLUMNS,
    CASCADES,
    FIRST_STAGE,
    compression_steps,
    is_fused,
    is_layer,
    label,
    layer_of,
    sort_key,
)
from lwr.evaluation.arm_files import CHOSEN_COLUMNS, CHOSEN_ON, read_cascades, read_costs
from lwr.evaluation.calibrate import BINS, METHODS, read_calibrations
from lwr.evaluation.measures import read_measures
from lwr.evaluation.statistics.paired_tests import interval
from lwr.formats.tables import write_table, write_text
from lwr.reporting.fused import (
    add_costs,
    chosen_elsewhere,
    complete_cascades,
    complete_layers,
    is_deepest_alone,
    kept_share,
)

TIES_SHOWN_FROM = 0.001
"""Share of candidates with equal scores from which on the table of layers has a column for it."""


def tables(
    measures: Sequence[Path],
    costs: Sequence[Path],
    cascades: Sequence[Path],
    calibrations: Sequence[Path],
    primary: str,
    out: Path,
) -> None:
    """Write the tables layers, cost, cascades and calibration as .csv and .md, and layers also as .tex.

    Args:
        measures: Files that `lwr evaluate` wrote.
        costs: Files that `lwr cost` wrote, one per data set that is ranked.
        cascades: Files that `lwr cascade` wrote, one per arm.
        calibrations: Files that `lwr calibrate` wrote, one per cell.
        primary: The measure of which shares are computed.
        out: The folder that is written to.

    Raises:
        BadInput: A file lacks a field.
    """
    values, cost, schedules = read_measures(measures), read_costs(costs), read_cascades(cascades)
    layers = build_layers_table(values, primary, cost, schedules)
    text = format_layers(layers, _measure_names(values))
    write_table(out / "layers", layers, text, _choice_note(schedules))
    write_text(out / "layers.tex", text.to_latex(index=False, escape=True))
    write_table(out / "cost", cost, format_costs(cost), _cost_note(cost))
    write_table(out / "cascades", schedules, format_cascades(schedules))
    calibration = build_calibration_table(calibrations)
    write_table(out / "calibration", calibration, format_calibration(calibration), CALIBRATION_NOTE)


def _measure_names(values: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(values["measure"]) if name != "ties"]


def _choice_note(cascades: pd.DataFrame) -> str:
    """Return a note on the data sets without dev queries, with a blank line after it; or nothing."""
    notes = [
        f"{dataset} has no dev queries: weights of fused scores and cascades were chosen on dev of {other}.\n"
        for dataset, other in chosen_elsewhere(cascades).items()
    ]
    return "\n".join([*notes, ""])


def _cost_note(cost: pd.DataFrame) -> str:
    timed = cost.dropna(subset="ratio").drop_duplicates("dataset")
    notes = ["Nothing was timed."]
    if not timed.empty:
        notes = [*(time_note(row) for _, row in timed.iterrows()), RATIO_NOTE]
    if "cut" in cost:
        notes.append(CUT_NOTE)
    return "\n\n".join(notes) + "\n\n"


RATIO_NOTE = (
    "All exits and cascades of a data set were timed in turns. The ratio is the median over lists of an exit's time, "
    "divided by the reference's on the same list; in brackets is its 95% interval. p50 and p95 ms are the ratio times "
    "the reference's. Times of a model's layers that fell with depth were replaced by their mean. Where the intervals "
    "of two exits overlap, these times do not tell which is faster: see *as fast as*."
)
"""What the columns of the table of costs say about times."""
CUT_NOTE = (
    "*pairs cut*: the share of test candidates of which the end is not read. To read it, raise `passage_max_len`, or "
    "set `score.windows`."
)
"""What the table of costs says about passages that are too long."""


def time_note(cost: pd.Series) -> str:
    """Return what was timed, from a row of the table of costs."""
    return (
        f"Times of ranking one list of {cost['candidates']} passages of {cost['dataset']}, from texts to ranking, over "
        f"{cost['queries']} lists, on {cost['device']}, {cost['precision']}. Reference: {cost['reference']}."
    )


# --- Quality by layer ---


def build_layers_table(
    measures: pd.DataFrame, primary: str, costs: pd.DataFrame, cascades: pd.DataFrame
) -> pd.DataFrame:
    """Build the table of quality by layer, seeds pooled.

    Args:
        measures: Columns ARM_COLUMNS, seed, split, exit, query_id, measure, value.
        primary: The measure of which shares are computed.
        costs: As `read_costs` returns them.
        cascades: As `read_cascades` returns them.

    Returns:
        One row per data set for the first stage, then one per arm and exit: each layer alone, then fused, then with
        compressed passages, and cascades last. Columns:
        ARM_COLUMNS; exit; layer (0: the first stage; of a cascade its last); schedule (of a cascade); seeds; fused
        (whether its scores are fused; only where some are); compression (of its passages, such as `3/2`; only where
        some are compressed);
        per measure its mean over test queries and seeds, and `… sd`, the sample standard deviation over seeds;
        `ties`, the share of candidates with equal scores;
        of the primary measure `… low` and `… high`, its 95% bootstrap interval, and `dev …`;
        `flops` (share of the deepest exit's), `gflops per pair`, `p50 ms`, `p95 ms`;
        `share of score`, of the primary measure of the deepest exit alone, not fused; `share of gain`, the same for the
        differences to the first stage (NaN where the deepest exit gains nothing).
    """
    test = measures[measures["split"] == "test"]
    names = _measure_names(test)
    table = _quality_by_exit(test, names)
    table = table.join(_intervals(test[test["measure"] == primary]).add_prefix(f"{primary} "))
    dev = measures[(measures["split"] == "dev") & (measures["measure"] == primary)]
    table[f"dev {primary}"] = dev.groupby([*ARM_COLUMNS, "exit"])["value"].mean()
    table = _add_layers(table.reset_index(), complete_cascades(cascades))
    table = add_costs(table, costs, ["flops", "gflops per pair", "p50 ms", "p95 ms"])
    arms = [_add_shares(of_arm, primary) for _, of_arm in table.groupby(ARM_COLUMNS, sort=False)]
    return _merge_first_stages(pd.concat(arms).sort_index(), names)


def _quality_by_exit(test: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return seeds, means, standard deviations over seeds, and ties, by arm and exit."""
    exit = [*ARM_COLUMNS, "exit"]
    by_seed = test.groupby([*exit, "seed", "measure"], sort=False)["value"].mean().unstack("measure")
    grouped = by_seed.groupby(exit, sort=False)
    table = grouped[names].mean()
    table = table.join(grouped[names].std().add_suffix(" sd")).join(grouped["ties"].mean())
    table.insert(0, "seeds", grouped.size())
    return table


def _add_layers(table: pd.DataFrame, cascades: pd.DataFrame) -> pd.DataFrame:
    """Insert the columns layer and schedule behind the exit, and fused and compression where some exits are so.

    The exits of each arm are sorted.
    """
    key = [*ARM_COLUMNS, "exit"]
    chosen = pd.concat(
        [cascades[cascades[column]].assign(exit=exit) for exit, column in CHOSEN_COLUMNS.items()]
    )
    chosen = table[key].merge(chosen[[*key, "schedule", "fused"]], how="left", on=key)
    schedules = chosen["schedule"].fillna("")
    fused = table["exit"].map(is_fused) | chosen["fused"].eq(True)
    place = len(ARM_COLUMNS) + 1
    table.insert(place, "schedule", schedules)
    layers = [_layer(exit, schedule) for exit, schedule in zip(table["exit"], schedules, strict=True)]
    table.insert(place, "layer", layers)
    if fused.any():
        table.insert(place + 2, "fused", fused)
    compression = table["exit"].map(_describe_compression)
    if compression.ne("").any():
        table.insert(table.columns.get_loc("schedule") + 1, "compression", compression)
    arms = [
        of_arm.sort_values("exit", key=lambda exits: exits.map(sort_key), kind="stable")
        for _, of_arm in table.groupby(ARM_COLUMNS, sort=False)
    ]
    return pd.concat(arms, ignore_index=True)


def _describe_compression(exit: str) -> str:
    return " ".join(f"{layer}/{ratio}" for layer, ratio in compression_steps(exit))


def _layer(exit: str, schedule: str) -> int:
    if exit == FIRST_STAGE:
        return 0
    return int(schedule.split()[-1]) if exit in CASCADES else layer_of(exit)


def _intervals(values: pd.DataFrame) -> pd.DataFrame:
    """Return the columns low and high by arm and exit."""
    rows = {
        key: interval(of_exit.pivot(index="seed", columns="query_id", values="value").to_numpy())
        for key, of_exit in values.groupby([*ARM_COLUMNS, "exit"], sort=False)
    }
    index = pd.MultiIndex.from_tuples(rows, names=[*ARM_COLUMNS, "exit"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["low", "high"])


def _add_shares(arm: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Add the shares of the deepest exit's score and gain to the rows of one arm."""
    quality = arm[arm["exit"].map(is_layer) | (arm["layer"] == 0)].set_index("layer")[primary]
    first_stage, deepest = quality[0], quality[quality.index.max()]
    gain = deepest - first_stage
    exits = arm["layer"] > 0
    return arm.assign(
        **{
            "share of score": (arm[primary] / deepest).where(exits),
            "share of gain": ((arm[primary] - first_stage) / gain).where(exits & (gain > 0)),
        }
    )


def _merge_first_stages(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Keep one row of the first stage per data set, before the exits, instead of one per arm."""
    first = table[table["layer"] == 0].drop_duplicates("dataset")
    no_spread = {f"{name} sd": float("nan") for name in names}
    first = first.assign(trained_on="", base_model="", start_layer=0, variant="", seeds=1, **no_spread)
    exits = table[table["layer"] > 0]
    order = {dataset: i for i, dataset in enumerate(first["dataset"])}
    both = pd.concat([first, exits])
    both = both.sort_values("dataset", key=lambda datasets: datasets.map(order), kind="stable")
    return both.reset_index(drop=True)


# --- Tables as text ---


def format_layers(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Format the table of layers: three decimals, `mean ± sd` over several seeds, shares in per cent.

    Args:
        table: As `build_layers_table` returns it.
        names: The measures that are shown.
    """
    exits = table["layer"] > 0
    rows = format_arms(table)
    rows["layer"] = table["layer"].astype(str).where(exits, "first stage")
    rows["layer"] = rows["layer"].where(~table["exit"].isin(CASCADES), "cascade " + table["schedule"])
    rows["layer"] += complete_layers(table)["fused"].map({True: ", fused", False: ""})
    compression = complete_layers(table)["compression"]
    rows["layer"] += (", compressed " + compression).where(compression.ne(""), "")
    for name in names:
        spread = table[f"{name} sd"].map(lambda sd: "" if pd.isna(sd) else f" ± {sd:.3f}")
        rows[name] = table[name].map("{:.3f}".format) + spread
    shares = {"share of score": "share of score", "share of gain": "share of gain", "flops": "FLOPs"}
    for name, title in shares.items():
        rows[title] = table[name].map(format_percent)
    if table["p50 ms"].notna().any():
        rows["ms"] = table["p50 ms"].map(format_number)
    if table["ties"].max() >= TIES_SHOWN_FROM:
        rows["ties"] = table["ties"].map(lambda share: "" if pd.isna(share) else f"{share:.1%}")
    return rows


def format_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Format the columns of the arm; the data set trained on is shown only where it differs from the one ranked."""
    exits = table["base_model"].ne("")
    rows = pd.DataFrame({"data set": table["dataset"]})
    if any(table["trained_on"].ne(table["dataset"]) & exits):
        rows["trained on"] = table["trained_on"]
    rows["base model"] = table["base_model"]
    rows["start"] = table["start_layer"].astype(str).where(exits, "")
    rows["variant"] = table["variant"]
    return rows


def format_percent(share: float) -> str:
    """Format a share in per cent; a missing one as nothing."""
    return "" if pd.isna(share) else f"{share:.0%}"


def format_number(value: float) -> str:
    """Format a number with three significant digits; a missing one as nothing."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Format costs, a row per arm and exit; FLOPs and time are shares of the deepest exit's."""
    rows = format_arms(costs)
    rows["exit"] = [
        str(layer_of(exit)) if is_layer(exit) else schedule
        for exit, schedule in zip(costs["exit"], costs["schedule"], strict=True)
    ]
    rows["GFLOPs per pair"] = costs["gflops per pair"].map(format_number)
    rows["FLOPs"] = costs["flops"].map(format_percent)
    rows["time"] = costs["time"].map(format_percent)
    rows["ratio"] = [format_ratio(*row) for row in costs[["ratio", "ratio low", "ratio high"]].to_numpy()]
    rows["as fast as"] = _as_fast_as(costs, rows["exit"])
    rows["p50 ms"], rows["p95 ms"] = costs["p50 ms"].map(format_number), costs["p95 ms"].map(format_number)
    rows["pairs/s"] = costs["pairs per second"].map(format_number)
    rows["parameters, M"] = (costs["parameters"] / 1e6).map(format_number)
    rows["peak memory, MiB"] = costs["peak memory MiB"].map(format_number)
    if "cut" in costs:
        rows["pairs cut"] = costs["cut"].map(format_percent)
    return rows


def format_ratio(ratio: float, low: float, high: float) -> str:
    """Format a ratio of times with its interval; a missing one as nothing."""
    return "" if pd.isna(ratio) else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _as_fast_as(costs: pd.DataFrame, names: pd.Series) -> pd.Series:
    """List for each row the exits of its arm that its time does not tell it from: the intervals overlap."""
    found = pd.Series("", index=costs.index)
    for _, arm in costs.groupby(ARM_COLUMNS, sort=False):
        for i, row in arm.iterrows():
            found[i] = ", ".join(names[j] for j in overlapping(arm, row).index if j != i)
    return found


def overlapping(costs: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return the rows whose interval of the ratio overlaps that of `row`, itself included; none without times."""
    return costs[(costs["ratio low"] <= row["ratio high"]) & (costs["ratio high"] >= row["ratio low"])]


def format_cascades(cascades: pd.DataFrame) -> pd.DataFrame:
    """Format cascades, a row per arm and schedule; `kept` is the share of the quality of the deepest exit alone."""
    cascades = complete_cascades(cascades)
    deepest = cascades[is_deepest_alone(cascades)].set_index(ARM_COLUMNS)[["dev", "test"]]
    full = cascades[ARM_COLUMNS].merge(deepest.reset_index(), how="left", on=ARM_COLUMNS)
    rows = format_arms(cascades)
    if cascades[CHOSEN_ON].notna().any():
        rows[CHOSEN_ON] = cascades[CHOSEN_ON].fillna("")
    rows["schedule"] = cascades["schedule"]
    if cascades["fused"].any():
        rows["fused"] = cascades["fused"].map({True: "yes", False: ""})
    for column in CHOSEN_COLUMNS.values():
        if column == "chosen" or cascades[column].any():
            rows[column] = cascades[column].map({True: "yes", False: ""})
    for split in ("dev", "test"):
        rows[f"{split} FLOPs"] = cascades[f"{split} flops"].map(format_percent)
        rows[f"{split} {cascades['measure'].iloc[0]}"] = cascades[split].map("{:.3f}".format)
        kept = map(kept_share, cascades[split], full[split])
        rows[f"{split} kept"] = [f"{share:.1%}" for share in kept]
    return rows


# --- Calibration ---

CALIBRATION_NOTE = (
    "How far the probabilities that scores stand for are from the share of relevant candidates, on test; means over "
    f"seeds. ECE: the expected calibration error, over {BINS} bins of equal mass. Raw: the logistic function of the "
    "score; logistic and isotonic: maps that were fitted on dev. Candidates that are not judged count as not relevant."
    "\n\n"
)
"""What the columns of the table of calibration say."""


def build_calibration_table(files: Sequence[Path]) -> pd.DataFrame:
    """Build the table of calibration on test: a row per arm and exit, means over seeds.

    Args:
        files: Files that `lwr calibrate` wrote, one per cell.

    Returns:
        Columns ARM_COLUMNS, exit, fused (only where some are), seeds, relevant (share of the candidates), and `ECE …`
        and `Brier …` for each of METHODS.
    """
    rows = read_calibrations(files)
    exit = [*ARM_COLUMNS, "exit"]
    by_method = rows.groupby([*exit, "method"], sort=False)[["ece", "brier"]].mean().unstack("method")
    table = rows.groupby(exit, sort=False).agg(seeds=("seed", "nunique"), relevant=("relevant", "mean"))
    for name, title in (("ece", "ECE"), ("brier", "Brier")):
        for method in METHODS:
            table[f"{title} {method}"] = by_method[name, method]
    table = table.reset_index()
    fused = table["exit"].str.endswith("_fused")
    if fused.any():
        table.insert(len(exit), "fused", fused)
    return table


def format_calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Format the table of calibration with three decimals."""
    rows = format_arms(table)
    rows["exit"] = table["exit"].str.removesuffix("_fused").map(label)
    if "fused" in table:
        rows["fused"] = table["fused"].map({True: "yes", False: ""})
    for name in table.loc[:, "relevant":]:
        rows[name] = table[name].map("{:.3f}".format)
    return rows
