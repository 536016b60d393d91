"""The sections of scoring, of the search for cascades, and of costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lwr.config.section import Jobs, Layers, Passages, Precision, Queries, Section, Share, Tokens


class ScoringConfig(Section):
    """Scoring all candidates at all exits."""

    tokens_per_batch: Tokens | None = Field(
        None, description="in one forward pass, padding included; null: 2048 on a CPU, 16384 on a GPU"
    )
    shards: Jobs = Field(1, description="jobs that share the queries of one split")
    precision: Precision = Field("float32", description="of the backbone; heads: float32")


class CascadeSearchConfig(Section):
    """The search for a cascade: which exits, and how many candidates survive them; on dev, for the least FLOPs."""

    epsilon: Share = Field(0.01, description="of the deepest exit's dev nDCG@10, what a cascade may lose")
    stages: Annotated[Layers, Field(ge=2, le=4)] = Field(3, description="exits of a cascade, at most")
    exits: Annotated[Layers, Field(ge=2)] = Field(8, description="exits that are tried, evenly spread")
    keep: list[Passages] | None = Field(
        None, min_length=1, description="numbers of survivors that are tried; null: a ladder from 1 to 1000"
    )


class CostConfig(Section):
    """Measuring the time and memory of each exit and of the cascade, all in one run."""

    queries: Queries | None = Field(20, description="of test, whose lists are ranked; null: nothing is timed")
