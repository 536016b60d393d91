"""What comes before training: the config, a collection, its first stage, training groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import Collection, Out, OutFolder, Settings, SplitName
from lwr.common.errors import BadInput
from lwr.config.data import DatasetConfig, FirstStageConfig, FlagEmbeddingSource, MiningConfig
from lwr.config.load import read_settings

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of a grid.", exists=True, dir_okay=False)
    ],
) -> None:
    """Say what a grid holds, or all that is wrong with it: file, line, key and the way out. Runs nothing.

    Example:

    ```
    lwr check config/config.yaml
    ```
    """
    from lwr.config.check import check

    try:
        typer.echo(check(file))
    except BadInput as error:  # plain lines, so that an editor or a terminal finds file:line
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None


@app.command()
def schema(
    readme: Annotated[
        bool, Option("--readme", help="Every key as tables for people: config/README.md.")
    ] = False,
) -> None:
    """Print the JSON schema of a config file, for editors.

    Example:

    ```
    lwr schema > config/schema.json
    lwr schema --readme > config/README.md
    ```
    """
    from lwr.config import reference

    typer.echo(reference.render_readme() if readme else reference.render_schema(), nl=False)


@app.command()
def collect(
    dataset: Annotated[str, Option(metavar="SETTINGS", help="A data set: the keys under `datasets: NAME:`.")],
    out: OutFolder,
) -> None:
    """Bring a collection into BEIR layout: corpus.jsonl, queries.jsonl, qrels/.

    Example:

    ```
    lwr collect --dataset '{source: {kind: python_docs}}' \\
      --out results/collections/python-docs
    ```
    """
    from lwr.data.collect import collect

    collect(read_settings(dataset, DatasetConfig), out)


@app.command()
def retrieve(collection: Collection, split: SplitName, settings: Settings, out: Out) -> None:
    """First stage: the candidates of a split's queries, by BM25 or from a run made elsewhere, as a TREC run.

    SETTINGS: the keys under `first_stage`.

    Example:

    ```
    lwr retrieve --collection results/collections/python-docs --split test \\
      --settings '{depth: 50}' --out test.trec
    ```
    """
    from lwr.data.retrieve import retrieve

    retrieve(collection, out, split, read_settings(settings, FirstStageConfig))


@app.command()
def mine(
    collection: Collection,
    run: Annotated[Path, Option(help="TREC run of the train queries.", exists=True)],
    settings: Settings,
    out: Out,
) -> None:
    """Training groups: one positive and hard negatives per query, in FlagEmbedding's JSON lines.

    SETTINGS: the keys under `mining`.

    Example:

    ```
    lwr mine --collection results/collections/python-docs --run train.trec \\
      --settings '{negatives: 7}' --out groups.jsonl
    ```
    """
    from lwr.data.mine import mine

    mine(collection, run, out, read_settings(settings, MiningConfig))


@app.command()
def groups(
    source: Annotated[
        str, Option(metavar="SETTINGS", help="The keys under `datasets: NAME: source:`; flag_embedding.")
    ],
    out: Out,
) -> None:
    """Adopt training groups made elsewhere: FlagEmbedding's JSON lines, checked and brought into one file.

    Example:

    ```
    lwr groups --source '{kind: flag_embedding, path: their/groups}' --out groups.jsonl
    ```
    """
    from lwr.data.groups import groups

    groups(read_settings(source, FlagEmbeddingSource), out)
