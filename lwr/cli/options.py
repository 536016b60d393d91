"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import create_model
from typer import Option

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


def silence_transformers() -> None:
    """Turn off the log and the progress bars of transformers, which would hide our own lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
