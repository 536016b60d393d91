"""Commands of evaluation: fuse, precision, cascade, evaluate, calibrate, cost, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import (
    ARM_EXAMPLE,
    CELL_EXAMPLE,
    Collection,
    Label,
    Measures,
    Out,
    RankedArm,
    RankedCell,
    Settings,
    SplitName,
    command_with_extra,
    silence_transformers,
)
from lwr.common.errors import BadInput
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, FusionConfig, ScoringConfig
from lwr.config.load import read_settings

app = typer.Typer(rich_markup_mode="markdown")

ArmOption = Annotated[
    str,
    Option("--arm", metavar="SETTINGS", help=f"Arm of a grid, written at the top: `{ARM_EXAMPLE}`."),
]
FusionFile = Annotated[
    Path | None, Option(help="JSON file that `lwr fuse` wrote; without it no scores are fused.", exists=True)
]
CellOption = Annotated[
    str,
    Option("--cell", metavar="SETTINGS", help=f"Cell of a grid, written with the results: `{CELL_EXAMPLE}`."),
]
CascadeFile = Annotated[Path, Option(help="JSON file that `lwr cascade` wrote.", exists=True)]


DevCollection = Annotated[
    Path | None,
    Option(
        help="Collection of the dev scores, where the ranked one has no dev queries: "
        "`--dev-collection results/collections/python-docs`.",
        exists=True,
        file_okay=False,
    ),
]
DevScores = Annotated[list[Path], Option(help="Parquet file of dev scores; once per seed.", exists=True)]
PrimaryMeasure = Annotated[
    str, Option(help="Measure by its ir_measures name: nDCG, RR, AP, P, R or Success, with a cutoff.")
]


def _check_choosing_measure(name: str) -> None:
    from lwr.config.consistency import measure_problem, primary_problem

    if problem := measure_problem(name) or primary_problem(name):
        raise BadInput(f"--measure: {problem}")


@command_with_extra(app, "workflow")
def fuse(
    dev: DevScores,
    collection: Collection,
    settings: Settings,
    arm: ArmOption,
    out: Out,
    measure: PrimaryMeasure = "nDCG@10",
    label: Label = "fuse",
) -> None:
    r"""Fit on dev the weights of fused scores, which combine the first stage with all exits read so far.

    The JSON file also holds the measure of each exit on dev, alone and fused. SETTINGS: the keys under `fusion` but
    `confidence`.

    For example:

    ```
    lwr fuse --dev dev.parquet --collection results/collections/python-docs --settings '{penalty: 0.01}' \
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \
      --out fusion.json
    ```
    """
    from lwr.evaluation.fuse import fuse

    _check_choosing_measure(measure)
    how, ranked_arm = read_settings(settings, FusionConfig), read_settings(arm, RankedArm)
    fuse(dev, collection, how, measure, ranked_arm.model_dump(), out, label)


@command_with_extra(app, "workflow")
def precision(
    model: Annotated[list[Path], Option(help="Folder of a trained model; once per seed.", exists=True)],
    dev: DevScores,
    collection: Collection,
    settings: Settings,
    arm: ArmOption,
    out: Out,
    margin: Annotated[
        float, Option(help="Loss of the measure up to which the deepest exit counts as kept.", min=0)
    ] = 0.02,
    measure: PrimaryMeasure = "nDCG@10",
    label: Label = "precision",
) -> None:
    r"""Measure on dev what scores in int8 lose against those in float32; refuse a loss beyond the margin.

    Up to 200 dev queries are scored in float32, too. SETTINGS: the keys under `score`.

    For example:

    ```
    lwr precision --model model --dev dev.parquet --collection results/collections/python-docs \
      --settings '{precision: int8}' --margin 0.02 \
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \
      --out precision.json
    ```
    """
    silence_transformers()
    from lwr.evaluation.precision import compare_precision

    _check_choosing_measure(measure)
    how, ranked_arm = read_settings(settings, ScoringConfig), read_settings(arm, RankedArm)
    if how.precision != "int8":
        raise BadInput(f"--settings: precision is {how.precision}; only int8 is compared with float32")
    if len(model) != len(dev):
        raise BadInput(
            f"{len(model)} x --model, but {len(dev)} x --dev; give the model of each seed and its scores"
        )
    compare_precision(model, dev, collection, how, margin, measure, ranked_arm.model_dump(), out, label)


@command_with_extra(app, "workflow")
def cascade(
    dev: DevScores,
    test: Annotated[list[Path], Option(help="Parquet file of test scores; once per seed.", exists=True)],
    model: Annotated[Path, Option(help="Folder of one of these models, for its shapes.", exists=True)],
    collection: Collection,
    settings: Settings,
    arm: ArmOption,
    out: Out,
    dev_collection: DevCollection = None,
    fusion: FusionFile = None,
    confidence: Annotated[
        float,
        Option(
            help="With --fusion: confidence with which the choice keeps the measure.",
            min=0.5,
            max=0.999,
        ),
    ] = 0.9,
    measure: PrimaryMeasure = "nDCG@10",
    label: Label = "cascade",
) -> None:
    r"""Choose on dev the cascade with the least FLOPs that keeps the deepest exit's quality.

    With weights of fused scores, exits prune and rank by these, and the first stage may prune before any passage is
    read. The JSON file also holds the complete trade-off between FLOPs and quality. SETTINGS: the keys under `cascade`.

    For example:

    ```
    lwr cascade --dev dev.parquet --test test.parquet --model model --fusion fusion.json \
      --collection results/collections/python-docs --settings '{epsilon: 0.01}' \
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \
      --out cascade.json
    ```
    """
    from lwr.evaluation.cascade import ChoiceRule, cascade

    _check_choosing_measure(measure)
    search, ranked_arm = read_settings(settings, CascadeSearchConfig), read_settings(arm, RankedArm)
    rule = ChoiceRule(measure, fusion, confidence)
    cascade(model, dev, test, collection, search, ranked_arm.model_dump(), out, rule, label, dev_collection)


@command_with_extra(app, "workflow")
def evaluate(
    scores: Annotated[Path, Option(help="Parquet file that `lwr score` wrote.", exists=True)],
    collection: Collection,
    split: SplitName,
    measures: Annotated[str, Option(help="Names of ir_measures, separated by commas.")],
    cascade: CascadeFile,
    cell: CellOption,
    runs: Annotated[Path, Option(help="Folder for a TREC run of each exit.", file_okay=False)],
    out: Out,
    fusion: FusionFile = None,
) -> None:
    r"""Measure the first stage, every exit, fused or not, and the cascade per query: a Parquet file, and TREC runs.

    For example:

    ```
    lwr evaluate --scores test.parquet --collection results/collections/python-docs \
      --split test --measures nDCG@10,RR@10 --cascade cascade.json \
      --cell '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default, seed: 1}' \
      --fusion fusion.json --runs runs --out measures.parquet
    ```
    """
    from lwr.config.consistency import measure_problem
    from lwr.evaluation.evaluate import evaluate

    names, ranked_cell = measures.split(","), read_settings(cell, RankedCell)
    for name in names:
        if problem := measure_problem(name):
            raise BadInput(f"--measures: {problem}")
    evaluate(scores, collection, split, names, cascade, ranked_cell.model_dump(), out, runs, fusion)


@command_with_extra(app, "workflow")
def calibrate(
    dev: Annotated[
        Path, Option(help="Parquet file of dev scores, which the probabilities are fitted to.", exists=True)
    ],
    test: Annotated[
        Path, Option(help="Parquet file of test scores, on which they are measured.", exists=True)
    ],
    collection: Collection,
    cell: CellOption,
    out: Out,
    dev_collection: DevCollection = None,
    fusion: FusionFile = None,
) -> None:
    r"""Fit on dev what probability of relevance a score has, for every exit, and measure the error on test.

    Two maps are fitted, a logistic one of two numbers and an isotonic one. A candidate that is not judged counts as not
    relevant. The output is JSON.

    For example:

    ```
    lwr calibrate --dev dev.parquet --test test.parquet --collection results/collections/python-docs \
      --cell '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default, seed: 1}' \
      --fusion fusion.json --out calibration.json
    ```
    """
    from lwr.evaluation.calibrate import calibrate

    ranked_cell = read_settings(cell, RankedCell).model_dump()
    calibrate(dev, test, collection, ranked_cell, out, fusion, dev_collection)


@command_with_extra(app, "workflow")
def cost(
    models: Annotated[
        list[Path],
        Option("--model", help="Folder of a model that `lwr train` wrote; once per arm.", exists=True),
    ],
    scores: Annotated[
        list[Path],
        Option(
            help="Its Parquet file of test scores, whose candidates are ranked; once per arm.", exists=True
        ),
    ],
    cascades: Annotated[
        list[Path], Option("--cascade", help="JSON file that `lwr cascade` wrote; once per arm.", exists=True)
    ],
    collection: Collection,
    scoring: Annotated[str, Option(metavar="SETTINGS", help="The keys under `score`.")],
    settings: Settings,
    out: Out,
    fusions: Annotated[
        list[Path] | None,
        Option(
            "--fusion",
            help="JSON file that `lwr fuse` wrote; once per arm, or never where no cascade is fused.",
            exists=True,
        ),
    ] = None,
    label: Label = "cost",
) -> None:
    r"""Measure FLOPs, time and memory of each exit and cascade of all arms that rank a data set.

    The models of all arms are in memory together, and rank in turns, so that other load on this machine slows all of
    them alike. Times are ratios to that of the deepest exit of the first arm. Give the options of an arm in the same
    order. SETTINGS: the keys under `cost`. The output is JSON.

    For example:

    ```
    lwr cost --model minilm/model --scores minilm/test.parquet --cascade minilm/cascade.json \
      --model bert/model --scores bert/test.parquet --cascade bert/cascade.json \
      --collection results/collections/python-docs --scoring '{precision: bfloat16}' \
      --settings '{queries: 20}' --out cost.json
    ```
    """
    from lwr.evaluation.cost import ArmFiles, cost

    if not len(models) == len(scores) == len(cascades):
        given = f"{len(models)}, {len(scores)} and {len(cascades)} times"
        raise BadInput(f"--model, --scores, --cascade: given {given}; give each once per arm")
    if fusions and len(fusions) != len(models):
        raise BadInput(
            f"--fusion: given {len(fusions)} times for {len(models)} arms; give it once per arm, or never"
        )
    silence_transformers()
    how, which = read_settings(scoring, ScoringConfig), read_settings(settings, CostConfig)
    weights = fusions or [None] * len(models)
    arms = [ArmFiles(*files) for files in zip(models, scores, cascades, weights, strict=True)]
    cost(arms, collection, how, which, out, label)


@command_with_extra(app, "report")
def compare(
    measures: Measures,
    primary: Annotated[str, Option(help="Measure that is compared.")],
    margin: Annotated[float, Option(help="Loss of this measure up to which an exit is not worse.")],
    out: Annotated[Path, Option(help="Folder for comparisons.csv and comparisons.md.", file_okay=False)],
) -> None:
    r"""Compare each exit with the deepest exit, the first stage and other models, with tests and intervals.

    For example:

    ```
    lwr compare results/cells/*/*/*/*/*/measures/*/*.parquet --primary nDCG@10 \
      --margin 0.02 --out results/tables
    ```
    """
    from lwr.evaluation.compare import compare

    compare(measures, primary, margin, out)
