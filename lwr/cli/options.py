"""What the commands share: options that several take, and settings from a text or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from typer import Option

from lwr.common.errors import BadInput
from lwr.config.problems import explain
from lwr.config.section import Section
from lwr.config.yaml_lines import parse_yaml, read_yaml
from lwr.formats.beir import Split

AnySection = TypeVar("AnySection", bound=BaseModel)
Out = Annotated[Path, Option(help="The file that is written: whole, or not at all.", dir_okay=False)]
OutFolder = Annotated[Path, Option(help="The folder that is written: whole, or not at all.", file_okay=False)]
Collection = Annotated[Path, Option(help="Folder in BEIR layout, as `lwr collect` writes it.", exists=True)]
SplitName = Annotated[Split, Option()]
Settings = Annotated[str, Option(metavar="SETTINGS")]
Measures = Annotated[
    list[Path], typer.Argument(help="Parquet files that `lwr evaluate` wrote, of dev and test.", exists=True)
]
ARM = "`{dataset: …, trained_on: …, base_model: …, start_layer: …, variant: …}`"
BaseModelSettings = Annotated[
    str, Option(metavar="SETTINGS", help="A base model: the keys under `base_models: NAME:`.")
]


def read_settings(text: str, section: type[AnySection]) -> AnySection:
    """A section of the config from a file or from the text itself. Raises BadInput naming key, value and fix."""
    is_text = "{" in text or "\n" in text
    source = parse_yaml(text, "settings") if is_text else read_yaml(Path(text))
    if source.twice:
        raise BadInput("\n".join(said for _, said in source.twice))
    try:
        return section.model_validate(source.values)
    except ValidationError as error:
        raise BadInput(explain(error, section, source.values, source.name)) from None


class Arm(Section):
    """How measures, cascades and costs name what they are of."""

    dataset: str
    trained_on: str
    base_model: str
    start_layer: int
    variant: str


class Cell(Arm):
    """One training of an arm."""

    seed: int


class TrainedCell(Section):
    """A cell of a grid as `lwr train --cell` takes it."""

    trained_on: str
    base_model: str
    start_layer: int
    variant: str
    seed: int


def quiet() -> None:
    """Our own lines say how it goes; those of transformers would bury them in a log."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
