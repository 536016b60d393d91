"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from pydantic import create_model
from typer import Option

from lwr.common.errors import missing_extra
from lwr.common.exits import ARM_COLUMNS, Arm, Cell
from lwr.config.section import Section
from lwr.formats.beir import Split

Out = Annotated[Path, Option(help="File to write; it appears complete or not at all.", dir_okay=False)]
OutFolder = Annotated[
    Path, Option(help="Folder to write; it appears complete or not at all.", file_okay=False)
]
Collection = Annotated[Path, Option(help="Folder in BEIR layout, as `lwr collect` writes it.", exists=True)]
SplitName = Annotated[Split, Option()]
Settings = Annotated[str, Option(metavar="SETTINGS")]
BaseModelSettings = Annotated[
    str, Option(metavar="SETTINGS", help="A base model: the keys under `base_models: NAME:`.")
]
Model = Annotated[Path, Option(help="Folder that `lwr train` wrote.", exists=True)]
Measures = Annotated[
    list[Path], typer.Argument(help="Parquet files that `lwr evaluate` wrote, of dev and test.", exists=True)
]
Shard = Annotated[str, Option(help="K/N: every N-th query, starting with the K-th (1 to N); 1/1: all.")]
Label = Annotated[str, Option(help="Beginning of each line of progress.")]

ARM_EXAMPLE = f"{{{', '.join(f'{column}: …' for column in ARM_COLUMNS)}}}"
CELL_EXAMPLE = f"{ARM_EXAMPLE[:-1]}, seed: …}}"


def _section_of(point: type[Arm], **others: type) -> type[Section]:
    """Return a section with other keys, then the fields of an arm or a cell."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in {**others, **get_type_hints(point)}.items()}
    return create_model(point.__name__, __base__=Section, **fields)


TrainedCell = _section_of(Cell)
RankedArm = _section_of(Arm, dataset=str)
RankedCell = _section_of(Cell, dataset=str)
"""What `--cell` and `--arm` hold; `dataset` is the data set that is ranked."""


Extra = Literal["workflow", "report", "serve"]
Command = Callable[..., None]


def command_with_extra(app: typer.Typer, extra: Extra, **settings: Any) -> Callable[[Command], Command]:
    """Add a command whose modules need packages of an extra.

    The help lists it under that extra. A package that is not installed becomes one line, before any work: commands
    import their modules first.

    Args:
        app: The group of commands.
        extra: The extra.
        settings: Further arguments of `app.command`.
    """

    def add(command: Command) -> Command:
        @wraps(command)
        def run(*arguments: Any, **options: Any) -> None:
            try:
                command(*arguments, **options)
            except ModuleNotFoundError as error:
                raise missing_extra(command.__name__, str(error.name), extra) from None

        app.command(rich_help_panel=rf"Commands that need pip install 'lwr\[{extra}]'", **settings)(run)
        return command

    return add


def silence_transformers() -> None:
    """Turn off the log and the progress bars of transformers, which would hide our own lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
