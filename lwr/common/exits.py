"""Name and order exits, and identify the arms and cells of a grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FIRST_STAGE = "first_stage"
CASCADE = "cascade"
CASCADE_FOR_FUSED = "cascade_for_fused"
CASCADES = (CASCADE, CASCADE_FOR_FUSED)
"""Exits of the schedules that are chosen for an arm.

`cascade` keeps the quality of the deepest exit alone, `cascade_for_fused` that of the deepest fused exit, where this is
another schedule.
"""
ARM_COLUMNS = ["dataset", "trained_on", "base_model", "start_layer", "variant"]
"""Columns that identify an arm and the data set it ranks: `dataset` is ranked, the others are fields of `Arm`."""

CompressionStep = tuple[int, int]
"""A layer, and the number of neighbouring passage tokens that become one after it."""

_LAYER = re.compile(r"layer_(\d+)")
_FUSED = re.compile(r"layer_(\d+)_fused")
_COMPRESSED = re.compile(r"layer_(\d+)_compressed((?:_\d+_by_\d+)+)")
_STEP = re.compile(r"_(\d+)_by_(\d+)")


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


def fused_name(layer: int, steps: Sequence[CompressionStep] = ()) -> str:
    """Return the name of an exit whose scores are fused, such as `layer_4_fused` (see `lwr.formats.fusion`).

    Args:
        layer: The layer of the exit.
        steps: As for `compressed_name`; none: it reads complete passages.
    """
    return f"{read_name(layer, steps)}_fused"


def compressed_name(layer: int, steps: Iterable[CompressionStep]) -> str:
    """Return the name of an exit that reads compressed passages, such as `layer_6_compressed_3_by_2`.

    Args:
        layer: The layer of the exit.
        steps: (layer, ratio) of each step of the compression (see `lwr.model.cascade_schedule.Compression`).
    """
    return f"layer_{layer}_compressed" + "".join(f"_{at}_by_{ratio}" for at, ratio in steps)


def read_name(layer: int, steps: Sequence[CompressionStep]) -> str:
    """Return the name of a layer's exit in a pass with these steps of compression: those from it on do not count."""
    before = [(at, ratio) for at, ratio in steps if at < layer and ratio > 1]
    return compressed_name(layer, before) if before else exit_name(layer)


def is_layer(name: str) -> bool:
    """Return whether `name` is the exit of a layer alone: not fused or compressed, no first stage and no cascade."""
    return _LAYER.fullmatch(name) is not None


def is_fused(name: str) -> bool:
    """Return whether `name` is an exit whose scores are fused."""
    return _FUSED.fullmatch(name) is not None


def compression_steps(name: str) -> list[CompressionStep]:
    """Return (layer, ratio) of each step of the compression of an exit's passages; none if they are not compressed."""
    match = _COMPRESSED.fullmatch(name)
    return [] if match is None else [(int(layer), int(ratio)) for layer, ratio in _STEP.findall(match[2])]


def layer_of(name: str) -> int:
    """Return the layer that an exit belongs to, be it fused, compressed or neither.

    Raises:
        ValueError: The exit is not a layer's.
    """
    match = _LAYER.fullmatch(name) or _FUSED.fullmatch(name) or _COMPRESSED.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the exit of a layer; these are named {exit_name(4)}")
    return int(match[1])


def layers_in(names: Iterable[str]) -> list[int]:
    """Return the layers among names of exits or columns of a table, in the given order."""
    return [layer_of(name) for name in names if is_layer(name)]


def compressions_in(columns: Iterable[str]) -> list[tuple[CompressionStep, ...]]:
    """Return the steps of each compression among columns of a table, in the given order."""
    return list(dict.fromkeys(tuple(steps) for steps in map(compression_steps, columns) if steps))


def exits_in(columns: Iterable[str]) -> list[str]:
    """Return the columns of a score table that rank (the first stage and the layers), in the given order."""
    return [name for name in columns if name == FIRST_STAGE or is_layer(name)]


def model_exits_in(columns: Iterable[str]) -> list[str]:
    """Return the columns that a model scored: the layers, then those that read compressed passages."""
    columns = list(columns)
    return [*filter(is_layer, columns), *filter(compression_steps, columns)]


def all_exits_in(columns: Iterable[str]) -> list[str]:
    """Return the columns that rank (first stage, layers alone, fused and compressed), sorted by `sort_key`."""
    columns = list(columns)
    return sorted(
        [*exits_in(columns), *filter(is_fused, columns), *filter(compression_steps, columns)], key=sort_key
    )


def sort_key(name: str) -> tuple[int, int, int, list[tuple[int, int]]]:
    """Return a key that sorts exits: first stage, layers from shallow to deep, cascades.

    Each layer comes alone, then fused, then compressed.

    Raises:
        ValueError: `name` is not an exit.
    """
    if name == FIRST_STAGE:
        return 0, 0, 0, []
    if name in CASCADES:
        return 2, CASCADES.index(name), 0, []
    steps = compression_steps(name)
    return 1, layer_of(name), 2 if steps else int(is_fused(name)), steps


def label(name: str) -> str:
    """Return an exit's name for display: `first stage`, `layer 4, fused` or `layer 6, compressed 3/2, fused`."""
    if name in CASCADES:
        return name.replace("_", " ")
    plain = name.removesuffix("_fused")
    if steps := compression_steps(plain):
        text = f"layer {layer_of(plain)}, compressed {' '.join(f'{layer}/{ratio}' for layer, ratio in steps)}"
    else:
        text = plain.replace("_", " ")
    return text if plain == name else f"{text}, fused"
