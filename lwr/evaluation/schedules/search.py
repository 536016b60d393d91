"""Enumerate the schedules of cascades, and measure quality and cost of thousands of them.

The result is that of `lwr.evaluation.schedules.replay.replay` for each schedule. It is computed faster: schedules that
begin alike share their first stages, and a measure needs only the positions of the relevant candidates.

Letters of shapes: S schedules, Q queries, C candidates of the query that has most of them, R relevant ones of the query
that has most of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from lwr.common.exits import CompressionStep
from lwr.common.progress import show_progress
from lwr.config.evaluation import CascadeSearchConfig
from lwr.evaluation.flops import BackboneShape, count_flops
from lwr.evaluation.measures import RankMeasure
from lwr.evaluation.schedules.replay import Candidates
from lwr.formats.beir import Qrels
from lwr.model.cascade_schedule import Compression, Schedule

SURVIVORS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Numbers of survivors that are tried where the settings name none."""

Stage = tuple[str, int]
"""Name of an exit, or `first_stage`, and number of survivors."""


def enumerate_schedules(
    exits: Sequence[int],
    candidates: int,
    settings: CascadeSearchConfig,
    from_first_stage: bool = False,
    compressions: Sequence[Compression] = (),
) -> Iterator[Schedule]:
    """Yield every schedule that the settings allow, single exits among them; then these with each compression.

    Args:
        exits: Layers, ascending.
        candidates: Length of the longest list; at least one of these must be dropped by each stage.
        settings: The number of exits to try (evenly spread), the number of stages, and the numbers of survivors.
        from_first_stage: Whether the first stage may also prune, before the stages that the settings count.
        compressions: Those that were scored; a schedule has at most one, before its last exit.
    """
    complete = list(_enumerate_complete(exits, candidates, settings, from_first_stage))
    yield from complete
    for compression in compressions:
        yield from (
            schedule.compress(compression) for schedule in complete if compression.steps_before(schedule.last)
        )


def _enumerate_complete(
    exits: Sequence[int], candidates: int, settings: CascadeSearchConfig, from_first_stage: bool
) -> Iterator[Schedule]:
    """Yield the schedules that read complete passages."""
    tried = np.linspace(0, len(exits) - 1, min(len(exits), settings.exits)).round().astype(int)
    survivors = sorted((n for n in settings.keep or SURVIVORS if n < candidates), reverse=True)
    for before in ([], [0]) if from_first_stage else ([],):
        for stages in range(1, settings.stages + 1):
            for scoring in combinations([exits[i] for i in tried], stages):
                layers = [*before, *scoring]
                for kept in combinations(survivors, len(layers) - 1):
                    yield Schedule(tuple(zip(layers, kept, strict=False)), layers[-1])


@dataclass(frozen=True)
class MeasuredSchedules:
    """Schedules with their quality and cost on one split, as means over seeds."""

    schedules: list[Schedule]
    flops: np.ndarray  # float64 [S], share of the deepest exit's
    quality: np.ndarray  # float64 [S, Q]

    def table(self) -> pd.DataFrame:
        """Return a table with the columns schedule, flops and quality, which is the mean over queries."""
        names = [str(schedule) for schedule in self.schedules]
        return pd.DataFrame({"schedule": names, "flops": self.flops, "quality": self.quality.mean(axis=1)})


def measure_schedules(
    seeds: Sequence[Candidates],
    qrels: Qrels,
    shape: BackboneShape,
    schedules: Sequence[Schedule],
    measure: str = "nDCG@10",
    label: str | None = None,
) -> MeasuredSchedules:
    """Measure quality and cost of schedules.

    Args:
        seeds: The same queries and candidates, ranked by each seed's training.
        qrels: The judgements of these queries; each has a relevant passage.
        shape: The shape of the backbone.
        schedules: The schedules to measure.
        measure: Name of a measure as `RankMeasure` takes it.
        label: Printed before each line of progress; None: no lines.
    """
    flops = np.zeros(len(schedules))
    quality = np.zeros((len(schedules), len(seeds[0].queries)))
    searches = [SharedReplay(candidates, qrels, shape, measure) for candidates in seeds]
    order = sorted(range(len(schedules)), key=lambda index: stages_of(schedules[index]))
    for index in show_progress(order, len(order), label) if label else order:
        for search in searches:
            share, values = search.measure(schedules[index])
            flops[index] += share / len(seeds)
            quality[index] += values / len(seeds)
    return MeasuredSchedules(list(schedules), flops, quality)


def stages_of(schedule: Schedule) -> list[Stage]:
    """Return the stages of a schedule but the last. Schedules that begin with the same ones share what these cost."""
    return [(schedule.exit_at(layer), survivors) for layer, survivors in schedule.keep]


@dataclass(frozen=True)
class Replayed:
    """What the first stages of a schedule leave."""

    alive: np.ndarray  # bool [Q, C], the survivors
    positions: np.ndarray  # int [Q, R], final positions of the relevant candidates that were dropped
    spent: int  # FLOPs
    layer: int  # that has been reached


class SharedReplay:
    """Replay schedules on the candidates of one seed; stages that a schedule shares with the one before are kept."""

    def __init__(self, candidates: Candidates, qrels: Qrels, shape: BackboneShape, measure: str) -> None:
        self.measured = RankMeasure.of(measure, candidates.queries, candidates.docs, qrels)
        listed = candidates.docs != ""
        self.first_of_row = np.arange(len(listed))[:, None] * listed.shape[1]  # [Q, 1], flat index
        # Flat indexes of the candidates of each query, best first; padding last.
        self.best_first = {
            exit: ranks.argsort(axis=1, kind="stable") + self.first_of_row
            for exit, ranks in candidates.ranks.items()
        }
        # [Q, R]; the rank of padding is no column
        self.ranks = {
            exit: self._of_relevant(ranks).clip(max=listed.shape[1] - 1)
            for exit, ranks in candidates.ranks.items()
        }
        self.shape, self.candidates = shape, candidates
        self.flops: dict[tuple[CompressionStep, ...], np.ndarray] = {}  # of the compressions that were met
        self.full = int(self.flops_by_layer(Schedule.single(candidates.deepest))[candidates.deepest].sum())
        start = Replayed(listed, np.zeros_like(self.measured.columns), 0, 0)
        self.stages: list[Stage] = []
        self.states = [start]  # after each of `stages`, before them the start

    def flops_by_layer(self, schedule: Schedule) -> np.ndarray:
        """Return the FLOPs of each candidate up to each layer, int64 [1 + layers, Q * C].

        FLOPs are whole numbers. As such they are added without rounding, so that equal costs are equal.
        """
        if schedule.steps not in self.flops:
            pairs, tokens = self.candidates, self.candidates.tokens
            by_layer = count_flops(
                self.shape,
                tokens,
                pairs.passage_tokens,
                schedule.compression,
                pairs.windows,
                pairs.last_tokens,
            )  # [layers, Q, C]
            none = np.zeros((1, tokens.size), dtype=np.int64)
            self.flops[schedule.steps] = np.concatenate(
                [none, by_layer.reshape(-1, tokens.size).astype(np.int64)]
            )
        return self.flops[schedule.steps]

    def measure(self, schedule: Schedule) -> tuple[float, np.ndarray]:
        """Return the FLOPs as a share of the deepest exit's, and the measure, float64 [Q]."""
        stages, shared = stages_of(schedule), 0
        for stage, known in zip(stages, self.stages, strict=False):
            if stage != known:
                break
            shared += 1
        del self.stages[shared:], self.states[shared + 1 :]
        for stage, (layer, survivors) in zip(stages[shared:], schedule.keep[shared:], strict=True):
            self.stages.append(stage)
            self.states.append(self._stage(self.states[-1], schedule, layer, survivors))
        last = self._stage(self.states[-1], schedule, schedule.last, 0)
        return last.spent / self.full, self.measured.compute_from_relevant(last.positions)

    def _stage(self, state: Replayed, schedule: Schedule, layer: int, survivors: int) -> Replayed:
        """Score the survivors at `layer` and drop all but the best of them."""
        exit, flops = schedule.exit_at(layer), self.flops_by_layer(schedule)
        order, alive = self.best_first[exit], state.alive
        alive_by_rank = alive.ravel()[order]  # [Q, C]
        count = np.cumsum(alive_by_rank, axis=1, dtype=np.int32)
        # Those that survive are ranked before those that do not, so this is the final position of the dropped ones.
        positions = np.take_along_axis(count, self.ranks[exit], axis=1) - 1  # [Q, R]
        positions = np.where(self._of_relevant(alive), positions, state.positions)
        spent = int((flops[layer] - flops[state.layer])[alive.ravel()].sum())
        kept = np.zeros_like(alive)
        if survivors:
            kept.ravel()[order] = alive_by_rank & (count <= survivors)
        return Replayed(kept, positions, state.spent + spent, layer)

    def _of_relevant(self, values: np.ndarray) -> np.ndarray:
        """Return [Q, R] of [Q, C]."""
        return np.take_along_axis(values, self.measured.columns, axis=1)
