"""The tables people read: quality by layer beside the first stage, what layers cost, and the cascades' fronts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.common.exits import ARM_COLUMNS, FIRST_STAGE
from lwr.evaluation.arm_files import read_cascades, read_costs
from lwr.evaluation.measures import read_measures
from lwr.evaluation.paired_tests import interval
from lwr.formats.tables import write_table, write_text

# --- quality by layer ----------------------------------------------------------------------------------


def build_layers_table(
    measures: pd.DataFrame, primary: str, costs: pd.DataFrame, cascades: pd.DataFrame
) -> pd.DataFrame:
    """One row per data set for the first stage, one per arm (seeds pooled) and exit; the cascade is the arm's last.

    measures: columns of the arm, seed, split, exit, query_id, measure, value: what `lwr evaluate` writes, concatenated.
    primary: the measure that shares are counted in. costs, cascades: as read here.

    Columns: the arm, exit, layer (0: first stage; of a cascade its last), schedule (of a cascade), seeds; per measure its
    mean over test queries and seeds, and `… sd`, the sample standard deviation over seeds (NaN for one); of primary
    `… low` and `… high`, its 95% bootstrap interval, and `dev …`; `ties`, the share of candidates that an exit does not
    tell apart; `share of score` = this exit's primary over the deepest exit's; `share of gain` = the same after the
    first stage's is taken off both (NaN where nothing is gained); `flops` (share of the deepest exit's), `gflops
    per pair`, `p50 ms`, `p95 ms`.
    """
    test = measures[measures["split"] == "test"]
    by_seed = (
        test.groupby([*ARM_COLUMNS, "exit", "seed", "measure"], sort=False)["value"].mean().unstack("measure")
    )
    names = [name for name in dict.fromkeys(test["measure"]) if name != "ties"]

    grouped = by_seed.groupby([*ARM_COLUMNS, "exit"], sort=False)
    table = grouped[names].mean()
    table = table.join(grouped[names].std().add_suffix(" sd")).join(grouped["ties"].mean())
    table.insert(0, "seeds", grouped.size())
    table = table.join(_intervals(test[test["measure"] == primary]).add_prefix(f"{primary} "))
    dev = measures[(measures["split"] == "dev") & (measures["measure"] == primary)]
    table[f"dev {primary}"] = dev.groupby([*ARM_COLUMNS, "exit"])["value"].mean()
    counted = costs.set_index([*ARM_COLUMNS, "exit"])[["flops", "gflops per pair", "p50 ms", "p95 ms"]]
    table = table.join(counted).reset_index()

    chosen = cascades[cascades["chosen"]].set_index(ARM_COLUMNS)["schedule"]
    is_cascade = table["exit"] == "cascade"
    schedules = table[ARM_COLUMNS].merge(chosen.reset_index(), how="left", on=ARM_COLUMNS)["schedule"]
    table.insert(6, "schedule", schedules.where(is_cascade, ""))
    layer = table["exit"].where(~is_cascade, "layer_" + schedules.str.split().str[-1])
    layer = layer.str.removeprefix("layer_").replace(FIRST_STAGE, "0").astype(int)
    table.insert(6, "layer", layer)

    arms = [_shares(of_arm, primary) for _, of_arm in table.groupby(ARM_COLUMNS, sort=False)]
    return _one_first_stage(pd.concat(arms).sort_index(), names)


def _intervals(values: pd.DataFrame) -> pd.DataFrame:
    """Columns low, high by arm and exit."""
    rows = {
        key: interval(of_exit.pivot(index="seed", columns="query_id", values="value").to_numpy())
        for key, of_exit in values.groupby([*ARM_COLUMNS, "exit"], sort=False)
    }
    index = pd.MultiIndex.from_tuples(rows, names=[*ARM_COLUMNS, "exit"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["low", "high"])


def _shares(arm: pd.DataFrame, primary: str) -> pd.DataFrame:
    quality = arm[arm["exit"] != "cascade"].set_index("layer")[primary]
    first_stage, deepest = quality[0], quality[quality.index.max()]
    gain = deepest - first_stage
    exits = arm["layer"] > 0
    return arm.assign(
        **{
            "share of score": (arm[primary] / deepest).where(exits),
            "share of gain": ((arm[primary] - first_stage) / gain).where(exits & (gain > 0)),
        }
    )


def _one_first_stage(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Each arm carries its first stage; a data set has one, and a reader wants it once, before the exits."""
    first = table[table["layer"] == 0].drop_duplicates("dataset")
    no_spread = {f"{name} sd": float("nan") for name in names}
    first = first.assign(trained_on="", base_model="", start_layer=0, variant="", seeds=1, **no_spread)
    exits = table[table["layer"] > 0]
    order = {dataset: i for i, dataset in enumerate(first["dataset"])}
    both = pd.concat([first, exits])
    return both.sort_values("dataset", key=lambda names: names.map(order), kind="stable").reset_index(
        drop=True
    )


def format_layers(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same as text: three decimals, `mean ± sd` where there are several seeds, shares in per cent."""
    exits = table["layer"] > 0
    rows = format_arms(table)
    rows["layer"] = table["layer"].astype(str).where(exits, "first stage")
    rows["layer"] = rows["layer"].where(table["exit"] != "cascade", "cascade " + table["schedule"])
    for name in names:
        spread = table[f"{name} sd"].map(lambda sd: "" if pd.isna(sd) else f" ± {sd:.3f}")
        rows[name] = table[name].map("{:.3f}".format) + spread
    shares = {"share of score": "share of score", "share of gain": "share of gain", "flops": "FLOPs"}
    for name, title in shares.items():
        rows[title] = table[name].map(format_percent)
    if table["p50 ms"].notna().any():
        rows["ms"] = table["p50 ms"].map(format_number)
    if table["ties"].max() >= 0.001:
        rows["ties"] = table["ties"].map(lambda share: "" if pd.isna(share) else f"{share:.1%}")
    return rows


def format_arms(table: pd.DataFrame) -> pd.DataFrame:
    """The arm as text; what was trained on is told where it is not what is ranked."""
    exits = table["base_model"].ne("")
    rows = pd.DataFrame({"data set": table["dataset"]})
    if any(table["trained_on"].ne(table["dataset"]) & exits):
        rows["trained on"] = table["trained_on"]
    rows["base model"] = table["base_model"]
    rows["start"] = table["start_layer"].astype(str).where(exits, "")
    rows["variant"] = table["variant"]
    return rows


def format_percent(share: float) -> str:
    return "" if pd.isna(share) else f"{share:.0%}"


def format_number(value: float) -> str:
    """Three digits that count; nothing for what was not measured."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# --- cost and cascades ---------------------------------------------------------------------------------


def format_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and exit; FLOPs and time also as shares of the deepest exit's, side by side."""
    rows = format_arms(costs)
    rows["exit"] = (
        costs["exit"].str.removeprefix("layer_").where(costs["exit"] != "cascade", costs["schedule"])
    )
    rows["GFLOPs per pair"] = costs["gflops per pair"].map(format_number)
    rows["FLOPs"] = costs["flops"].map(format_percent)
    rows["time"] = costs["time"].map(format_percent)
    rows["p50 ms"], rows["p95 ms"] = costs["p50 ms"].map(format_number), costs["p95 ms"].map(format_number)
    rows["pairs/s"] = costs["pairs per second"].map(format_number)
    rows["parameters, M"] = (costs["parameters"] / 1e6).map(format_number)
    rows["peak memory, MiB"] = costs["peak memory MiB"].map(format_number)
    return rows


def format_cascades(cascades: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and schedule of its dev front; `kept` is the share of the deepest exit's quality."""
    deepest = cascades[cascades["schedule"] == cascades["deepest"]].set_index(ARM_COLUMNS)[["dev", "test"]]
    full = cascades[ARM_COLUMNS].merge(deepest.reset_index(), how="left", on=ARM_COLUMNS)
    rows = format_arms(cascades)
    rows["schedule"] = cascades["schedule"]
    rows["chosen"] = cascades["chosen"].map({True: "yes", False: ""})
    for split in ("dev", "test"):
        rows[f"{split} FLOPs"] = cascades[f"{split} flops"].map(format_percent)
        rows[f"{split} {cascades['measure'].iloc[0]}"] = cascades[split].map("{:.3f}".format)
        rows[f"{split} kept"] = (cascades[split] / full[split].to_numpy()).map("{:.1%}".format)
    return rows


# --- writing -------------------------------------------------------------------------------------------


def tables(
    measures: Sequence[Path], costs: Sequence[Path], cascades: Sequence[Path], primary: str, out: Path
) -> None:
    """layers, cost and cascades as .csv (numbers) and .md (text), layers also as .tex, in the folder `out`."""
    measured, cost, decided = read_measures(measures), read_costs(costs), read_cascades(cascades)
    table = build_layers_table(measured, primary, cost, decided)
    text = format_layers(table, [name for name in dict.fromkeys(measured["measure"]) if name != "ties"])
    write_table(out / "layers", table, text)
    write_text(out / "layers.tex", text.to_latex(index=False, escape=True))
    device = f"Times of ranking one list of {cost['candidates'].iloc[0]} passages, from texts to ranking, on "
    device += f"{cost['device'].iloc[0]}, {cost['precision'].iloc[0]}.\n\n"
    timed = cost["p50 ms"].notna().any()
    write_table(out / "cost", cost, format_costs(cost), device if timed else "Nothing was timed.\n\n")
    write_table(out / "cascades", decided, format_cascades(decided))
