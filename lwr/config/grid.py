"""The whole config of a grid, its cells, and what each step gets of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, create_model

from lwr.common.exits import Arm, Cell
from lwr.config.data import DatasetConfig
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.section import Layers, Name, Section
from lwr.config.training import TrainingConfig


def _patch_of(section: type[Section]) -> type[Section]:
    """The section with every key optional: what a base model or a variant may override.

    None stands for a key that is not given; given ones keep the section's types and bounds.
    """
    fields = {
        name: Annotated[field.annotation, *field.metadata, Field(None, description=field.description)]
        for name, field in section.model_fields.items()
    }
    name, doc = f"{section.__name__}Override", "Keys of `train` that differ."
    return create_model(name, __base__=Section, __doc__=doc, **fields)


TrainingOverride = _patch_of(TrainingConfig)


class GridBaseModel(BaseModelConfig):
    """A base model: a Hugging Face checkpoint."""

    start_layers: list[Layers] | None = Field(None, min_length=1, description="instead of the grid's")
    variants: list[Name] | None = Field(None, min_length=1, description="these of the grid's; null: all")
    train: TrainingOverride = Field(
        TrainingOverride(), description="keys of `train` that differ for this model"
    )

    def identity(self) -> dict[str, Any]:
        """Return what `lwr base` and `lwr train` get: the keys that make it another model."""
        return self.slice(include=set(BaseModelConfig.model_fields))


class GridConfig(Section):
    """A grid: every data set x base model x start layer x variant x seed is one cell."""

    results: str = Field("results", description="folder that everything is written to")
    datasets: dict[Name, DatasetConfig] = Field(min_length=1, description="name: a collection")
    base_models: dict[Name, GridBaseModel] = Field(min_length=1, description="name: a checkpoint")
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

    def arms(self) -> list[Arm]:
        """Return the points of the grid without their seeds."""
        return [
            Arm(dataset, base_model, start_layer, variant)
            for dataset, config in self.datasets.items()
            if config.train
            for base_model in self.base_models
            for start_layer in self.start_layers_of(base_model)
            for variant in self.variants_of(base_model)
        ]

    def cells(self) -> list[Cell]:
        """Return every point of the grid: one training each."""
        return [Cell(**vars(arm), seed=seed) for arm in self.arms() for seed in self.seeds]

    def train_settings(self, base_model: str, variant: str) -> dict[str, Any]:
        """What `lwr train` needs to know of this config for one base model under one variant."""
        return self.train_of(base_model, variant).slice()

    def measures_of(self, dataset: str) -> list[str]:
        """The grid's measures, and the recall that the first stage leaves to a reranker."""
        return list(dict.fromkeys([*self.measures, f"R@{self.datasets[dataset].first_stage.depth}"]))
