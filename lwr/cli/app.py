"""`lwr <step>`: one command per step, the same that the workflow's rules call."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from safetensors import SafetensorError

from lwr.cli import data, deployment, evaluation, reporting, training

app = typer.Typer(
    name="lwr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Train, measure and ship **layerwise rerankers**: a relevance head at every layer.

    The steps of the workflow, in its order: collect, retrieve, mine (or groups), base, train, score,
    cascade, evaluate, cost, compare, tables, advise, figures, report; verify reads all that they wrote;
    and for what came out rerank, serve, export, card.
    `snakemake --cores 2` runs them all for a whole grid; each can be run alone.

    Options that take SETTINGS take a YAML or JSON file, or the text itself: `'{steps: 100, lr: 1e-4}'`.
    Every key is explained in config/README.md.
    """,
)
for group in (data, training, evaluation, reporting, deployment):
    app.add_typer(group.app)


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Where something fails, show where in the code (also LWR_DEBUG=1)."),
    ] = False,
) -> None:
    if debug:
        os.environ["LWR_DEBUG"] = "1"  # so that what `lwr launch` starts knows it, too


def main() -> None:
    """Run the command line; what a user can mend is one message, not a traceback (`--debug` shows it all)."""
    try:
        app(prog_name="lwr")
    except (ValueError, OSError, FloatingPointError, MemoryError, SafetensorError) as error:
        if os.environ.get("LWR_DEBUG"):
            raise
        typer.secho(f"lwr: {str(error) or type(error).__name__}", fg="red", err=True)
        raise SystemExit(1) from None
