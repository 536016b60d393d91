"""What a cascade does: at which exits how many candidates go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Schedule:
    """`2:20 4:10 6`: at layer 2 the best 20 survive, at layer 4 the best 10, which layer 6 ranks."""

    keep: tuple[tuple[int, int], ...]  # (layer, survivors), layers ascending
    last: int

    def __str__(self) -> str:
        return " ".join([*(f"{layer}:{survivors}" for layer, survivors in self.keep), str(self.last)])

    @classmethod
    def single(cls, layer: int) -> Self:
        """Return the schedule in which the exit at `layer` ranks all candidates."""
        return cls((), layer)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError where `text` is not written as above, or its layers don't ascend."""
        try:
            *keep, last = text.split()
            stages = [tuple(map(int, stage.split(":"))) for stage in keep]
            schedule = cls(tuple((layer, survivors) for layer, survivors in stages), int(last))
        except ValueError:
            raise ValueError(
                f"cascade {text!r}: write it as `2:20 4:10 6`, layer:survivors and the last layer"
            ) from None
        layers = schedule.layers
        if (
            layers != sorted(set(layers))
            or layers[0] < 1
            or any(survivors < 1 for _, survivors in schedule.keep)
        ):
            raise ValueError(
                f"cascade {text!r}: layers must ascend from 1 on, and at least one candidate survive"
            )
        return schedule

    @property
    def layers(self) -> list[int]:
        return [*(layer for layer, _ in self.keep), self.last]
