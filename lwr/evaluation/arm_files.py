"""Read what `lwr fuse`, `lwr cascade` and `lwr cost` write about an arm.

The readers are not in the modules of these steps, so that the steps of reporting neither import torch nor run again
when the code of the model changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, CASCADE, CASCADE_FOR_FUSED, is_layer, label
from lwr.common.hashing import sha256
from lwr.common.json_lines import read_json
from lwr.formats.fusion import CrossFittedFusion, Fusion, read_cross_fitted, read_fusion
from lwr.model.cascade_schedule import Schedule

CHOICE_COLUMNS = ["confidence", "expected shortfall", "shortfall bound", "dev queries", "queries needed"]
"""What `lwr cascade` says of a choice among fused schedules (see `lwr.evaluation.schedules.choice.Choice`)."""
FOR_FUSED = " for fused"
"""Ends the names of columns on the schedule that is chosen against the deepest fused exit, not the plain one."""
CHOICE_FOR_FUSED_COLUMNS = [
    f"{name}{FOR_FUSED}" for name in ("expected shortfall", "shortfall bound", "queries needed")
]
"""What `lwr cascade` says of that choice; confidence and dev queries are those of the other one."""
CHOSEN_ON = "chosen on"
"""The column with the data set on whose dev queries choices were made, where that is another than the ranked one."""
CHOSEN_COLUMNS = {CASCADE: "chosen", CASCADE_FOR_FUSED: f"chosen{FOR_FUSED}"}
"""Exit of a chosen schedule -> the column of the table of cascades that marks its row."""


@dataclass(frozen=True)
class ChosenCascade:
    """A cascade that `lwr cascade` chose: its schedule, and whether fused scores prune and rank."""

    schedule: Schedule
    fused: bool
    weights: str | None = None  # sha256 of the weights that it was chosen with, if the file says so


def read_chosen_cascades(path: Path, layers: Sequence[int] | None = None) -> dict[str, ChosenCascade]:
    """Read the cascades that `lwr cascade` chose, by the names of their exits (see `lwr.common.exits.CASCADES`).

    A choice that is ranked under another name is left out: the deepest exit alone, fused or not, against which it was
    chosen; and the second choice if it is the first.

    Args:
        path: JSON that `lwr cascade` wrote.
        layers: The layers that have a head in the model that the schedules are for; None: do not check them.

    Raises:
        BadInput: The file cannot be read as such, a schedule stops at a layer without a head, or the first stage
            prunes for exits that are not fused.
    """
    record = read_json(path, {"chosen": str, "deepest": str})
    deepest = record["deepest"]
    weights = record.get("inputs", {}).get("fusion")
    chosen = {}
    first = _read_choice(path, record, weights, layers)
    if (str(first.schedule), first.fused) != (deepest, False):
        chosen[CASCADE] = first
    if "for_fused" in record:
        choice = record["for_fused"]
        if not isinstance(choice, dict) or not isinstance(choice.get("chosen"), str):
            raise BadInput(f"{path}: field 'for_fused' has no 'chosen'; run `lwr cascade` again")
        second = _read_choice(path, choice, weights, layers)
        if second != first and (str(second.schedule), second.fused) != (deepest, True):
            chosen[CASCADE_FOR_FUSED] = second
    return chosen


def _read_choice(
    path: Path, choice: Mapping[str, Any], weights: str | None, layers: Sequence[int] | None
) -> ChosenCascade:
    """Read the fields `chosen` and `fused` of a choice. Raises BadInput."""
    try:
        schedule = Schedule.parse(choice["chosen"])
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    fused = choice.get("fused", False)
    if not isinstance(fused, bool):
        raise BadInput(f"{path}: field 'fused' is {fused!r}; write true or false")
    if layers is not None and (without_head := sorted(set(schedule.layers) - set(layers))):
        raise BadInput(
            f"{path}: layer {without_head[0]} of cascade {schedule} has no head; choose it for this model again"
        )
    if schedule.from_first_stage is not None and not fused:
        raise BadInput(f"{path}: cascade {schedule} begins with the first stage, but 'fused' is not true")
    return ChosenCascade(schedule, fused, weights)


def find_row(path: Path, schedules: Sequence[Mapping[str, Any]], chosen: ChosenCascade) -> Mapping[str, Any]:
    """Return the row of a chosen cascade, with its quality and FLOPs on dev and test.

    Args:
        path: JSON that `lwr cascade` wrote.
        schedules: The rows in it.
        chosen: The cascade.

    Raises:
        BadInput: There is no such row.
    """
    for row in schedules:
        if (row.get("schedule"), row.get("fused", False)) == (str(chosen.schedule), chosen.fused):
            return row
    raise BadInput(f"{path}: 'schedules' has no row of the chosen {chosen.schedule}; run `lwr cascade` again")


def check_weights(path: Path, chosen: Iterable[ChosenCascade], fusion: Path | None) -> None:
    """Check that fused cascades come with the weights that they were chosen with.

    Args:
        path: JSON that `lwr cascade` wrote.
        chosen: What was read from it.
        fusion: JSON that `lwr fuse` wrote; None: no weights are given.

    Raises:
        BadInput: A cascade is fused, and no weights are given, or others.
    """
    for cascade in chosen:
        if not cascade.fused:
            continue
        if fusion is None:
            raise BadInput(
                f"{path}: cascade {cascade.schedule} ranks by fused scores; give their weights (--fusion)"
            )
        if cascade.weights not in (None, sha256(fusion)):
            raise BadInput(
                f"{path}: cascade {cascade.schedule} was chosen with other weights than {fusion}; give those, or run "
                "`lwr cascade` again"
            )


def read_arm_fusion(
    path: Path, exits: Sequence[str], cross_fitted: bool = False
) -> Fusion | CrossFittedFusion:
    """Read the weights of an arm's fused scores.

    Args:
        path: JSON that `lwr fuse` wrote.
        exits: The names of the exits that have scores, compressed ones among them.
        cross_fitted: Whether the scores are of the dev queries that the weights were fitted on; then each query gets
            the weights that were fitted without it.

    Raises:
        BadInput: The file cannot be read as such, or its weights are of other exits.
    """
    fusion = read_cross_fitted(path) if cross_fitted else read_fusion(path)
    if set(fusion.exits) != set(exits):
        raise BadInput(
            f"{path}: has weights of {', '.join(fusion.exits)}, but the scores are of {', '.join(exits)}; "
            "run `lwr fuse` again"
        )
    return fusion


def read_cascades(files: Sequence[Path]) -> pd.DataFrame:
    """Read the cascades of several arms: a row per arm and schedule on its Pareto front, and its deepest exit alone.

    Returns:
        A table with the columns `ARM_COLUMNS`, deepest, epsilon, measure, schedule, `dev flops`, `dev`,
        `test flops`, `test`, chosen, front; and where schedules are scored by fused scores, `CHOICE_COLUMNS` and fused,
        with `CHOICE_FOR_FUSED_COLUMNS` and `chosen for fused` if an arm has a choice against the deepest fused exit.
        `CHOSEN_ON` if a choice was made on another data set.
    """
    shared = [*ARM_COLUMNS, "deepest", "epsilon", "measure"]
    rows = []
    for file in files:
        choice = read_arm(file, {"deepest": str, "measure": str, "schedules": list})
        about = {name: choice[name] for name in shared} | {name: choice.get(name) for name in CHOICE_COLUMNS}
        if "chosen_on" in choice:
            about[CHOSEN_ON] = choice["chosen_on"]
        if "for_fused" in choice:
            second = choice["for_fused"]
            about |= {name: second.get(name.removesuffix(FOR_FUSED)) for name in CHOICE_FOR_FUSED_COLUMNS}
        rows += [about | {"fused": False} | row for row in choice["schedules"]]
    table = pd.DataFrame(rows)
    marked = CHOSEN_COLUMNS[CASCADE_FOR_FUSED]
    if marked in table:
        table[marked] = table[marked].eq(True)  # False for arms that have no such choice
    if any(row["fused"] for row in rows):
        return table
    return table.drop(columns=[*CHOICE_COLUMNS, "fused"], errors="ignore")


def read_costs(files: Sequence[Path]) -> pd.DataFrame:
    """Read the costs of all arms: a row per arm and exit, a cascade's among them.

    Args:
        files: JSON that `lwr cost` wrote, one file per data set that is ranked.

    Returns:
        A table with the columns `ARM_COLUMNS`, candidates, queries, device, precision, reference (the exit that times
        are relative to), cut (the share of test pairs of which the end of the passage is not read; not in files that an
        older version wrote), exit, schedule, `gflops per pair`, parameters, ratio, `ratio low`, `ratio high`, `p50 ms`,
        `p95 ms`, `pairs per second`, `peak memory MiB`, and `flops` and `time` as shares of the arm's deepest exit.
        What was not timed is NaN.
    """
    rows = []
    for file in files:
        cost = read_json(file, {"arms": list})
        for arm in cost["arms"]:
            _check_arm(file, arm)
            rows += _cost_rows(cost, arm)
    table = pd.DataFrame(rows)
    return table if table["cut"].notna().any() else table.drop(columns="cut")


def _cost_rows(cost: dict[str, Any], arm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one arm. Times are the ratios, multiplied by the times of the reference."""
    reference = cost["reference"]
    p50, p95, throughput = (
        reference[name] if reference else np.nan for name in ("p50_ms", "p95_ms", "pairs_per_second")
    )
    shared = {name: arm[name] for name in ARM_COLUMNS}
    shared |= {name: cost[name] for name in ("candidates", "queries", "device", "precision")}
    shared["reference"] = f"{label(reference['exit'])} of {describe_arm(reference)}" if reference else None
    shared["cut"] = arm.get("cut", np.nan)
    deepest = [row for row in arm["exits"] if is_layer(row["exit"])][-1]
    rows = []
    for row in arm["exits"]:
        ratio, low, high = (
            np.nan if row[name] is None else row[name] for name in ("ratio", "ratio_low", "ratio_high")
        )
        rows.append(
            {
                **shared,
                "exit": row["exit"],
                "schedule": row["schedule"],
                "gflops per pair": row["gflops_per_pair"],
                "parameters": row["parameters"],
                "ratio": ratio,
                "ratio low": low,
                "ratio high": high,
                "p50 ms": ratio * p50,
                "p95 ms": ratio * p95,
                "pairs per second": throughput / ratio,
                "peak memory MiB": row["peak_memory_mib"],
                "flops": row["gflops_per_pair"] / deepest["gflops_per_pair"],
                "time": ratio / deepest["ratio"] if deepest["ratio"] else None,
            }
        )
    return rows


def describe_arm(row: Mapping[str, Any] | pd.Series) -> str:
    """Return the name of the arm that a row is of, such as `minilm, start 2, default`."""
    trained = "" if row["trained_on"] == row["dataset"] else f" trained on {row['trained_on']}"
    return f"{row['base_model']}, start {row['start_layer']}, {row['variant']}{trained}"


def read_arm(file: Path, required: dict[str, type]) -> dict[str, Any]:
    """Read JSON with the columns of an arm and other required fields. Raises BadInput if one is missing."""
    record = read_json(file, required)
    _check_arm(file, record)
    return record


def _check_arm(file: Path, record: dict[str, Any]) -> None:
    if missing := [name for name in ARM_COLUMNS if name not in record]:
        raise BadInput(f"{file}: field {missing[0]!r} is missing; make the file again")
