"""The tables people read: ranking quality per layer, beside the first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lwr.files import atomic

CELL = ["dataset", "trained_on", "base_model", "start_layer", "variant"]
FIRST_STAGE = "first_stage"


def layers_table(measures: pd.DataFrame, primary: str) -> pd.DataFrame:
    """One row per data set for the first stage, one per cell (seeds pooled) and exit.

    measures: columns of `CELL`, seed, exit, query_id, measure, value: what `lwr evaluate` writes, concatenated.
    primary: the measure that shares are counted in.

    Columns: CELL, layer (0: first stage), seeds; per measure its mean over queries and seeds, and `… sd`, the
    sample standard deviation over seeds (NaN for one); `share of score` = this exit's primary over the deepest
    exit's; `share of gain` = the same after the first stage's is taken off both (NaN where nothing is gained).
    """
    by_seed = (
        measures.groupby([*CELL, "seed", "exit", "measure"], sort=False)["value"]
        .mean()
        .unstack("measure")
        .reset_index()
    )
    by_seed["layer"] = by_seed["exit"].str.removeprefix("layer_").replace(FIRST_STAGE, "0").astype(int)
    names = list(dict.fromkeys(measures["measure"]))

    grouped = by_seed.groupby([*CELL, "layer"], sort=False)
    table = grouped[names].mean()
    table = table.join(grouped[names].std().add_suffix(" sd"))
    table.insert(0, "seeds", grouped.size())
    table = table.reset_index()

    shares = [_shares(cell, primary) for _, cell in table.groupby(CELL, sort=False)]
    table = pd.concat(shares).sort_index()
    return _one_first_stage(table)


def _shares(cell: pd.DataFrame, primary: str) -> pd.DataFrame:
    quality = cell.set_index("layer")[primary]
    first_stage, deepest = quality[0], quality[quality.index.max()]
    gain = deepest - first_stage
    exits = cell["layer"] > 0
    return cell.assign(
        **{
            "share of score": (cell[primary] / deepest).where(exits),
            "share of gain": ((cell[primary] - first_stage) / gain).where(exits & (gain > 0)),
        }
    )


def _one_first_stage(table: pd.DataFrame) -> pd.DataFrame:
    """Each cell carries its first stage; a data set has one, and a reader wants it once, before the exits."""
    first = table[table["layer"] == 0].drop_duplicates("dataset")
    first = first.assign(trained_on="", base_model="", start_layer=0, variant="", seeds=1)
    exits = table[table["layer"] > 0]
    order = {dataset: i for i, dataset in enumerate(first["dataset"])}
    both = pd.concat([first, exits])
    return both.sort_values("dataset", key=lambda names: names.map(order), kind="stable").reset_index(
        drop=True
    )


def readable(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same as text: three decimals, `mean ± sd` where there are several seeds, shares in per cent."""
    rows = pd.DataFrame({"data set": table["dataset"]})
    if any(table["trained_on"].ne(table["dataset"]) & table["layer"].gt(0)):
        rows["trained on"] = table["trained_on"]
    rows["base model"] = table["base_model"]
    rows["start"] = table["start_layer"].astype(str).where(table["layer"] > 0, "")
    rows["variant"] = table["variant"]
    rows["layer"] = table["layer"].astype(str).where(table["layer"] > 0, "first stage")
    for name in names:
        spread = table[f"{name} sd"].map(lambda sd: "" if pd.isna(sd) else f" ± {sd:.3f}")
        rows[name] = table[name].map("{:.3f}".format) + spread
    for name in ("share of score", "share of gain"):
        rows[name] = table[name].map(lambda share: "" if pd.isna(share) else f"{share:.0%}")
    return rows


def write_tables(measures: Sequence[Path], primary: str, out: Path) -> None:
    """layers.csv (numbers), layers.md and layers.tex (text) in the folder `out`."""
    everything = pd.concat([pd.read_parquet(file) for file in measures])
    table = layers_table(everything, primary)
    text = readable(table, list(dict.fromkeys(everything["measure"])))
    _write(out / "layers.csv", table.to_csv(index=False, float_format="%.6f"))
    _write(out / "layers.md", text.to_markdown(index=False, disable_numparse=True) + "\n")
    _write(out / "layers.tex", text.to_latex(index=False, escape=True))


def _write(path: Path, text: str) -> None:
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
