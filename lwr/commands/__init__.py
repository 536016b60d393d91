"""What the commands share: options that several take, and settings from a text or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError
from typer import Option

from lwr import config
from lwr.config_errors import explain
from lwr.files import BadInput

Section = TypeVar("Section", bound=BaseModel)
Out = Annotated[Path, Option(help="What is written: whole, or not at all.")]
Collection = Annotated[Path, Option(help="Folder in BEIR layout, as `lwr collect` writes it.", exists=True)]
SplitName = Annotated[config.Split, Option()]
Settings = Annotated[str, Option(metavar="SETTINGS")]
Measures = Annotated[
    list[Path], typer.Argument(help="Parquet files that `lwr evaluate` wrote, of dev and test.", exists=True)
]
ARM = "`{dataset: …, trained_on: …, base_model: …, start_layer: …, variant: …}`"
BaseModelSettings = Annotated[
    str, Option(metavar="SETTINGS", help="A base model: the keys under `base_models: NAME:`.")
]


def read_settings(text: str, section: type[Section]) -> Section:
    """A section of the config from a file or from the text itself. Raises BadInput naming key, value and fix."""
    file = Path(text)
    is_text = "{" in text or "\n" in text
    try:
        values = yaml.safe_load(text if is_text else file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"settings {text!r}: {error}; give a YAML or JSON file, or {{key: value}}") from None
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise BadInput(explain(error, section, values, "settings" if is_text else text)) from None


def quiet() -> None:
    """Our own lines say how it goes; those of transformers would bury them in a log."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
