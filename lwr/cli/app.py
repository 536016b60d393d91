"""The command line `lwr STEP`: one command per step, the same that the workflow's rules call."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from safetensors import SafetensorError

from lwr.cli import data, deployment, evaluation, init, reporting, training
from lwr.cli.allocator import keep_freed_memory

app = typer.Typer(
    name="lwr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Train, measure and ship **layerwise rerankers**: rerankers with a relevance head at every layer.

    The steps of the workflow, in order: collect, embed, retrieve, mine (or groups), base, teach, train, score, fuse,
    precision, cascade, evaluate, calibrate, cost, compare, tables, advise, figures, report. `snakemake --cores 2` runs
    all that a grid needs; each can also be run alone. `init` writes a folder with such a grid, `check` reads a config,
    `schema` describes its keys, and `verify` checks all results. To use a trained model: rerank, serve, export, card.

    Options that take SETTINGS accept a YAML or JSON file, or the text itself: `'{steps: 100, lr: 1e-4}'`.
    config/README.md explains every key.
    """,
)
for group in (init, data, training, evaluation, reporting, deployment):
    app.add_typer(group.app)


@app.callback()
def configure(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error, like the variable LWR_DEBUG=1."),
    ] = False,
) -> None:
    """Apply the options that precede every command."""
    if debug:
        os.environ["LWR_DEBUG"] = "1"  # also for the process that `lwr launch` starts


def main() -> None:
    """Run the command line; an error that a user can fix becomes one message without a traceback."""
    keep_freed_memory()
    try:
        app(prog_name="lwr")
    except (ValueError, OSError, FloatingPointError, MemoryError, SafetensorError) as error:
        if os.environ.get("LWR_DEBUG"):
            raise
        typer.secho(f"lwr: {str(error) or type(error).__name__}", fg="red", err=True)
        raise SystemExit(1) from None
