"""Read lwr.json and the heads of a reranker that lwr wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lwr.common.errors import BadInput
from lwr.common.exits import exit_name
from lwr.common.json_lines import read_json
from lwr.formats.checkpoint import exits_of_description


def is_stored_reranker(folder: Path) -> bool:
    """Return whether lwr wrote a folder."""
    return (folder / "lwr.json").is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Read lwr.json.

    Raises:
        BadInput: A key is missing or has a value of another type.
    """
    types = {"start_layer": int, "depth": int, "shared_head": bool, "adapter": bool, "pooling": str}
    types |= {"query_max_len": int, "passage_max_len": int}
    written = read_json(folder / "lwr.json", types)
    newer = {"head_every": int, "own_norms": bool}  # older folders lack them
    read_json(folder / "lwr.json", {name: type for name, type in newer.items() if name in written})
    description = {"head_every": 1, "own_norms": False} | written
    if missing := [name for name in ("base", "base_fingerprint", "template") if name not in description]:
        raise BadInput(
            f"{folder / 'lwr.json'}: field {missing[0]!r} is missing; train or fetch the model again"
        )
    return description


def read_stored_heads(folder: Path, description: Mapping[str, Any]) -> dict[int, Tensor]:
    """Read the head of each exit, float32 [H].

    Args:
        folder: A reranker that lwr wrote.
        description: Its lwr.json.

    Raises:
        BadInput: The file or a head is missing.
    """
    file = check_file(folder, "heads.safetensors")
    tensors = load_file(file)
    exits = exits_of_description(description)
    names = {k: "shared" if description["shared_head"] else exit_name(k) for k in exits}
    missing = sorted(set(names.values()) - set(tensors))
    if missing:
        raise BadInput(f"{file}: no head named {missing}; it holds {sorted(tensors)}")
    return {k: tensors[name] for k, name in names.items()}


def check_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a reranker needs. Raises BadInput if it is missing."""
    if not (folder / name).is_file():
        raise BadInput(
            f"{folder}: {name} is missing; without it a reranker scores nothing (pickles are not read)"
        )
    return folder / name
