"""The step `base`: fetch a base model once per grid, and check it before anything trains on it."""

from __future__ import annotations

from pathlib import Path

from lwr.common.json_lines import write_json
from lwr.config.model import BaseModelConfig
from lwr.formats.checkpoint import describe_checkpoint


def base(config: BaseModelConfig, out: Path) -> None:
    """Fetch a base model, check that its weights can be read, and describe it in the JSON file `out`.

    Raises:
        BadInput: The checkpoint has no safetensors, damaged ones, or fewer than `num_layers` layers.
    """
    write_json(out, describe_checkpoint(config.model, config.revision, config.num_layers))
