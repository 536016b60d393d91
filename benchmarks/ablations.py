"""Print the tables of docs/ablations.md, in Markdown, from the results of config/ablations.yaml.

python benchmarks/ablations.py results/ablations
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from evidence import format_p_value

from lwr.common.exits import CASCADE, layer_of
from lwr.reporting.advise import format_difference

VARIANTS = {
    "none": "none",
    "deepest": "deepest",
    "next": "next",
    "anchors": "anchors",
    "external": "external",
    "shared-head": "shared head (deepest)",
}
CONTROLS = {2: "two blocks, one head", 4: "four blocks, one head", 6: "six blocks, one head"}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("results", type=Path)
    tables = options.parse_args().results / "tables"
    layers = pd.read_csv(tables / "layers.csv")
    layers = layers[(layers["layer"] > 0) & (layers["exit"] != CASCADE)]
    arms = pd.read_csv(tables / "comparisons.csv").query("family == 'arms' and split == 'test'")
    print(quality_table(layers))
    print()
    print(difference_table(arms))


def quality_table(layers: pd.DataFrame) -> str:
    """Return a table of nDCG@10 by teacher and layer, with the models trained for one layer alone in the last row."""
    text = layers["nDCG@10"].map("{:.3f}".format) + " ± " + layers["nDCG@10 sd"].map("{:.3f}".format)
    layers = layers.assign(text=text)
    wide = layers[layers["base_model"] == "minilm"].pivot(index="variant", columns="layer", values="text")
    alone = layers[layers["base_model"] != "minilm"].set_index("layer")["text"]
    wide = wide.loc[list(VARIANTS)].rename(index=VARIANTS)
    wide.loc["trained for this layer alone"] = alone
    return markdown(wide, "teacher")


def difference_table(arms: pd.DataFrame) -> str:
    """Return a table of the differences between each arm and `deepest`, at the layers that both have."""
    text = [f"{format_difference(row)}, {format_p_value(row['p Holm'])}" for _, row in arms.iterrows()]
    arms = arms.assign(layer=arms["exit"].map(layer_of), text=text)
    arms = arms[arms["exit"] == arms["versus_exit"]]
    wide = arms[arms["base_model"] == "minilm"].pivot(index="variant", columns="layer", values="text")
    wide = wide.loc[[name for name in VARIANTS if name in wide.index]].rename(index=VARIANTS)
    for _, row in arms[arms["base_model"] != "minilm"].iterrows():
        wide.loc[CONTROLS[row["layer"]], row["layer"]] = row["text"]
    return markdown(wide, "against `deepest`")


def markdown(wide: pd.DataFrame, corner: str) -> str:
    """Return a table in Markdown, with a column per layer; `corner` is the name of its index."""
    wide = wide.rename(columns="layer {}".format).fillna("")
    return wide.rename_axis(corner).reset_index().to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    main()
