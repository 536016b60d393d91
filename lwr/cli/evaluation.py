"""Commands of evaluation: `lwr cascade`, `evaluate`, `cost` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import (
    ARM_EXAMPLE,
    CELL_EXAMPLE,
    Collection,
    Measures,
    Out,
    RankedArm,
    RankedCell,
    Settings,
    SplitName,
    silence_transformers,
)
from lwr.common.errors import BadInput
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.config.load import read_settings

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def cascade(
    dev: Annotated[list[Path], Option(help="Scores of dev, Parquet; once per seed.", exists=True)],
    test: Annotated[list[Path], Option(help="Scores of test; once per seed.", exists=True)],
    model: Annotated[Path, Option(help="Folder of one of these models, for its shapes.", exists=True)],
    collection: Collection,
    settings: Settings,
    arm: Annotated[str, Option(help=f"The arm, written at the top: `{ARM_EXAMPLE}`.")],
    out: Out,
) -> None:
    """Choose a cascade on dev: the least FLOPs that keep the deepest exit's nDCG@10. JSON with the whole front.

    SETTINGS: the keys under `cascade`.

    Example:

    ```
    lwr cascade --dev dev.parquet --test test.parquet --model model \\
      --collection results/collections/python-docs --settings '{epsilon: 0.01}' \\
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \\
      --out cascade.json
    ```
    """
    from lwr.evaluation.cascade import cascade

    chosen, which = read_settings(settings, CascadeSearchConfig), read_settings(arm, RankedArm)
    cascade(model, dev, test, collection, chosen, which.model_dump(), out)


@app.command()
def evaluate(
    scores: Annotated[Path, Option(help="Parquet that `lwr score` wrote.", exists=True)],
    collection: Collection,
    split: SplitName,
    measures: Annotated[str, Option(help="As ir_measures names them, with commas.")],
    cascade: Annotated[Path, Option(help="JSON that `lwr cascade` wrote.", exists=True)],
    cell: Annotated[str, Option(help=f"The cell, written into each row: `{CELL_EXAMPLE}`.")],
    runs: Annotated[Path, Option(help="Folder for a TREC run of each exit.", file_okay=False)],
    out: Out,
) -> None:
    """Measure every exit, the cascade and the first stage, per query: Parquet, and TREC runs to measure elsewhere.

    Example:

    ```
    lwr evaluate --scores test.parquet --collection results/collections/python-docs \\
      --split test --measures nDCG@10,RR@10 --cascade cascade.json \\
      --cell '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default, seed: 1}' \\
      --runs runs --out measures.parquet
    ```
    """
    from lwr.config.consistency import measure_problem
    from lwr.evaluation.evaluate import evaluate

    names, which = measures.split(","), read_settings(cell, RankedCell)
    for problem in filter(None, map(measure_problem, names)):
        raise BadInput(f"--measures: {problem}")
    evaluate(scores, collection, split, names, cascade, which.model_dump(), out, runs)


@app.command()
def cost(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    collection: Collection,
    scores: Annotated[Path, Option(help="Scores of test: whose lists are ranked.", exists=True)],
    cascade: Annotated[Path, Option(help="JSON that `lwr cascade` wrote.", exists=True)],
    scoring: Annotated[str, Option(metavar="SETTINGS", help="The keys under `score`.")],
    settings: Settings,
    arm: Annotated[str, Option(help=f"The arm, written at the top: `{ARM_EXAMPLE}`.")],
    out: Out,
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "cost",
) -> None:
    """FLOPs, time and memory of each exit and of the cascade, side by side on this machine; JSON.

    SETTINGS: the keys under `cost`.

    Example:

    ```
    lwr cost --model model --collection results/collections/python-docs --scores test.parquet \\
      --cascade cascade.json --scoring '{precision: bfloat16}' --settings '{queries: 20}' \\
      --arm '{dataset: python-docs, trained_on: python-docs, base_model: minilm, start_layer: 2,
      variant: default}' \\
      --out cost.json
    ```
    """
    from lwr.evaluation.cost import cost

    silence_transformers()
    how, which = read_settings(scoring, ScoringConfig), read_settings(settings, CostConfig)
    of_arm = read_settings(arm, RankedArm).model_dump()
    cost(model, collection, scores, cascade, how, which, of_arm, out, label)


@app.command()
def compare(
    measures: Measures,
    primary: Annotated[str, Option(help="The measure that is compared.")],
    margin: Annotated[float, Option(help="What an exit may lose of it and still be as good.")],
    out: Annotated[Path, Option(help="Folder for comparisons.csv and comparisons.md.", file_okay=False)],
) -> None:
    """Who ranks better, and how sure is it: exits against the deepest, the first stage, and between models.

    Example:

    ```
    lwr compare results/cells/*/*/*/*/*/measures/*/*.parquet --primary nDCG@10 \\
      --margin 0.02 --out results/tables
    ```
    """
    from lwr.evaluation.compare import compare

    compare(measures, primary, margin, out)
