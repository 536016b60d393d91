"""Command init: write a folder from which the workflow of this package runs a grid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from lwr.common.atomic import atomic
from lwr.common.errors import BadInput
from lwr.config.reference.render import render_readme, render_schema

PROFILES = Path(__file__).parents[1] / "workflow" / "profiles"
QUICKSTART = Path(__file__).with_name("quickstart.yaml")
SNAKEFILE = """\
# The workflow of the installed package lwr, on the grids of this folder.
#
#   snakemake --cores 2                                       config/config.yaml
#   snakemake --cores 2 --configfile config/other.yaml        another grid
#   snakemake --profile workflow/profiles/slurm               on a cluster; edit the profile first

import lwr

if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


module layerwise:
    snakefile:
        f"{lwr.__path__[0]}/workflow/Snakefile"
    config:
        config


use rule * from layerwise
"""

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def init(folder: Annotated[Path, Argument(help="Folder to write; new or empty.", file_okay=False)]) -> None:
    """Write a folder with the quickstart grid, which the workflow of this package runs.

    It has config/config.yaml, with a description and a schema of all keys, workflow/Snakefile, and profiles for
    clusters and clouds. `pip install 'lwr[workflow,demo]'` installs what the grid needs.

    For example:

    ```
    lwr init my-grid
    ```
    """
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder}: is not empty; name a new folder")
    with atomic(folder) as draft:
        shutil.copytree(PROFILES, draft / "workflow" / "profiles")
        (draft / "workflow" / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
        config = draft / "config"
        config.mkdir()
        shutil.copyfile(QUICKSTART, config / "config.yaml")
        (config / "README.md").write_text(render_readme(), encoding="utf-8")
        (config / "schema.json").write_text(render_schema(), encoding="utf-8")
    typer.echo(
        f"cd {folder} && snakemake --cores 2    # ends in results/report.html and results/tables/layers.md"
    )
