"""How deep candidates are read: the schedule of a cascade and of token compression, or a deadline; and their ranking.

A cascade says which exits score and how many candidates survive each of them. A compression says where passage tokens
become fewer. A deadline lets a pass end at the deepest exit that is reached in time.

Letters in shape comments: C candidates of a query, R candidates that block 1 reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from time import perf_counter
from typing import Self

import numpy as np

from lwr.common.exits import FIRST_STAGE, CompressionStep, layer_of, read_name
from lwr.common.json_lines import FLOAT32_LIMIT
from lwr.config.section import LARGEST_RATIO
from lwr.formats.fusion import Fusion, fuse_scores, normalize_first_stage

Weights = Mapping[int, Mapping[str, float]]
"""Layer of a stage -> name of a feature -> weight, as in `lwr.formats.fusion`."""
_NUMBER = re.compile(r"[0-9]+")
_STAGE = re.compile(r"([0-9]+)(?=[/:])(?:/([0-9]+))?(?::([0-9]+))?")  # layer, ratio, survivors


@dataclass(frozen=True)
class Compression:
    """Token compression: after some layers, each run of neighbouring passage tokens becomes one.

    Written `2/4`: after layer 2, four passage tokens become one. `2/2 4/2` halves their number twice. The exit of such
    a layer still reads all tokens.

    Attributes:
        steps: (layer, ratio) with ascending layers; ratio 1 leaves all tokens.
    """

    steps: tuple[tuple[int, int], ...]

    def __post_init__(self):
        """Check the steps.

        Raises:
            ValueError: There are none, layers do not ascend from 1 on, or a ratio is below 1 or above LARGEST_RATIO.
        """
        layers = [layer for layer, _ in self.steps]
        valid = bool(layers) and layers == sorted(set(layers)) and layers[0] >= 1
        if not valid or any(not 1 <= ratio <= LARGEST_RATIO for _, ratio in self.steps):
            raise ValueError(
                f"compression {str(self)!r}: layers must ascend from 1 on, and a ratio is from 1 to {LARGEST_RATIO}"
            )

    def __str__(self) -> str:
        return " ".join(f"{layer}/{ratio}" for layer, ratio in self.steps)

    @classmethod
    def at(cls, layer: int, ratio: int) -> Self:
        """Return the compression by `ratio` after `layer` alone."""
        return cls(((layer, ratio),))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a compression written as `2/2 4/2`.

        Raises:
            ValueError: The text is written otherwise, or the steps are not valid.
        """
        try:
            steps = [tuple(map(int, step.split("/"))) for step in text.split()]
            pairs = tuple((layer, ratio) for layer, ratio in steps)
        except ValueError:
            raise ValueError(
                f"compression {text!r}: write it as `2/4`, layer/ratio; several as `2/2 4/2`"
            ) from None
        return cls(pairs)

    def exits_after(self, exits: Sequence[int]) -> list[int]:
        """Return the exits that read fewer tokens."""
        return [layer for layer in exits if self.steps_before(layer)]

    def steps_before(self, last: int) -> list[tuple[int, int]]:
        """Return the steps that change something in a pass that ends at layer `last`."""
        return [(layer, ratio) for layer, ratio in self.steps if layer < last and ratio > 1]


@dataclass(frozen=True)
class Schedule:
    """The exits of a cascade, the number of candidates that survive each, and where passage tokens become fewer.

    Written `2:20 4:10 6`: the best 20 candidates survive layer 2, the best 10 of these layer 4, and layer 6 ranks them.
    In `0:50 3:10 6` the first stage is stage 0: only its best 50 candidates are read at all. In `2/2:20 4/2 6`, each
    two passage tokens become one after layer 2, where 20 candidates survive, and again after layer 4.

    Attributes:
        keep: (layer, survivors) of each stage but the last, layers ascending; layer 0 is the first stage.
        last: The layer that ranks the survivors.
        compression: Where passage tokens become fewer, before `last`; None: nowhere.
    """

    keep: tuple[tuple[int, int], ...]
    last: int
    compression: Compression | None = None

    def __str__(self) -> str:
        survivors, ratios = dict(self.keep), self._ratios
        stages = [
            f"{layer}{f'/{ratios[layer]}' if layer in ratios else ''}"
            f"{f':{survivors[layer]}' if layer in survivors else ''}"
            for layer in sorted({*survivors, *ratios})
        ]
        return " ".join([*stages, str(self.last)])

    @classmethod
    def single(cls, layer: int) -> Self:
        """Return the schedule in which the exit at `layer` ranks all candidates."""
        return cls((), layer)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a schedule written as `2:20 4:10 6`, `2/2:20 6` or `2/2 6`.

        Raises:
            ValueError: The text is written otherwise, its layers do not ascend, the last is 0, no candidate survives a
                stage, or passage tokens become fewer at the first stage.
        """
        *stages, last = text.split() or [""]
        matches = [_STAGE.fullmatch(stage) for stage in stages]
        if not all(matches) or not _NUMBER.fullmatch(last):
            raise ValueError(
                f"cascade {text!r}: write it as `2:20 4:10 6`, layer:survivors and the last layer; `2/2:20` also makes "
                "one of each two passage tokens"
            )
        parts = [match.groups() for match in matches if match is not None]
        layers = [*(int(layer) for layer, _, _ in parts), int(last)]
        keep = tuple((int(layer), int(survivors)) for layer, _, survivors in parts if survivors)
        steps = tuple((int(layer), int(ratio)) for layer, ratio, _ in parts if ratio)
        ascending = layers == sorted(set(layers)) and layers[-1] >= 1
        valid_steps = all(layer >= 1 and ratio >= 1 for layer, ratio in steps)
        if not ascending or not valid_steps or any(survivors < 1 for _, survivors in keep):
            raise ValueError(
                f"cascade {text!r}: layers must ascend, 0 (the first stage) first, to a last one from 1 on; at least "
                "one candidate must survive each stage; passages are compressed from layer 1 on, by at least 1"
            )
        return cls(keep, layers[-1], Compression(steps) if steps else None)

    @classmethod
    def requested(
        cls,
        layer: int | None,
        cascade: str | Schedule | None,
        deepest: int,
        compression: str | Compression | None = None,
    ) -> Schedule:
        """Return the schedule of a request for a layer, a cascade, or neither: the deepest layer.

        Raises:
            ValueError: Both are given, a text is malformed, or the compression does not fit (see `compress`).
        """
        if layer is not None and cascade is not None:
            raise ValueError(f"layer is {layer} and cascade {str(cascade)!r}: give one of the two")
        if cascade is None:
            schedule = cls.single(deepest if layer is None else layer)
        else:
            schedule = cascade if isinstance(cascade, Schedule) else cls.parse(cascade)
        return schedule if compression is None else schedule.compress(compression)

    def compress(self, compression: str | Compression) -> Schedule:
        """Return the schedule with a compression, which may be text.

        Raises:
            ValueError: The text is malformed, the schedule has a compression, or a step is not before its last layer.
        """
        if isinstance(compression, str):
            compression = Compression.parse(compression)
        if self.compression is not None:
            raise ValueError(
                f"compression {str(compression)!r}, but the cascade {str(self)!r} has one: give one of the two"
            )
        if (deepest := compression.steps[-1][0]) >= self.last:
            raise ValueError(
                f"compression {str(compression)!r}: layer {self.last} ranks, so no block reads the tokens after layer "
                f"{deepest}; give layers below {self.last}"
            )
        return replace(self, compression=compression)

    @property
    def _ratios(self) -> dict[int, int]:
        """Layer -> ratio of each step of the compression."""
        return {} if self.compression is None else dict(self.compression.steps)

    @property
    def keep_of_exits(self) -> dict[int, int]:
        """Layer -> survivors of each stage but the last and stage 0."""
        return {layer: survivors for layer, survivors in self.keep if layer > 0}

    @property
    def layers(self) -> list[int]:
        """The layers that score, ascending; stage 0 is not among them."""
        return [*self.keep_of_exits, self.last]

    @property
    def steps(self) -> tuple[CompressionStep, ...]:
        """The steps of the compression that change something; none if passages stay complete."""
        return () if self.compression is None else tuple(self.compression.steps_before(self.last))

    def exit_at(self, layer: int) -> str:
        """Return the name of the exit that scores at a layer: compressed behind a step; layer 0: the first stage."""
        return FIRST_STAGE if layer == 0 else read_name(layer, self.steps)

    @property
    def from_first_stage(self) -> int | None:
        """The number of candidates that the first stage lets through to block 1; None: all."""
        return dict(self.keep).get(0)

    def uses_first_stage(self, fused: bool) -> bool:
        """Return whether first-stage scores have a use, if scores are fused or not."""
        return fused or self.from_first_stage is not None


@dataclass(frozen=True)
class Ranking:
    """The ranking of the candidates of one query.

    Attributes:
        order: int64 [C], their indices from best to worst.
        layers: int64 [C], the last exit that scored each candidate, in the order in which they were given; 0: it was
            dropped by the first stage.
        scores: float32 [C], each candidate's score at that exit, in the same order; float64 if the scores are fused or
            the first stage drops candidates.
    """

    order: np.ndarray
    layers: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class RankingPlan:
    """How a schedule ranks the candidates of one query.

    Attributes:
        schedule: The exit or the cascade.
        read: int64 [R], the candidates that block 1 reads, ascending.
        dropped: int64 [C - R], those that the first stage drops, best first.
        first_stage: float64 [C], the scores of the first stage; None if they are not given.
        weights: The weights of fused scores at each stage; None: a stage ranks by its exit's own scores.
    """

    schedule: Schedule
    read: np.ndarray
    dropped: np.ndarray
    first_stage: np.ndarray | None
    weights: Weights | None

    @property
    def features(self) -> dict[str, np.ndarray]:
        """The features of fused scores that are known before the first block, by name: float64 [R]."""
        if self.weights is None or self.first_stage is None:
            return {}
        return {FIRST_STAGE: normalize_first_stage(self.first_stage)[self.read]}

    @property
    def layers(self) -> list[int]:
        """The exits that score, ascending."""
        return layers_to_score(self.schedule.layers, self.weights)

    def fuse(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores by which the last stage ranks: float32 [R], float64 if fused.

        Args:
            scores: float32 [layers, R], of `layers`.
        """
        if self.weights is None:
            return scores[-1]
        exits = zip(map(self.schedule.exit_at, self.layers), scores.astype(np.float64), strict=True)
        return fuse_scores(self.weights[self.schedule.last], self.features | dict(exits))

    def _check_finite(self, by_stage: np.ndarray) -> None:
        """Raise FloatingPointError if a score is infinite, or is NaN though its candidate was not dropped."""
        survivors = by_stage.shape[1]
        keep = iter(self.schedule.keep_of_exits.values())
        for of_stage in by_stage:
            if np.isfinite(of_stage).sum() != survivors:
                raise FloatingPointError(NOT_FINITE)
            survivors = min(survivors, next(keep, survivors))

    def rank(self, by_stage: np.ndarray) -> Ranking:
        """Rank all candidates: the later one was dropped, the better; of equal ones the first given comes first.

        Args:
            by_stage: [stages, R], the scores by which each stage from block 1 on ranks, NaN for candidates that were
                dropped before it; or [1, R], those of the last stage.

        Raises:
            FloatingPointError: A score is not finite.
        """
        self._check_finite(by_stage)
        last_stage = (~np.isnan(by_stage)).sum(axis=0) - 1  # [R]
        read_scores = by_stage[last_stage, np.arange(by_stage.shape[1])]  # [R]
        order = np.lexsort((-read_scores, -last_stage))
        read_layers = np.array(self.schedule.layers[-len(by_stage) :])[last_stage]
        if not len(self.dropped):
            return Ranking(order, read_layers, read_scores)
        assert self.first_stage is not None  # it dropped some
        layers, scores = np.zeros(len(self.first_stage), dtype=np.int64), self.first_stage.copy()
        layers[self.read], scores[self.read] = read_layers, read_scores
        return Ranking(np.concatenate([self.read[order], self.dropped]), layers, scores)


@dataclass
class Deadline:
    """A moment by which a pass over the layers should end, and how long its blocks take.

    Attributes:
        moment: When the pass should have ended, in seconds of `clock`.
        clock: Returns the time in seconds.
    """

    moment: float
    clock: Callable[[], float] = perf_counter

    def __post_init__(self):
        self.start()

    @classmethod
    def after(cls, milliseconds: float, clock: Callable[[], float] = perf_counter) -> Self:
        """Return the deadline that is a budget away from now.

        Raises:
            ValueError: The budget is not a finite number above 0.
        """
        is_number = isinstance(milliseconds, Real) and not isinstance(milliseconds, bool)
        if not is_number or not 0 < milliseconds < math.inf:
            raise ValueError(f"budget_ms is {milliseconds!r}; give a number of milliseconds above 0")
        return cls(clock() + milliseconds / 1000, clock)

    def start(self) -> None:
        """Begin to measure a pass, whose first block is about to run."""
        self._layer, self._reached = 0, self.clock()

    def allows(self, layer: int, deeper: int) -> bool:
        """Return whether the blocks from `layer`, which was just reached, to `deeper` fit.

        They are expected to take as long, each, as those since the layer before.
        """
        now = self.clock()
        seconds_per_block = (now - self._reached) / (layer - self._layer)
        self._layer, self._reached = layer, now
        return now + seconds_per_block * (deeper - layer) <= self.moment


NOT_FINITE = "a score is not finite; use precision float32, or train again with a lower lr"


def layers_to_score(stages: Sequence[int], weights: Weights | None) -> list[int]:
    """Return the exits that stages need, ascending: their own, and those that their fused scores combine."""
    combined = [] if weights is None else [name for stage in stages for name in weights[stage]]
    return sorted({*stages, *(layer_of(name) for name in combined if name != FIRST_STAGE)})


def plan_ranking(
    schedule: Schedule,
    candidates: int,
    first_stage: Sequence[float] | np.ndarray | None = None,
    fusion: Fusion | None = None,
    fused: bool = False,
) -> RankingPlan:
    """Plan the ranking of the candidates of one query.

    Args:
        schedule: The exit or the cascade.
        candidates: The number of candidates.
        first_stage: The scores of the first stage, one per candidate. Stages then use the weights with it, otherwise
            those without.
        fusion: The weights of fused scores.
        fused: Whether stages rank by fused scores.

    Raises:
        ValueError: Weights or first-stage scores that are needed are missing, scores are given that nothing uses, or
            they are not one finite number per candidate.
    """
    scores = None if first_stage is None else _check_first_stage(first_stage, candidates)
    if scores is None and schedule.from_first_stage is not None:
        raise ValueError(
            f"cascade {str(schedule)!r} starts with the first stage, whose scores are missing: give first_stage, one "
            "score per document, or leave out the stage 0"
        )
    if scores is not None and not schedule.uses_first_stage(fused):
        raise ValueError(
            "first_stage is given, but nothing uses it: rank by fused scores or by a cascade with a stage 0, or leave "
            "it out"
        )
    survivors = candidates if schedule.from_first_stage is None else schedule.from_first_stage
    # as in runs, where float32 scores are compared
    best_first = (
        np.arange(candidates) if scores is None else (-scores.astype(np.float32)).argsort(kind="stable")
    )
    read, dropped = np.sort(best_first[:survivors]), best_first[survivors:]
    weights = None
    if fused:
        weights = stage_weights(fusion, schedule, has_first_stage=scores is not None)
    return RankingPlan(schedule, read, dropped, scores, weights)


def _check_first_stage(scores: Sequence[float] | np.ndarray, candidates: int) -> np.ndarray:
    """Return first-stage scores as float64 [C]. Raise ValueError unless they are one finite number per candidate."""
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"first_stage is not a list of numbers; give one per document, {candidates}"
        ) from None
    if values.shape != (candidates,):
        raise ValueError(
            f"first_stage has the shape {list(values.shape)}, but there are {candidates} documents; give one score for "
            "each, in their order"
        )
    wrong = np.flatnonzero(~(np.abs(values) < FLOAT32_LIMIT))
    if len(wrong):
        raise ValueError(
            f"first_stage[{wrong[0]}] is {values[wrong[0]]}; give a number that is finite as a float32"
        )
    return values


def stage_weights(fusion: Fusion | None, schedule: Schedule, has_first_stage: bool) -> Weights:
    """Return the weights of fused scores at the stages of a schedule. Raise ValueError if there are none."""
    if fusion is None:
        raise ValueError(
            "this reranker has no weights of fused scores: fit them with `lwr fuse`, then set `reranker.fusion = "
            "read_fusion(file)` (lwr.formats.fusion), or put the file into the model's folder as fusion.json"
        )
    exits = {layer: schedule.exit_at(layer) for layer in schedule.layers}
    if missing := sorted(set(exits.values()) - set(fusion.exits)):
        raise ValueError(
            f"schedule {str(schedule)!r}: fused scores have no weights for {', '.join(missing)}, but for "
            f"{', '.join(fusion.exits)}; fit weights to scores of this compression (score.widths), or do not fuse"
            if schedule.steps
            else f"fused scores have no weights at layers {list(map(layer_of, missing))}, but at {fusion.layers}"
        )
    return {layer: fusion.weights(layer, has_first_stage, schedule.steps) for layer in exits}
