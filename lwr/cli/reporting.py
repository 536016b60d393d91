"""Commands of reporting: tables, advise, figures, report; and verify, which checks all results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lwr.cli.options import Measures, Out, command_with_extra

app = typer.Typer(rich_markup_mode="markdown")


Calibrations = Annotated[
    list[Path],
    Option("--calibration", help="JSON file that `lwr calibrate` wrote; once per cell.", exists=True),
]


@command_with_extra(app, "report")
def tables(
    measures: Measures,
    costs: Annotated[
        list[Path],
        Option("--cost", help="JSON file that `lwr cost` wrote; once per ranked data set.", exists=True),
    ],
    cascades: Annotated[
        list[Path], Option("--cascade", help="JSON file that `lwr cascade` wrote; once per arm.", exists=True)
    ],
    calibrations: Calibrations,
    primary: Annotated[str, Option(help="Measure whose shares are computed.")],
    out: Annotated[
        Path,
        Option(
            help="Folder for the tables layers, cost, cascades and calibration: .csv and .md; layers also .tex.",
            file_okay=False,
        ),
    ],
) -> None:
    r"""Write the tables of quality per layer, of costs, of the cascades, and of calibration.

    For example:

    ```
    lwr tables results/cells/*/*/*/*/*/measures/*/*.parquet --cost cost.json \
      --cascade cascade.json --calibration calibration.json --primary nDCG@10 --out results/tables
    ```
    """
    from lwr.reporting.tables import tables

    tables(measures, costs, cascades, calibrations, primary, out)


@command_with_extra(app, "report")
def advise(
    results: Annotated[Path, Option(help="Results of a grid.")] = Path("results"),
    budget_ms: Annotated[
        float | None,
        Option(help="Milliseconds within which 95% of the queries are ranked; default: several.", min=0),
    ] = None,
    candidates: Annotated[
        int | None, Option(help="Candidates per query; default: as many as were timed.", min=1)
    ] = None,
    precision: Annotated[
        float | None,
        Option(
            help="Share of relevant passages, such as 0.9, for which the lowest threshold of scores is told."
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="Markdown file to write; default: print.")] = None,
) -> None:
    """Recommend a layer or a cascade: chosen on dev, reported on test.

    Where the intervals of two measured times overlap, the choice with fewer FLOPs counts as no slower.

    For example:

    ```
    lwr advise --budget-ms 50 --candidates 100
    lwr advise --precision 0.9
    ```
    """
    from lwr.reporting.advise import advice_text, advise

    if out is None:
        typer.echo(advice_text(results / "tables", budget_ms, candidates, precision), nl=False)
    else:
        advise(results / "tables", out, budget_ms, candidates, precision)


@command_with_extra(app, "report")
def figures(
    measures: Measures,
    tables: Annotated[Path, Option(help="Folder of `lwr tables` and `lwr compare`.", exists=True)],
    training: Annotated[list[Path], Option(help="Folder of a trained model; once per cell.", exists=True)],
    calibrations: Calibrations,
    primary: Annotated[str, Option(help="Measure that is drawn.")],
    out: Annotated[Path, Option(help="Folder for the figures: .html, .svg, .png, .json.", file_okay=False)],
) -> None:
    r"""Draw quality by layer, FLOPs and latency, queries won and lost, reliability, and training losses.

    For example:

    ```
    lwr figures measures.parquet --tables results/tables --training model \
      --calibration calibration.json --primary nDCG@10 --out results/figures
    ```
    """
    from lwr.reporting.figures import figures

    figures(tables, measures, training, calibrations, primary, out)


@command_with_extra(app, "report")
def report(
    models: Annotated[
        list[Path], Argument(help="Folders of the models, whose provenance is shown.", exists=True)
    ],
    tables: Annotated[Path, Option(help="Folder of the tables.", exists=True)],
    figures: Annotated[Path, Option(help="Folder of the figures.", exists=True)],
    title: Annotated[str, Option(help="Title of the page.")],
    out: Out,
) -> None:
    r"""Write one HTML page that works offline: recommendation, figures, tables and provenance.

    For example:

    ```
    lwr report model --tables results/tables --figures results/figures --title 'My grid' \
      --out results/report.html
    ```
    """
    from lwr.reporting.report import report

    report(tables, figures, models, title, out)


@command_with_extra(app, "report")
def verify(
    results: Annotated[Path, Argument(help="Results of a grid.", exists=True, file_okay=False)] = Path(
        "results"
    ),
) -> None:
    """Read everything that a grid wrote, and compare it with what it was made from.

    Prints a line for each fault, and a note for each file that an interrupted run left behind. Exits with status 1 if
    there is a fault.

    For example:

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
    typer.echo(f"{verdict.files} files: each is what its step wrote from the present inputs")
