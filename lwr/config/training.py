"""The section of a training, and what a base model or a variant may override of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lwr.config.section import (
    Count,
    Groups,
    Layers,
    Passages,
    Precision,
    Queries,
    Section,
    Share,
    Steps,
    Tokens,
)

Recompute = Literal["nothing", "cheap", "blocks"]

Teacher = Literal["deepest", "next", "anchors", "none"]


class LoraConfig(Section):
    """A low-rank adapter on a frozen backbone."""

    rank: Count = Field(32, description="of the two matrices that are learnt")
    alpha: float = Field(64, gt=0, description="the adapter counts alpha / rank")
    dropout: Share = Field(0.0, description="of the adapter's inputs, while training")
    targets: str | list[str] = Field("all-linear", description="module names, or `all-linear`")


class DistillationConfig(Section):
    """Who teaches an exit, beside the labels."""

    teacher: Teacher = Field(
        "deepest",
        description="`next`: the next deeper exit; `anchors`: the next deeper layer divisible by `every`",
    )
    every: Layers | None = Field(None, description="distance of the anchors")
    temperature: float = Field(1.0, gt=0, description="divides the scores of both; higher is softer")
    external: bool = Field(True, description="learn from the teacher scores that groups bring, too")

    @model_validator(mode="after")
    def _anchors_need_a_distance(self) -> Self:
        if (self.teacher == "anchors") != (self.every is not None):
            raise ValueError("`every` belongs to `teacher: anchors`: give both or neither")
        return self


class TrainingConfig(Section):
    """One training run. A step of the optimiser sees `groups_per_batch` x `accumulation` x processes groups."""

    steps: Steps | None = Field(None, description="of the optimiser; null: `epochs` decides")
    epochs: float = Field(1.0, gt=0, description="how often each group is seen")
    groups_per_batch: Groups = Field(4, description="in one forward pass of one process")
    accumulation: Count = Field(1, description="forward passes per optimiser step")
    group_size: Annotated[Passages, Field(ge=2)] = Field(
        8, description="per group: one positive, the rest negatives"
    )
    lr: float = Field(1e-4, gt=0, description="peak learning rate of backbone or adapter")
    head_lr: float = Field(1e-3, gt=0, description="peak learning rate of the heads")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on the matrices of backbone or adapter")
    warmup: Share = Field(0.1, description="of the steps, with a rising rate; then linear to 0")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are cut to this length")
    query_max_len: Tokens = Field(32, description="upstream's key: long queries may lend from the passage")
    passage_max_len: Tokens = Field(224, description="a whole pair never exceeds the sum of the two")
    precision: Precision = Field(
        "float32", description="bfloat16: autocast; weights under an optimiser and heads stay float32"
    )
    dropout: Share | None = Field(
        None,
        description="of the backbone's hidden states and attention; null: as the base model has it. An encoder with "
        "0 trains a fifth faster on a CPU",
    )
    recompute: Recompute = Field(
        "cheap",
        description="on the way back, instead of keeping it: `cheap` what stands between the matrix products of "
        "feed-forward layers, `blocks` all but the states between blocks (least memory, a third more time); or "
        "`nothing`",
    )
    lora: LoraConfig | None = Field(None, description="null: full fine-tuning")
    heads: Literal["per_exit", "shared"] = Field("per_exit", description="one for each exit, or one for all")
    head_init: Literal["yes_token", "checkpoint", "random"] = Field(
        "random",
        description="`yes_token`: the language-model head's row of `Yes`, as upstream (decoders); "
        "`checkpoint`: the heads of a layerwise checkpoint",
    )
    distillation: DistillationConfig = DistillationConfig()
    exit_weights: dict[int, Annotated[float, Field(ge=0)]] = Field(
        {}, description="layer: weight of its loss; 1 where not named"
    )
    eval_steps: Steps | None = Field(
        None, description="dev nDCG@10 per exit every so many steps; null: never"
    )
    eval_queries: Queries = Field(50, description="dev queries of that look")
    keep: Literal["last", "best"] = Field(
        "last", description="`best`: the evaluated step with the highest dev nDCG@10, by `keep_by`"
    )
    keep_by: Literal["mean", "deepest"] | int = Field("mean", description="mean of the exits, or one exit")
    checkpoint_steps: Steps | None = Field(
        500,
        description="a killed training goes on from the last of these; with `keep: best`, of `eval_steps`",
    )
    log_steps: Steps = Field(10, description="between two lines of progress")
    report_to: list[Literal["tensorboard", "wandb"]] = Field([], description="who else gets the logs")

    @field_validator("keep")
    @classmethod
    def _best_needs_a_look(cls, keep: str, info: ValidationInfo) -> str:
        if keep == "best" and info.data.get("eval_steps", 1) is None:  # absent: it has a problem of its own
            raise ValueError("`best` compares evaluated steps: set `eval_steps`")
        return keep
