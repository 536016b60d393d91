"""The model card of a reranker: its origin, the quality and cost of each layer, a recommended layer, examples."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from lwr.common.errors import BadInput
from lwr.common.exits import ARM_COLUMNS, Cell, describe_layers, exit_name, fused_name, label, layer_of
from lwr.common.json_lines import read_json
from lwr.common.results_tree import ResultsTree, find_cell, find_fusion_of_grid, find_results
from lwr.export.readme import SAMPLE_PASSAGE, SAMPLE_QUERY, render
from lwr.formats.calibration import FILE_NAME as CALIBRATION_FILE
from lwr.formats.calibration import Calibration
from lwr.formats.checkpoint import fetch_checkpoint, find_local_folder
from lwr.formats.fusion import Fusion
from lwr.formats.tables import markdown_table
from lwr.model.storage import find_calibration, read_stored_exits, read_stored_fusion
from lwr.reporting.advise import (
    cascade_advice,
    comparisons_to_deepest,
    shallowest_exit_advice,
)
from lwr.reporting.evidence import Evidence, cascade_choices, read_evidence, rows_of_arm
from lwr.reporting.tables import (
    RATIO_NOTE,
    format_arms,
    format_cascades,
    format_costs,
    format_layers,
    time_note,
)

UNKNOWN_LICENSE = "unknown"  # the hub's word; not guessed, because the base model's licence applies too
PLACEHOLDER = "path/to/this/folder"


@dataclasses.dataclass(frozen=True)
class Measured:
    """The rows of a grid's tables that belong to one arm, for one data set that it ranked."""

    dataset: str
    evidence: Evidence
    arm: pd.Series  # the values of ARM_COLUMNS

    @property
    def layers(self) -> pd.DataFrame:
        """Measures of each exit and of the cascades."""
        return rows_of_arm(self.evidence.layers, self.arm)

    @property
    def costs(self) -> pd.DataFrame:
        """FLOPs, time and memory of each exit and of the cascades."""
        return rows_of_arm(self.evidence.cost, self.arm)

    @property
    def cascades(self) -> pd.DataFrame:
        """The schedules on the Pareto front of dev."""
        return rows_of_arm(self.evidence.cascades, self.arm)

    @property
    def measures(self) -> list[str]:
        """Names of the measures, as `ir_measures` writes them."""
        return [name.removesuffix(" sd") for name in self.evidence.layers if name.endswith(" sd")]


def card(
    model: Path,
    results: Path | None = None,
    name: str = PLACEHOLDER,
    license: str = UNKNOWN_LICENSE,
) -> str:
    """Write the model card of a reranker in Markdown, from its folder and the tables of its grid; read no weights.

    Args:
        model: Folder of a trained reranker.
        results: Folder of the grid's results; None takes the one that the model lies in. A model that lies in none
            gets a card without results.
        name: Name or path that users load the model by.
        license: The licence as the hub names it.

    Returns:
        Markdown with the hub's front matter.

    Raises:
        BadInput: A table is missing or has no row of this model, or the folder does not hold a reranker.
    """
    exits = read_stored_exits(str(model))
    folder = fetch_checkpoint(str(model), None)
    about, origin = (_read_if_there(folder / file) for file in ("lwr.json", "provenance.json"))
    cell = find_cell(folder)
    measured = _find_measured(folder, cell, results)
    has_fusion = find_fusion(model, results) is not None
    calibration = find_calibration(str(model), results=results)
    base = (about.get("base") or {}).get("model")
    chosen, layer = _choose_examples(measured, exits, has_fusion)
    title = _title(name, cell)
    return render(
        "model_card",
        ModelCardData(
            pipeline_tag="text-ranking",
            library_name="lwr",
            license=license,
            base_model=base if base and _is_hub_id(base) else None,
            tags=["reranker", "cross-encoder", "layerwise", "lwr"],
            datasets=[cell.trained_on] if cell else None,
            metrics=list(dict.fromkeys(measure for m in measured for measure in m.measures)) or None,
            model_name=title if measured else None,
            eval_results=[result for m in measured for result in _eval_results(m)] or None,
        ),
        title=title,
        heads_at=_describe_heads(exits),
        number=len(exits),
        last=exits[-1],
        base=base if base and (_is_hub_id(base) or base.startswith("package:")) else None,
        trained_on=cell.trained_on if cell else None,
        seed=cell.seed if cell else None,
        version=version("lwr"),
        name=name,
        quoted_name=json.dumps(name),
        query=SAMPLE_QUERY,
        passage=SAMPLE_PASSAGE,
        layer=layer,
        chosen=chosen,
        has_fusion=has_fusion,
        calibration=describe_calibration(calibration) if calibration else None,
        results=[_result_fields(m) for m in measured],
        origin=origin,
        settings={setting: json.dumps(value) for setting, value in origin.get("settings", {}).items()},
        longest_pair=about["query_max_len"] + about["passage_max_len"]
        if "passage_max_len" in about
        else None,
    )


def find_fusion(model: Path, results: Path | None = None) -> Fusion | None:
    """Return the weights of fused scores that belong to a model: its own, or those of its arm in the grid.

    Args:
        model: Folder of a trained reranker.
        results: As for `card`.

    Raises:
        BadInput: The weights cannot be read or are of other exits.
    """
    own = read_stored_fusion(str(model))
    if own is not None:
        return own
    file = find_fusion_of_grid(fetch_checkpoint(str(model), None), results)
    return None if file is None else read_stored_fusion(str(model), file=file)


def describe_fused_exit(model: str, layer: int, has_fusion: bool) -> str | None:
    """Say what fused scores would add to an exit of a reranker; None if nothing is known of them.

    Args:
        model: Folder or hub id.
        layer: The exit.
        has_fusion: Whether the reranker has weights of fused scores.
    """
    folder = fetch_checkpoint(model, None)
    try:
        measured = _find_measured(folder, find_cell(folder), None)
    except BadInput:  # of a grid that has no tables yet
        measured = []
    gains = []
    for of_dataset in measured:
        scores = of_dataset.layers.set_index("exit")[of_dataset.evidence.primary]
        if fused_name(layer) in scores:
            alone, fused = scores[exit_name(layer)], scores[fused_name(layer)]
            gains.append(f"{fused:.3f} instead of {alone:.3f} on {of_dataset.dataset}")
    if not gains and not has_fusion:
        return None
    text = (
        f"The layerwise reranker can combine the score of layer {layer} with those of shallower layers and of the "
        "first stage, at no more cost. This folder has the score of the layer alone."
    )
    if gains:
        text += f" On test queries, the combination has {measured[0].evidence.primary} {', '.join(gains)}."
    return text


def describe_calibration(calibration: Calibration) -> str:
    """Say how scores become probabilities: the formula, and a table of the numbers of each exit."""
    rows = pd.DataFrame(
        [(label(exit), f"{line.slope:.6g}", f"{line.intercept:.6g}") for exit, line in calibration.items()],
        columns=["score of", "slope", "intercept"],
    )
    return (
        "A passage with the raw score `s` is relevant with probability `1 / (1 + exp(-(slope * s + intercept)))`. The "
        "numbers were fitted on the dev queries of the grid, on the candidates of its first stage; candidates that are "
        f"not judged counted as not relevant. They are in {CALIBRATION_FILE}.\n\n{markdown_table(rows)}"
    )


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file, {}) if file.is_file() else {}


def _is_hub_id(model: str) -> bool:
    """Check whether a base model is named as on the hub; a path of this machine must not get onto a card."""
    try:
        return find_local_folder(model) is None
    except ValueError:
        return False


def _find_measured(folder: Path, cell: Cell | None, results: Path | None) -> list[Measured]:
    """Read a model's rows from the tables in `results`, or of the grid that it lies in. Raises BadInput."""
    if cell is None:
        if results is not None:
            raise BadInput(
                f"{folder}/provenance.json: no cell of a grid is recorded, so this model's rows in the tables are "
                "unknown; leave out --results"
            )
        return []
    tree = find_results(folder, cell) if results is None else ResultsTree(results)
    return [] if tree is None else _read_measured(tree, cell)


def _read_measured(tree: ResultsTree, cell: Cell) -> list[Measured]:
    """Read the rows of a cell's arm from the tables, for each data set that it ranked, the one trained on first.

    Raises:
        BadInput: A table is missing, or has no row of the arm.
    """
    arm = dataclasses.asdict(cell.arm)
    measured = []
    for dataset, evidence in read_evidence(tree.tables).items():
        row = Measured(dataset, evidence, pd.Series({"dataset": dataset, **arm})[ARM_COLUMNS])
        if len(row.layers):
            measured.append(row)
    if not measured:
        raise BadInput(
            f"{tree.tables / 'layers.csv'}: no row of {cell.trained_on}, {cell.base_model}, start {cell.start_layer}, "
            f"{cell.variant}; run the workflow, or give the results of this model's grid"
        )
    return sorted(measured, key=lambda of_dataset: of_dataset.dataset != cell.trained_on)


def _describe_heads(exits: list[int]) -> str:
    """Say at which layers there are heads."""
    first, last = exits[0], exits[-1]
    has_all = len(exits) == last - first + 1
    return f"every layer from {first} to {last}" if has_all else f"layers {describe_layers(exits)}"


def _choose_examples(measured: list[Measured], exits: list[int], has_fusion: bool) -> tuple[str | None, int]:
    """Choose the cascade and the layer of the examples on the first data set.

    The cascade, as arguments of `rank`, is the one to deploy (see `cascade_choices`); None where that is a single exit
    that is not fused, or where weights are missing. The layer is the shallowest that dev shows to be as good as the
    deepest, else the one in the middle.
    """
    middle = exits[len(exits) // 2]
    if not measured:
        return None, middle
    first = measured[0]
    chosen = cascade_choices(first.evidence, first.arm)[0].row
    dev = comparisons_to_deepest(first.evidence, first.arm, "dev")
    as_good = dev[dev["noninferior"].astype(bool)]
    layer = middle if as_good.empty else layer_of(as_good.index[0])
    arguments = f'cascade="{chosen["schedule"]}"'
    if chosen["fused"]:
        return (f"{arguments}, first_stage=[12.4, 9.1], fused=True" if has_fusion else None), layer
    return (None if chosen["schedule"].isdigit() else arguments), layer


def _title(name: str, cell: Cell | None) -> str:
    if "/" in name and not name.startswith((".", "/", "path/")):
        return name.rpartition("/")[2]
    return f"{cell.base_model}, start {cell.start_layer}, {cell.variant}" if cell else "A layerwise reranker"


# --- Results ---


def _eval_results(measured: Measured) -> list[EvalResult]:
    """List the test measures of every exit and of the cascades, in the form that the hub shows."""
    return [
        EvalResult(
            task_type="text-ranking",
            dataset_type=measured.dataset,
            dataset_name=measured.dataset,
            dataset_split="test",
            metric_type=measure.lower(),
            metric_name=f"{measure}, {label(row['exit'])}",
            metric_value=round(float(row[measure]), 4),
        )
        for _, row in measured.layers.iterrows()
        for measure in measured.measures
    ]


def _result_fields(measured: Measured) -> dict[str, Any]:
    """Collect what the template shows of one data set."""
    layers, costs, cascades = measured.layers, measured.costs, measured.cascades
    with_first_stage = pd.concat([measured.evidence.layers.iloc[[0]], layers])
    timed = costs["ratio"].notna().any()
    return {
        "dataset": measured.dataset,
        "seeds": int(layers["seeds"].iloc[0]),
        "has_fused": bool(layers["fused"].any()),
        "quality": _table(format_layers(with_first_stage, measured.measures), with_first_stage),
        "shallowest_exit": shallowest_exit_advice(measured.evidence, measured.arm),
        "best_cascade": cascade_advice(measured.evidence, measured.arm),
        "costs": _table(format_costs(costs), costs),
        "timed": f"{time_note(costs.iloc[0])} {RATIO_NOTE}" if timed else None,
        "cascades": _table(format_cascades(cascades), cascades),
    }


def _table(text: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Write a table without the columns of the arm, because a card describes one model."""
    return markdown_table(text.drop(columns=list(format_arms(rows))))
