"""The config of a grid, its arms and cells, and the slice of it that each step depends on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from lwr.common.exits import Arm, Cell
from lwr.config.data.dataset import DatasetConfig
from lwr.config.evaluation import CascadeSearchConfig, CostConfig, FusionConfig, ScoringConfig
from lwr.config.model import BaseModelConfig
from lwr.config.section import Layers, Name, Section
from lwr.config.teachers.sections import Teacher
from lwr.config.training import TrainingConfig
from lwr.formats.beir import Split


def _override_of(section: type[Section]) -> Any:
    """Return the section with every key optional: what a base model or a variant may override.

    None is the default of a key that is not given; given keys keep the section's types and bounds.
    """
    fields: dict[str, Any] = {
        name: Annotated[field.annotation, *field.metadata, Field(None, description=field.description)]
        for name, field in section.model_fields.items()
    }
    return create_model(f"{section.__name__}Override", __base__=Section, **fields)


def _none_if_off(value: Any) -> Any:
    if value is None:
        raise ValueError("null should be a mapping, `key: value`, or `off`")
    return None if value is False else value


# YAML reads `off` as false.
OptionalFusion = Annotated[
    FusionConfig | None, BeforeValidator(_none_if_off, json_schema_input_type=FusionConfig | Literal[False])
]


class TrainingOverride(_override_of(TrainingConfig)):
    """Keys of `train` that differ."""


class GridBaseModel(BaseModelConfig):
    """A base model: a Hugging Face checkpoint."""

    start_layers: list[Layers] | None = Field(
        default=None,
        min_length=1,
        description="first layers with a head, instead of the grid's; null: the grid's",
    )
    variants: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="names of the variants that this model is trained under; null: all",
    )
    train: TrainingOverride = Field(
        default=TrainingOverride(), description="keys of `train` that differ for this model"
    )

    def base_settings(self) -> dict[str, Any]:
        """Return what `lwr base` and `lwr train` get as `--base`: the keys that identify the model."""
        return self.slice(include=set(BaseModelConfig.model_fields))


class GridConfig(Section):
    """A grid: every data set x base model x start layer x variant x seed is one cell."""

    results: str = Field(default="results", description="folder that all results are written to")
    datasets: dict[Name, DatasetConfig] = Field(min_length=1, description="data sets by name")
    base_models: dict[Name, GridBaseModel] = Field(min_length=1, description="base models by name")
    start_layers: list[Layers] = Field(
        min_length=1, description="first layers with a head; each is a training of its own"
    )
    variants: dict[Name, TrainingOverride] = Field(
        default={"default": TrainingOverride()},
        min_length=1,
        description="keys of `train` that differ, by name of the variant",
    )
    seeds: list[int] = Field(
        default=[1], min_length=1, description="random seeds for heads, data order and dropout"
    )
    train: TrainingConfig = TrainingConfig()
    teachers: dict[Name, Teacher] = Field(
        default={}, description="rerankers whose scores `distillation.external` or `mining.teacher` names"
    )
    score: ScoringConfig = ScoringConfig()
    fusion: OptionalFusion = Field(
        default=FusionConfig(),
        description="scores that combine the first stage's score with those of all exits read so far; off: each exit "
        "alone, and the choice of a cascade without confidence",
    )
    cascade: CascadeSearchConfig = CascadeSearchConfig()
    cost: CostConfig = CostConfig()
    measures: list[str] = Field(
        default=["nDCG@10", "RR@10", "AP@100", "R@100", "P@1"],
        min_length=1,
        description="measures by their ir_measures names; the first is the primary measure",
    )
    margin: float = Field(
        default=0.02,
        gt=0,
        description="loss of the primary measure up to which an exit counts as not worse than another",
    )

    def start_layers_of(self, base_model: str) -> list[int]:
        """Return the start layers that a base model is trained with."""
        return self.base_models[base_model].start_layers or self.start_layers

    def variants_of(self, base_model: str) -> list[str]:
        """Return the names of the variants that a base model is trained under."""
        return self.base_models[base_model].variants or list(self.variants)

    def tests_of(self, dataset: str) -> list[str]:
        """Return the data sets that a reranker trained on `dataset` ranks."""
        return self.datasets[dataset].tests or [dataset]

    def chosen_on(self, tested: str) -> str:
        """Return the data set on whose dev queries choices for `tested` are made: itself, if it has any."""
        return self.datasets[tested].chosen_on or tested

    def splits_ranked(self, tested: str) -> list[Split]:
        """Return the splits of a data set that are ranked: not dev where choices are made on another's."""
        return ["dev", "test"] if self.chosen_on(tested) == tested else ["test"]

    def measures_of(self, dataset: str) -> list[str]:
        """Return the grid's measures, and the recall of the first stage, which bounds that of a reranker."""
        return list(dict.fromkeys([*self.measures, f"R@{self.datasets[dataset].first_stage.depth}"]))

    def train_of(self, base_model: str, variant: str) -> TrainingConfig:
        """Return `train` with the overrides of the base model, then those of the variant.

        Raises:
            ValidationError: Each override is valid, but not their combination.
        """
        merged = self.train.model_dump(exclude_unset=True)
        for override in (self.base_models[base_model].train, self.variants[variant]):
            merged |= override.model_dump(exclude_unset=True)
        return TrainingConfig.model_validate(merged)

    def train_settings(self, base_model: str, variant: str) -> dict[str, Any]:
        """Return what `lwr train` gets as `--settings` for a base model under a variant."""
        return self.train_of(base_model, variant).slice()

    def teacher_of(self, base_model: str, variant: str) -> str | None:
        """Return the name of the teacher whose scores a base model learns from under a variant; None if it has none."""
        external = self.train_of(base_model, variant).distillation.external
        return external if isinstance(external, str) else None

    def taught(self) -> list[tuple[str, str]]:
        """Return (data set, teacher) for all scores that mining or a cell learns from."""
        mined = [(name, dataset.mining.teacher) for name, dataset in self.datasets.items() if dataset.train]
        trained = [(arm.trained_on, self.teacher_of(arm.base_model, arm.variant)) for arm in self.arms()]
        return [(dataset, name) for dataset, name in dict.fromkeys([*mined, *trained]) if name is not None]

    def dev_measure(self, base_model: str, variant: str) -> str:
        """Return the measure of the evaluations during a training.

        It is the grid's first, or always the same one if there are no evaluations: another first measure then trains
        nothing again.
        """
        evaluates = self.train_of(base_model, variant).eval_steps is not None
        return self.measures[0] if evaluates else "nDCG@10"

    def arms(self) -> list[Arm]:
        """Return the points of the grid without their seeds."""
        return [
            Arm(dataset, base_model, start_layer, variant)
            for dataset, config in self.datasets.items()
            if config.train
            for base_model in self.base_models
            for start_layer in self.start_layers_of(base_model)
            for variant in self.variants_of(base_model)
            if config.variants is None or variant in config.variants
        ]

    def cells(self) -> list[Cell]:
        """Return all points of the grid: one training each."""
        return [Cell(**vars(arm), seed=seed) for arm in self.arms() for seed in self.seeds]
