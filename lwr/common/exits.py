"""Name and order exits, and identify the arms and cells of a grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FIRST_STAGE = "first_stage"
CASCADE = "cascade"
ARM_COLUMNS = ["dataset", "trained_on", "base_model", "start_layer", "variant"]
"""Columns that identify an arm and the data set it ranks: `dataset` is ranked, the others are fields of `Arm`."""

_LAYER = re.compile(r"layer_(\d+)")
_FUSED = re.compile(r"layer_(\d+)_fused")


@dataclass(frozen=True, order=True)
class Arm:
    """A point of the grid without its seed; its seeds are repetitions."""

    trained_on: str  # name of the data set
    base_model: str
    start_layer: int
    variant: str


@dataclass(frozen=True, order=True)
class Cell(Arm):
    """A point of the grid: one training."""

    seed: int

    @property
    def arm(self) -> Arm:
        """The same point without its seed."""
        return Arm(self.trained_on, self.base_model, self.start_layer, self.variant)


def layers_with_head(start_layer: int, last: int, every: int = 1) -> list[int]:
    """Return the layers that have a head, ascending: each `every`-th from `start_layer` on, and the last."""
    return sorted({*range(start_layer, last + 1, every), last})


def describe_layers(layers: Sequence[int]) -> str:
    """Write ascending layers for a message: `4..12`, or `4, 8, 12` if layers between them are missing."""
    has_all = len(layers) == layers[-1] - layers[0] + 1
    return f"{layers[0]}..{layers[-1]}" if has_all else ", ".join(map(str, layers))


def exit_name(layer: int) -> str:
    """Return the name of a layer's exit, such as `layer_4`, used in columns, rows and file names."""
    return f"layer_{layer}"


def fused_name(layer: int) -> str:
    """Return the name of an exit whose scores are fused, such as `layer_4_fused` (see `lwr.formats.fusion`)."""
    return f"layer_{layer}_fused"


def is_layer(name: str) -> bool:
    """Return whether `name` is the exit of a layer alone: not fused, not the first stage, not a cascade."""
    return _LAYER.fullmatch(name) is not None


def is_fused(name: str) -> bool:
    """Return whether `name` is an exit whose scores are fused."""
    return _FUSED.fullmatch(name) is not None


def layer_of(name: str) -> int:
    """Return the layer that an exit belongs to, fused or not.

    Raises:
        ValueError: The exit is not a layer's.
    """
    match = _LAYER.fullmatch(name) or _FUSED.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the exit of a layer; these are named {exit_name(4)}")
    return int(match[1])


def layers_in(names: Iterable[str]) -> list[int]:
    """Return the layers among names of exits or columns of a table, in the given order."""
    return [layer_of(name) for name in names if is_layer(name)]


def exits_in(columns: Iterable[str]) -> list[str]:
    """Return the columns of a score table that rank (the first stage and the layers), in the given order."""
    return [name for name in columns if name == FIRST_STAGE or is_layer(name)]


def plain_and_fused_exits_in(columns: Iterable[str]) -> list[str]:
    """Return the columns that rank (the first stage, and the layers alone and fused), sorted by `sort_key`."""
    columns = list(columns)
    return sorted([*exits_in(columns), *filter(is_fused, columns)], key=sort_key)


def sort_key(name: str) -> tuple[int, int, int]:
    """Return a key that sorts exits: first stage, layers from shallow to deep (each alone, then fused), cascade.

    Raises:
        ValueError: `name` is not an exit.
    """
    if name == FIRST_STAGE:
        return 0, 0, 0
    return (2, 0, 0) if name == CASCADE else (1, layer_of(name), int(is_fused(name)))


def label(name: str) -> str:
    """Return an exit's name for display, such as `layer 4`, `layer 4, fused` or `first stage`."""
    return name.replace("_fused", ", fused").replace("_", " ")
