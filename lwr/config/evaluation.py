"""The sections of scoring, of fused scores, of the search for a cascade, and of costs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lwr.config.section import (
    Count,
    Jobs,
    Layers,
    Passages,
    Queries,
    Ratio,
    ScoringPrecision,
    Section,
    Share,
    Tokens,
)

CHOOSING_MEASURES = ("nDCG", "RR", "AP", "P", "R", "Success")
"""Families of measures by which a cascade can be chosen, with a cutoff and the parameter `rel` alone."""


WindowPool = Literal["max", "mean"]


class Windows(Section):
    """Windows in which passages that do not fit into a row are read; each window has a score."""

    overlap: Annotated[int, Field(ge=0, json_schema_extra={"unit": "tokens"})] = Field(
        default=32, description="number of tokens that a window repeats of the one before it"
    )
    most: Count = Field(
        default=4, description="maximum number of windows of a passage; what follows them is not read"
    )
    pool: WindowPool = Field(
        default="max",
        description="the score of a passage at an exit: the largest of its windows', or their mean",
    )


class ScoringConfig(Section):
    """Scoring of all candidates at all exits."""

    tokens_per_batch: Tokens | None = Field(
        default=None,
        description="number of tokens in one forward pass, padding included; null: 2048 on a CPU, 16384 on a GPU",
    )
    shards: Jobs = Field(
        default=1, description="number of jobs that share the queries of a split, or of a teacher"
    )
    precision: ScoringPrecision = Field(
        default="float32",
        description="data type of the backbone; heads: float32; float16: for GPUs that lack bfloat16, such as T4 and "
        "V100; int8, on CPUs alone: that of the linear layers of the blocks, with float32 between them; refused if the "
        "deepest exit loses more than `margin` on dev",
    )
    widths: list[tuple[Layers, Ratio]] = Field(
        default=[],
        description="token compressions that are scored beside full width, each a pass of its own, and that the search "
        "for a cascade includes; [3, 2]: after layer 3, each two neighbouring passage tokens become one",
    )
    windows: Windows | None = Field(
        default=None,
        description="windows in which passages that do not fit into a row are scored; `{}`: with the defaults below; "
        "training reads the first window; null: passages are cut",
    )


class FusionConfig(Section):
    """Fused scores: their weights, fitted on dev, and the confidence of the choice of a cascade."""

    penalty: Annotated[float, Field(gt=0)] = Field(
        default=0.01,
        description="weight of the squared (L2) norm of the fitted weights; larger: smaller weights",
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        default=5,
        description="number of parts of the dev queries; a query's dev scores have weights fitted on the other parts",
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1, json_schema_extra={"unit": "share"})] = Field(
        default=0.9,
        description="confidence with which a chosen cascade must lose at most `cascade.epsilon`, by bootstrap over "
        "dev queries",
    )

    def fit_settings(self) -> dict[str, Any]:
        """Return what `lwr fuse` gets as `--settings`: the keys that the weights depend on."""
        return self.slice(exclude={"confidence"})


class CascadeSearchConfig(Section):
    """The search for the cascade with the least FLOPs: which exits score, and how many candidates survive; on dev."""

    epsilon: Share = Field(
        default=0.01,
        description="share of the deepest exit's primary measure, alone or fused, that a cascade may lose",
    )
    stages: Annotated[Layers, Field(ge=2, le=4)] = Field(
        default=3,
        description="maximum number of exits of a cascade; with fused scores the first stage may prune before them",
    )
    exits: Annotated[Layers, Field(ge=2)] = Field(
        default=8, description="maximum number of exits that are tried, evenly spaced"
    )
    keep: list[Passages] | None = Field(
        default=None,
        min_length=1,
        description="numbers of survivors that are tried; null: a series from 1 to 1000",
    )


class CostConfig(Section):
    """The measurement of time and memory of each exit and cascade, of all models that rank a data set in one job."""

    queries: Queries | None = Field(
        default=20, description="number of test queries whose candidates are ranked; null: nothing is timed"
    )
