"""Fused scores: linear combinations of the first stage's score and the scores of all exits that have been read.

When a pass reaches layer k, the first stage's score and the scores of the exits up to k are known. Combining them, with
weights that `lwr fuse` fits on dev, needs no further computation of the model. The weights are stored in `fusion.json`.
A pass that compresses passages knows other scores behind the compression, and has weights of its own there.
The arithmetic is here, once, for numpy arrays and for torch tensors, so that the replay of recorded scores and the
forward pass compute the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lwr.common.errors import BadInput
from lwr.common.exits import (
    FIRST_STAGE,
    CompressionStep,
    compression_steps,
    exit_name,
    layer_of,
    read_name,
)
from lwr.common.hashing import hash_share
from lwr.common.json_lines import read_json

FILE_NAME = "fusion.json"
"""The name of the file in a folder of a model."""

WeightsBySteps = dict[tuple[CompressionStep, ...], dict[int, dict[str, float]]]
"""Steps of a compression, () for complete passages -> layer -> name of a feature -> weight."""

Scores = TypeVar("Scores", np.ndarray, Any)  # float64, of numpy or torch


@dataclass(frozen=True)
class Fusion:
    """The weights of fused scores at every exit of an arm.

    Attributes:
        with_first_stage: Layer -> name of a feature (`first_stage` or an exit's name) -> weight.
        without_first_stage: The same for requests that bring no first-stage scores; they have no `first_stage`.
        compressed: Steps of a compression -> the weights of the exits that read fewer tokens then.
    """

    with_first_stage: dict[int, dict[str, float]]
    without_first_stage: dict[int, dict[str, float]]
    compressed: dict[tuple[CompressionStep, ...], Fusion] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The exits that have fused scores, ascending."""
        return sorted(self.with_first_stage)

    @property
    def exits(self) -> list[str]:
        """The names of the exits that have fused scores: those of the layers, then those of compressed passages."""
        behind = [
            read_name(layer, steps) for steps, fusion in self.compressed.items() for layer in fusion.layers
        ]
        return [*map(exit_name, self.layers), *behind]

    def weights(
        self, layer: int, has_first_stage: bool, steps: Sequence[CompressionStep] = ()
    ) -> dict[str, float]:
        """Return name of a feature -> weight at `layer`, in a pass with these steps of compression."""
        before = tuple((at, ratio) for at, ratio in steps if at < layer)
        fusion = self.compressed[before] if before else self
        return (fusion.with_first_stage if has_first_stage else fusion.without_first_stage)[layer]


@dataclass(frozen=True)
class CrossFittedFusion:
    """Weights for the queries of dev: those of a query were fitted on dev without the queries of its fold.

    Scores with weights that were fitted on the same queries would be too good.
    """

    folds: tuple[Fusion, ...]

    @property
    def exits(self) -> list[str]:
        """The names of the exits that have fused scores, as `Fusion.exits`."""
        return self.folds[0].exits


def fold_of(query_id: str, folds: int) -> int:
    """Return the fold of a query, 0..folds - 1; it depends on the query's id alone.

    The id is not hashed as it is: queries are sampled, and split off from train, by that hash.
    """
    return int(hash_share(f"fold of {query_id}") * folds)


def fuse_scores(weights: Mapping[str, float], features: Mapping[str, Scores]) -> Scores:
    """Combine features of candidates into their fused scores.

    The products are added in the order of `weights`, so that equal inputs give equal bits.

    Args:
        weights: Name of a feature -> weight.
        features: Name of a feature -> float64 of any one shape: `first_stage` as `normalize_first_stage` returns it,
            and the scores of exits as they are. It may hold more features than `weights` names.

    Returns:
        float64, of the features' shape.
    """
    names = list(weights)
    total: Any = features[names[0]] * weights[names[0]]
    for name in names[1:]:
        total = total + features[name] * weights[name]
    return total


def normalize_first_stage(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Shift and scale the first-stage scores of one query's candidates to mean 0 and standard deviation 1.

    The scores of a list of one, and equal scores, become 0: they do not tell candidates apart. All candidates that the
    first stage returned take part, also those that a cascade drops before block 1.

    Args:
        scores: float [C], the first-stage scores of all candidates of the query, finite as float32.

    Returns:
        float64 [C].
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or values.max() == values.min():
        return np.zeros_like(values)
    # From 0 to 1, so that the squares of very small differences do not become 0.
    scaled = (values - values.min()) / (values.max() - values.min())
    # Sorted before they are added: the result does not depend on the order of the candidates.
    ordered = np.sort(scaled)
    mean = ordered.mean()
    deviation = np.sqrt(np.sort((ordered - mean) ** 2).mean())
    return (scaled - mean) / deviation


def fusion_record(fusion: Fusion) -> dict[str, Any]:
    """Return the weights as `fusion.json` holds them: exits, the compressed ones last, and features by name."""
    parts = {(): fusion} | fusion.compressed
    return {
        "with_first_stage": _name_exits({steps: part.with_first_stage for steps, part in parts.items()}),
        "without_first_stage": _name_exits(
            {steps: part.without_first_stage for steps, part in parts.items()}
        ),
    }


def _name_exits(weights: WeightsBySteps) -> dict[str, dict[str, float]]:
    return {
        read_name(layer, steps): dict(by_feature)
        for steps, by_layer in weights.items()
        for layer, by_feature in sorted(by_layer.items())
    }


def read_fusion(path: Path) -> Fusion:
    """Read the weights in a `fusion.json`.

    Raises:
        BadInput: The file cannot be read as such.
    """
    return _read_both(path, read_json(path, {"with_first_stage": dict, "without_first_stage": dict}))


def read_cross_fitted(path: Path) -> CrossFittedFusion:
    """Read the weights for the queries of dev in a `fusion.json`. Raises BadInput."""
    records = read_json(path, {"out_of_fold": list})["out_of_fold"]
    if not records or not all(isinstance(record, dict) for record in records):
        raise BadInput(f"{path}: out_of_fold: expected weights for each fold; run `lwr fuse` again")
    return CrossFittedFusion(tuple(_read_both(path, record) for record in records))


def _read_both(path: Path, record: Mapping[str, Any]) -> Fusion:
    keys = ("with_first_stage", "without_first_stage")
    for key in keys:
        if not isinstance(record.get(key), dict):
            raise BadInput(f"{path}: field {key!r} is missing in out_of_fold; run `lwr fuse` again")
    with_first_stage, without_first_stage = (_read_weights(path, record, key) for key in keys)
    exits, others = (
        {steps: by_layer.keys() for steps, by_layer in weights.items()}
        for weights in (with_first_stage, without_first_stage)
    )
    if exits != others:
        raise BadInput(f"{path}: {keys[0]} and {keys[1]} have other exits; run `lwr fuse` again")
    parts = {steps: Fusion(with_first_stage[steps], without_first_stage[steps]) for steps in with_first_stage}
    return replace(parts.pop(()), compressed=parts)


def _read_weights(path: Path, record: Mapping[str, Any], key: str) -> WeightsBySteps:
    """Read one of the two sets of weights, by steps of compression and layer.

    Raises:
        BadInput: A weight is not finite, or an exit uses what is not known when it is reached.
    """
    weights: WeightsBySteps = {(): {}}
    for exit, by_feature in record[key].items():
        steps = tuple(compression_steps(exit))
        try:
            features = {name: float(value) for name, value in by_feature.items()}
            known = {read_name(layer, steps) for layer in range(1, layer_of(exit) + 1)}
            is_valid = exit in known and features.keys() <= known | (
                {FIRST_STAGE} if key == "with_first_stage" else set()
            )
        except (AttributeError, TypeError, ValueError):
            is_valid, features = False, {}
        if not is_valid or not features or not np.isfinite(list(features.values())).all():
            raise BadInput(
                f"{path}: {key}, {exit}: expected finite weights of {FIRST_STAGE} and of exits up to {exit}; "
                "run `lwr fuse` again"
            )
        weights.setdefault(steps, {})[layer_of(exit)] = features
    return weights
