"""The whole config of a grid, its cells, and what each step gets of it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lwr.common.exits import Arm, Cell
from lwr.config.data import DatasetConfig
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.section import Layers, Name, Section
from lwr.config.training import TrainingConfig, TrainingOverride


class GridConfig(Section):
    """A grid: every data set x base model x start layer x variant x seed is one cell."""

    results: str = Field("results", description="folder that everything is written to")
    datasets: dict[Name, DatasetConfig] = Field(min_length=1, description="name: a collection")
    base_models: dict[Name, BaseModelConfig] = Field(min_length=1, description="name: a checkpoint")
    start_layers: list[Layers] = Field(min_length=1, description="first layers with a head")
    variants: dict[Name, TrainingOverride] = Field(
        {"default": TrainingOverride()}, min_length=1, description="name: keys of `train` that differ"
    )
    seeds: list[int] = Field([1], min_length=1, description="of heads, data order and dropout")
    train: TrainingConfig = TrainingConfig()
    score: ScoringConfig = ScoringConfig()
    cascade: CascadeSearchConfig = CascadeSearchConfig()
    cost: CostConfig = CostConfig()
    measures: list[str] = Field(
        ["nDCG@10", "RR@10", "AP@100", "R@100", "P@1"], min_length=1, description="as ir_measures names them"
    )
    margin: float = Field(
        0.02,
        gt=0,
        description="of the first measure: an exit that loses less than this is as good as another",
    )

    def start_layers_of(self, base_model: str) -> list[int]:
        return self.base_models[base_model].start_layers or self.start_layers

    def variants_of(self, base_model: str) -> list[str]:
        return self.base_models[base_model].variants or list(self.variants)

    def train_of(self, base_model: str, variant: str) -> TrainingConfig:
        """`train`, then what the base model overrides, then the variant. Raises ValidationError."""
        patches = [self.base_models[base_model].train, self.variants[variant]]
        merged = self.train.model_dump(exclude_unset=True)
        for patch in patches:
            merged |= patch.model_dump(exclude_unset=True)
        return TrainingConfig.model_validate(merged)

    def tests_of(self, dataset: str) -> list[str]:
        """The data sets that a reranker trained on `dataset` ranks."""
        return self.datasets[dataset].tests or [dataset]

    def cells(self) -> list[Cell]:
        """Return the cells of the grid: one training each."""
        return [
            Cell(dataset, base_model, start_layer, variant, seed)
            for dataset, about in self.datasets.items()
            if about.train
            for base_model in self.base_models
            for start_layer in self.start_layers_of(base_model)
            for variant in self.variants_of(base_model)
            for seed in self.seeds
        ]

    def arms(self) -> list[Arm]:
        """Return the arms of the grid, in the order of its cells."""
        return list(dict.fromkeys(cell.arm for cell in self.cells()))

    def train_settings(self, base_model: str, variant: str) -> dict[str, Any]:
        """What `lwr train` needs to know of this config for one base model under one variant."""
        return self.train_of(base_model, variant).slice()

    def measures_of(self, dataset: str) -> list[str]:
        """The grid's measures, and the recall that the first stage leaves to a reranker."""
        return list(dict.fromkeys([*self.measures, f"R@{self.datasets[dataset].first_stage.depth}"]))
