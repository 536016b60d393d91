"""The section of a training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lwr.config.section import (
    LARGEST_RATIO,
    Count,
    Groups,
    Layers,
    Name,
    Passages,
    Queries,
    Section,
    Share,
    Steps,
    Tokens,
    TrainingPrecision,
)

Recompute = Literal["nothing", "cheap", "blocks"]

Parallel = Literal["ddp", "fsdp"]

Teacher = Literal["deepest", "next", "anchors", "none"]

Loss = Literal["contrastive", "mse", "margin_mse", "ranknet", "listnet"]

NEED_SCORES: tuple[Loss, ...] = ("mse", "margin_mse")
"""Losses that are not defined for labels alone."""


class LoraConfig(Section):
    """A low-rank adapter on a frozen backbone."""

    rank: Count = Field(default=32, description="rank of the two low-rank matrices")
    alpha: float = Field(
        default=64, gt=0, description="scale of the adapter: its output is multiplied by alpha / rank"
    )
    dropout: Share = Field(default=0.0, description="dropout of the adapter's inputs during training")
    targets: str | list[str] = Field(default="all-linear", description="module names, or `all-linear`")
    base_precision: Literal["int8", "nf4"] | None = Field(
        default=None,
        description="precision in which the frozen linear layers of blocks are held during training, by bitsandbytes; "
        "null: `dtype` of the base model. The trained adapter runs on the base model as it is",
    )


class DistillationConfig(Section):
    """The teachers of an exit, beside the labels."""

    teacher: Teacher = Field(
        default="deepest",
        description="exit that an exit learns from; `next`: the next deeper exit; `anchors`: the next deeper layer "
        "that is divisible by `every`",
    )
    every: Layers | None = Field(default=None, description="distance between anchors")
    temperature: float = Field(
        default=1.0, gt=0, description="divisor of the teacher's and the student's scores; higher is softer"
    )
    external: bool | Name = Field(
        default=True,
        description="teacher scores that are used, by `loss: contrastive` in a term of its own, by any other loss as "
        "its targets: true: those in the groups, if they have any; false: none; a name of `teachers`: the scores of "
        "that teacher",
    )

    @model_validator(mode="after")
    def _anchors_need_a_distance(self) -> Self:
        if (self.teacher == "anchors") != (self.every is not None):
            raise ValueError("`every` belongs to `teacher: anchors`: give both or neither")
        return self


class RandomCompressionConfig(Section):
    """Token compression in training: each step draws a layer and a ratio, and reads its batches that way, too."""

    layers: Annotated[list[Layers], Field(min_length=1)] = Field(
        description="layers after which passage tokens may become fewer"
    )
    ratios: Annotated[list[Annotated[int, Field(ge=1, le=LARGEST_RATIO)]], Field(min_length=1)] = Field(
        description="numbers of neighbouring passage tokens that may become one; 1: none do in that step"
    )


class TrainingConfig(Section):
    """One training. An optimiser step sees `groups_per_batch` x `accumulation` x processes groups."""

    steps: Steps | None = Field(
        default=None, description="number of optimiser steps; null: derived from `epochs`"
    )
    epochs: float = Field(default=1.0, gt=0, description="number of times that each group is seen")
    groups_per_batch: Groups = Field(
        default=4, description="number of groups in one forward pass of one process"
    )
    accumulation: Count = Field(default=1, description="number of forward passes per optimiser step")
    group_size: Annotated[Passages, Field(ge=2)] = Field(
        default=8, description="number of passages per group: one positive, the rest negatives"
    )
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate of the backbone or adapter")
    head_lr: float = Field(default=1e-3, gt=0, description="peak learning rate of the heads")
    weight_decay: float = Field(
        default=0.01, ge=0, description="weight decay of AdamW, for the matrices of the backbone or adapter"
    )
    warmup: Share = Field(
        default=0.1,
        description="share of the steps during which the learning rate rises; then it falls linearly to 0",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="norm that gradients are clipped to")
    query_max_len: Tokens = Field(
        default=32,
        description="maximum length of the query; it may use what a short passage leaves (as upstream)",
    )
    passage_max_len: Tokens = Field(
        default=224,
        description="maximum length of the passage; a pair has at most `query_max_len` + `passage_max_len`",
    )
    precision: TrainingPrecision = Field(
        default="float32",
        description="data type of the computation; bfloat16: autocast, with trained weights and heads in float32; "
        "float16: the same with scaled gradients, for GPUs without bfloat16 (T4, V100)",
    )
    dropout: Share | None = Field(
        default=None,
        description="dropout of the backbone's hidden states and attention; null: the base model's own. An encoder "
        "with 0 trains a fifth faster on a CPU",
    )
    recompute: Recompute = Field(
        default="cheap",
        description="activations that the backward pass computes again instead of storing them; `cheap`: those between "
        "the matrix products of feed-forward layers; `blocks`: all but the states between blocks (least memory, a "
        "third more time)",
    )
    lora: LoraConfig | None = Field(default=None, description="low-rank adapter; null: full fine-tuning")
    parallel: Parallel = Field(
        default="ddp",
        description="what each of several processes holds; `ddp`: the complete model; `fsdp`: its share of weights, "
        "gradients and optimiser state, for full fine-tuning of models that one GPU cannot hold",
    )
    heads: Literal["per_exit", "shared"] = Field(
        default="per_exit", description="`per_exit`: one head for each exit; `shared`: one head for all"
    )
    head_every: Layers = Field(
        default=1,
        description="distance between layers with a head, from the start layer on; the last layer always has one",
    )
    exit_norm: Literal["shared", "own"] = Field(
        default="shared",
        description="norm of the states that heads read; `shared`: the backbone's final norm; `own`: each exit trains "
        "its copy of it (not for backbones without a final norm, such as BERT)",
    )
    head_init: Literal["yes_token", "checkpoint", "cross_encoder", "random"] = Field(
        default="random",
        description="initial weights of the heads; `yes_token`: the language-model head's row of `Yes`, as upstream "
        "(decoders); `checkpoint`: the heads of a layerwise checkpoint, or of a reranker that lwr trained; "
        "`cross_encoder`: the head of a sequence classifier with one label, or its linear approximation",
    )
    loss: Loss = Field(
        default="contrastive",
        description="loss of every exit, beside its teacher; `contrastive`: positive against negatives, as upstream; "
        "`mse`, `margin_mse`: distance to the teacher scores in the groups, which must have them; `ranknet`, "
        "`listnet`: order, or distribution, of these scores, or of the labels where there are none",
    )
    distillation: DistillationConfig = DistillationConfig()
    compression: RandomCompressionConfig | None = Field(
        default=None,
        description="token compression that the exits learn to rank with: each learns from its own scores of complete "
        "passages, beside the loss of these; null: none",
    )
    exit_weights: dict[int, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weight of a layer's loss; 1 for layers that are not named"
    )
    eval_steps: Steps | None = Field(
        default=None,
        description="number of steps between two evaluations of every exit on dev, by the first measure; null: never",
    )
    eval_queries: Queries = Field(default=50, description="number of dev queries of such an evaluation")
    keep: Literal["last", "best"] = Field(
        default="last",
        description="weights that are written; `best`: those of the evaluated step with the highest dev measure, by "
        "`keep_by`",
    )
    keep_by: Literal["mean", "deepest"] | int = Field(
        default="mean",
        description="dev measure that `best` compares: the mean of all exits, the deepest's, or one layer's",
    )
    checkpoint_steps: Steps | None = Field(
        default=500,
        description="number of steps between two checkpoints, from which an interrupted training continues; "
        "null: none; with `keep: best`, `eval_steps` takes its place",
    )
    log_steps: Steps = Field(default=10, description="number of steps between two lines of progress")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="services that also receive the training log"
    )

    @field_validator("parallel")
    @classmethod
    def _is_sharding_possible(cls, parallel: Parallel, info: ValidationInfo) -> Parallel:
        if parallel == "fsdp" and info.data.get("lora") is not None:
            raise ValueError("`fsdp` is for full fine-tuning: set `lora: null`, or use `parallel: ddp`")
        if parallel == "fsdp" and info.data.get("precision") == "float16":
            raise ValueError(
                "`fsdp` does not train in float16: use `precision: float32` or `bfloat16`, or `parallel: ddp`"
            )
        return parallel

    @field_validator("keep")
    @classmethod
    def _best_needs_evaluations(cls, keep: str, info: ValidationInfo) -> str:
        # `eval_steps` is absent where it has a problem of its own
        if keep == "best" and info.data.get("eval_steps", 1) is None:
            raise ValueError("`best` compares evaluated steps: set `eval_steps`")
        return keep

    @field_validator("distillation")
    @classmethod
    def _let_the_loss_have_scores(
        cls, distillation: DistillationConfig, info: ValidationInfo
    ) -> DistillationConfig:
        loss = info.data.get("loss")  # absent where it has a problem of its own
        if loss in NEED_SCORES and distillation.external is False:
            raise ValueError(
                f"`loss: {loss}` learns from the teacher scores: leave `external: true`, or name a teacher"
            )
        return distillation
