"""The schedule of a cascade: which exits score, and how many candidates survive each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Schedule:
    """The exits of a cascade and the number of candidates that survive each.

    Written `2:20 4:10 6`: the best 20 candidates survive layer 2, the best 10 of these layer 4, and layer 6 ranks them.
    In `0:50 3:10 6` the first stage is stage 0: only its best 50 candidates are read at all.

    Attributes:
        keep: (layer, survivors) of each stage but the last, layers ascending; layer 0 is the first stage.
        last: The layer that ranks the survivors.
    """

    keep: tuple[tuple[int, int], ...]
    last: int

    def __str__(self) -> str:
        return " ".join([*(f"{layer}:{survivors}" for layer, survivors in self.keep), str(self.last)])

    @classmethod
    def single(cls, layer: int) -> Self:
        """Return the schedule in which the exit at `layer` ranks all candidates."""
        return cls((), layer)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a schedule written as `2:20 4:10 6`.

        Raises:
            ValueError: The text is written otherwise, its layers do not ascend, the last is 0, or no candidate
                survives a stage.
        """
        try:
            *stages, last = text.split()
            keep = [tuple(map(int, stage.split(":"))) for stage in stages]
            schedule = cls(tuple((layer, survivors) for layer, survivors in keep), int(last))
        except ValueError:
            raise ValueError(
                f"cascade {text!r}: write it as `2:20 4:10 6`, layer:survivors and the last layer"
            ) from None
        layers = [*(layer for layer, _ in schedule.keep), schedule.last]
        ascending = layers == sorted(set(layers)) and layers[0] >= 0 and schedule.last >= 1
        if not ascending or any(survivors < 1 for _, survivors in schedule.keep):
            raise ValueError(
                f"cascade {text!r}: layers must ascend, 0 (the first stage) first, to a last one from 1 on; at least "
                "one candidate must survive each stage"
            )
        return schedule

    @property
    def layers(self) -> list[int]:
        """The layers that score, ascending; stage 0 is not among them."""
        return [*(layer for layer, _ in self.keep if layer > 0), self.last]

    @property
    def from_first_stage(self) -> int | None:
        """The number of candidates that the first stage lets through to block 1; None: all."""
        return dict(self.keep).get(0)
