"""Fused and compressed exits, and cascades, in the tables: names, costs, choices, and tables without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lwr.common.exits import ARM_COLUMNS, CASCADE_FOR_FUSED, CASCADES, exit_name, is_fused, layer_of
from lwr.evaluation.arm_files import (
    CHOICE_COLUMNS,
    CHOICE_FOR_FUSED_COLUMNS,
    CHOSEN_COLUMNS,
    CHOSEN_ON,
    FOR_FUSED,
)


def complete_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """Return the table of layers with `fused` and `compression`, False and "" throughout if the grid has none."""
    missing = {"fused": False, "compression": ""}
    layers = layers.assign(**{name: value for name, value in missing.items() if name not in layers})
    return layers.fillna({"compression": ""})  # pandas reads an empty cell as NaN


def complete_cascades(cascades: pd.DataFrame) -> pd.DataFrame:
    """Return the table of cascades with the columns that not all grids have: False, numbers NaN, texts None."""
    missing: dict[str, object] = {"fused": False, CHOSEN_COLUMNS[CASCADE_FOR_FUSED]: False, CHOSEN_ON: None}
    missing |= dict.fromkeys([*CHOICE_COLUMNS, *CHOICE_FOR_FUSED_COLUMNS], np.nan)
    return cascades.assign(**{name: value for name, value in missing.items() if name not in cascades})


def chosen_elsewhere(cascades: pd.DataFrame) -> dict[str, str]:
    """Return the data sets without dev queries -> the one that their choices were made on."""
    chosen = complete_cascades(cascades).dropna(subset=CHOSEN_ON)
    return dict(zip(chosen["dataset"], chosen[CHOSEN_ON], strict=True))


def is_deepest_alone(cascades: pd.DataFrame) -> pd.Series:
    """Return which rows of a completed table of cascades are the deepest exit alone, scored by its own score."""
    return (cascades["schedule"] == cascades["deepest"]) & ~cascades["fused"].astype(bool)


def is_deepest_fused(cascades: pd.DataFrame) -> pd.Series:
    """Return which rows of a completed table of cascades are the deepest exit alone, scored by its fused score."""
    return (cascades["schedule"] == cascades["deepest"]) & cascades["fused"].astype(bool)


def add_costs(exits: pd.DataFrame, costs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return rows of exits with columns of the table of costs; NaN where nothing was counted.

    Fused scores cost nothing: a fused exit costs what its layer does, and so does a fused cascade of a single exit.

    Args:
        exits: Columns ARM_COLUMNS, exit, schedule.
        costs: A row per arm and exit; see `read_costs`.
        columns: The columns to add.
    """
    counted = costs[[*ARM_COLUMNS, "exit", *columns]].rename(columns={"exit": "counted as"})
    names = [
        _counted_as(exit, schedule) for exit, schedule in zip(exits["exit"], exits["schedule"], strict=True)
    ]
    joined = exits.assign(**{"counted as": names}).merge(counted, how="left", on=[*ARM_COLUMNS, "counted as"])
    return joined.drop(columns="counted as").set_axis(exits.index)


def _counted_as(exit: str, schedule: str) -> str:
    """Return the name of an exit in the table of costs."""
    if is_fused(exit):
        return exit_name(layer_of(exit))
    return exit_name(int(schedule)) if exit in CASCADES and schedule.isdigit() else exit


def name_schedule(schedule: str, fused: bool) -> str:
    """Name a schedule in words, such as "cascade `0:10 4`, fused"; `3/2 4` is named "layer 4, compressed 3/2"."""
    *compression, layer = schedule.split()
    alone = f"layer {layer}, compressed {' '.join(compression)}" if compression else f"layer {layer}"
    name = f"cascade `{schedule}`" if ":" in schedule else alone
    return f"{name}, fused" if fused else name


def kept_share(quality: float, reference: float) -> float:
    """Return the share of a reference's quality that is kept: 1 where the reference has a quality of 0."""
    return quality / reference if reference else 1.0


@dataclass(frozen=True)
class CascadeChoice:
    """A schedule that dev chose for an arm, and the shares of the deepest exit's quality that it keeps.

    Attributes:
        exit: One of `CASCADES`: whether the quality to keep is that of the deepest exit's own scores or of its fused
            ones.
        row: The row of the schedule in the table of cascades.
        reference: That of the deepest exit, by its own or by its fused scores.
    """

    exit: str
    row: pd.Series
    reference: pd.Series

    @property
    def is_deepest(self) -> bool:
        """Whether no cascade was chosen: the deepest exit alone ranks, as in the reference."""
        return self.row.name == self.reference.name

    @property
    def for_fused(self) -> bool:
        """Whether the quality to keep is that of the deepest exit's fused scores."""
        return self.exit == CASCADE_FOR_FUSED

    @property
    def deepest(self) -> str:
        """The exit whose quality is to be kept, such as `layer 6` or `fused layer 6`."""
        return f"{'fused ' if self.for_fused else ''}layer {self.row['deepest']}"

    def expected(self, name: str) -> float:
        """Return a number of `CHOICE_COLUMNS` on this choice."""
        return self.row[f"{name}{FOR_FUSED}" if self.for_fused else name]

    @property
    def name(self) -> str:
        """The schedule in words."""
        return name_schedule(self.row["schedule"], self.row["fused"])

    @property
    def goal(self) -> str:
        """What had to be kept, such as `99% of layer 6's nDCG@10`."""
        return f"{1 - self.row['epsilon']:.0%} of {self.deepest}'s {self.row['measure']}"

    @property
    def has_bound(self) -> bool:
        """Whether it was chosen at a stated confidence, not by the mean over dev alone."""
        return not pd.isna(self.row["confidence"])

    @property
    def confidence(self) -> str:
        """The confidence in words, such as `90% confidence`."""
        return f"{100 * self.row['confidence']:g}% confidence"

    @property
    def out_of_fold(self) -> str:
        """What is said of quality on dev: fused scores of a query have weights that were fitted without it."""
        return ", out of fold" if self.row["fused"] or self.for_fused else ""

    def kept(self, split: str) -> float:
        """Return the share of the reference's quality on a split."""
        return kept_share(self.row[split], self.reference[split])

    def missing(self) -> str:
        """Say why no cascade was chosen, and whether more dev queries would help."""
        if not self.has_bound:
            return f"on dev no cascade keeps {self.goal} for less"
        needed = self.expected("queries needed")
        queries = f"{self.row['dev queries']:.0f} dev queries"
        if pd.isna(needed):
            return f"on the {queries} no cascade keeps {self.goal}"
        return (
            f"{queries} are too few to show with {self.confidence} that a cascade keeps {self.goal}; at "
            f"least about {needed:.0f} are needed"
        )

    def bound(self) -> str:
        """Say what the choice loses at most on new queries, at the stated confidence."""
        loss = self.expected("shortfall bound")
        at_most = f"loses at most {loss:.1%}" if loss >= 0 else f"gains at least {-loss:.1%}"
        return f"with {self.confidence} it {at_most}"
