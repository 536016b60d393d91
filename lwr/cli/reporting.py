"""Commands of reporting: `lwr tables`, `advise`, `figures`, `report` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lwr.cli.options import Measures, Out

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def tables(
    measures: Measures,
    costs: Annotated[list[Path], Option("--cost", help="A file of `lwr cost`; once per arm.", exists=True)],
    cascades: Annotated[
        list[Path], Option("--cascade", help="A file of `lwr cascade`; once per arm.", exists=True)
    ],
    primary: Annotated[str, Option(help="The measure that shares are counted in.")],
    out: Annotated[
        Path,
        Option(help="Folder for layers, cost and cascades: .csv, .md; layers also .tex.", file_okay=False),
    ],
) -> None:
    """The tables of quality per layer, of costs, and of the cascades.

    Example:

    ```
    lwr tables results/cells/*/*/*/*/*/measures/*/*.parquet --cost cost.json \\
      --cascade cascade.json --primary nDCG@10 --out results/tables
    ```
    """
    from lwr.reporting.tables import tables

    tables(measures, costs, cascades, primary, out)


@app.command()
def advise(
    results: Annotated[Path, Option(help="Results of a grid.")] = Path("results"),
    budget_ms: Annotated[
        float | None,
        Option(help="Milliseconds that 95 of 100 lists may take; none: an answer for each.", min=0),
    ] = None,
    candidates: Annotated[
        int | None, Option(help="Passages of a list; none: as many as were timed.", min=1)
    ] = None,
    out: Annotated[Path | None, Option(help="Markdown file to write instead of printing.")] = None,
) -> None:
    """Which layer, or which cascade, to deploy: chosen on dev, with what test says of the choice.

    Example:

    ```
    lwr advise --budget-ms 50 --candidates 100
    ```
    """
    from lwr.reporting.advise import advice_text, advise

    if out is None:
        typer.echo(advice_text(results / "tables", budget_ms, candidates), nl=False)
    else:
        advise(results / "tables", out, budget_ms, candidates)


@app.command()
def figures(
    measures: Measures,
    tables: Annotated[Path, Option(help="Folder of `lwr tables` and `lwr compare`.", exists=True)],
    training: Annotated[list[Path], Option(help="Folder of a model; once per cell.", exists=True)],
    primary: Annotated[str, Option(help="The measure that is drawn.")],
    out: Annotated[Path, Option(help="Folder for the figures: .html, .svg, .png, .json.", file_okay=False)],
) -> None:
    """Draw quality by layer, FLOPs and latency, queries won and lost, and the losses of training.

    Example:

    ```
    lwr figures measures.parquet --tables results/tables --training model --primary nDCG@10 \\
      --out results/figures
    ```
    """
    from lwr.reporting.figures import figures

    figures(tables, measures, training, primary, out)


@app.command()
def report(
    models: Annotated[
        list[Path], typer.Argument(help="Folders of the models, for their origins.", exists=True)
    ],
    tables: Annotated[Path, Option(help="Folder of the tables.", exists=True)],
    figures: Annotated[Path, Option(help="Folder of the figures.", exists=True)],
    title: Annotated[str, Option(help="What stands at the top.")],
    out: Out,
) -> None:
    """One HTML file to open from disk: recommendation, figures, tables, and where it all came from.

    Example:

    ```
    lwr report model --tables results/tables --figures results/figures --title 'My grid' \\
      --out results/report.html
    ```
    """
    from lwr.reporting.report import report

    report(tables, figures, models, title, out)


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="Results of a grid.", exists=True, file_okay=False)] = Path(
        "results"
    ),
) -> None:
    """Read all that a grid wrote, and hold it against what it was made of: a line for each thing that is wrong.

    Ends with status 1 where something is. What a kill left behind is told, and whether it does harm.

    Example:

    ```
    lwr verify results
    ```
    """
    from lwr.verify.verify import verify

    verdict = verify(results)
    for line in verdict.notes:
        typer.echo(f"note: {line}")
    for line in verdict.faults:
        typer.secho(line, fg="red", err=True)
    if verdict.faults:
        typer.secho(f"{len(verdict.faults)} faults in {verdict.files} files", fg="red", err=True)
        raise typer.Exit(1)
    typer.echo(f"{verdict.files} files: each is what its step wrote, of what is there now")
