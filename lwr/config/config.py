"""The one typed model of a grid: what a config file may say, its defaults, and what each step gets of it.

No torch here: the workflow reads this file each time it starts. A step never sees the whole config, only
its slice (`Config.train_settings(cell)` and friends), which is also what the workflow watches for reruns.

What a section says of itself is checked here; whether a grid fits together, and fits the checkpoints and
folders that it names, in grid.py. config/README.md and config/schema.json are generated from this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # stands in a path of results/
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "share"})]
Layers, Steps, Tokens, Queries, Passages, Groups, Ranks, Jobs = (
    Annotated[int, Field(ge=1, json_schema_extra={"unit": unit})]
    for unit in ("layers", "steps", "tokens", "queries", "passages", "groups", "ranks", "jobs")
)
Split = Literal["train", "dev", "test"]
Recompute = Literal["nothing", "cheap", "blocks"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def slice(self, **which: Any) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON values: short enough to read in a command."""
        return self.model_dump(mode="json", exclude_defaults=True, **which)


# --- data sets -----------------------------------------------------------------------------------------


class PythonDocs(Section):
    """Docstring first sentence -> source code, built from what is installed: nothing is downloaded."""

    kind: Literal["python_docs"]
    packages: list[str] = Field(["stdlib"], description="`stdlib` or the import names of installed packages")
    dev_share: Share = Field(0.2, gt=0, description="of the modules (by hash) that are dev")
    test_share: Share = Field(0.3, gt=0, description="of the modules (by hash) that are test")

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> Self:
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share + test_share must stay below 1: the rest of the modules is train")
        return self


class BeirFolder(Section):
    """A folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv."""

    kind: Literal["beir"]
    path: str = Field(description="the folder; relative to where the workflow is started")
    dev_from_train: Share = Field(0.0, description="no qrels/dev.tsv? of the train queries (by hash), dev")
    test_from_train: Share = Field(0.0, description="the same for test")

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> Self:
        if self.dev_from_train + self.test_from_train >= 1:
            raise ValueError("dev_from_train + test_from_train must stay below 1: the rest is train")
        return self


class IrDatasets(Section):
    """A collection by its `ir_datasets` ids, which share one corpus (`pip install ir_datasets`)."""

    kind: Literal["ir_datasets"]
    splits: dict[Split, str] = Field(description="split: id, such as `beir/scifact/train`")
    dev_from_train: Share = Field(0.0, description="of the train queries (by hash) taken as dev")


class HubDataset(Section):
    """A Hugging Face data set in the hub's BEIR form (`pip install datasets`)."""

    kind: Literal["hub"]
    id: str = Field(description="of corpus and queries, such as `BeIR/scifact`")
    qrels: str = Field(description="of the judgements, such as `BeIR/scifact-qrels`")
    revision: str = Field(description="commit hash of `id`")
    qrels_revision: str = Field(description="commit hash of `qrels`")
    dev_from_train: Share = Field(0.0, description="of the train queries (by hash) taken as dev")


class FlagEmbedding(Section):
    """Training groups made elsewhere: FlagEmbedding's JSON lines. To train on; `tests` says what to rank."""

    kind: Literal["flag_embedding"]
    path: str = Field(description="a .jsonl file, or a folder of them")


class FirstStage(Section):
    """The retriever whose candidates are reranked: BM25, or runs made elsewhere."""

    runs: dict[Split, str] = Field(
        {}, description="split: TREC run to take instead of BM25's; cut to `depth`, keeps its tag"
    )
    depth: Passages = Field(100, description="candidates per query")
    k1: float = Field(0.9, ge=0, description="BM25: how slowly a repeated word stops to count")
    b: float = Field(0.4, ge=0, le=1, description="BM25: how much long passages are held back")


class Mining(Section):
    """Training groups: one positive and hard negatives from the first stage of the train queries."""

    samples: Groups = Field(1, description="per query, with other negatives each")
    teacher_run: str | None = Field(
        None,
        description="TREC run with a teacher's scores of the train candidates and positives; the scores go "
        "into the groups, and only what has one stands in a group",
    )
    margin: float | None = Field(
        None,
        description="drop as a likely false negative what scores above the positive's score less this, by "
        "the teacher's scores or else the first stage's; null: keep all",
    )
    negatives: Passages = Field(7, description="negatives per group, kept in the file")
    depth: tuple[Ranks, Ranks] = Field(
        (1, 50), description="ranks of the first stage to draw from, both included"
    )
    groups: Groups | None = Field(None, description="at most (a seeded sample of the queries); null: all")
    seed: int = Field(0, description="of the negatives and of the sample")

    @field_validator("depth")
    @classmethod
    def _from_high_to_low(cls, depth: tuple[int, int]) -> tuple[int, int]:
        if depth[0] > depth[1]:
            raise ValueError(f"[{depth[0]}, {depth[1]}] holds no rank; the first rank stands first")
        return depth


class Dataset(Section):
    """One collection: where it comes from, its first stage, and the training groups made of it."""

    source: Annotated[
        PythonDocs | BeirFolder | IrDatasets | HubDataset | FlagEmbedding, Field(discriminator="kind")
    ]
    train: bool = Field(True, description="false: no cell trains on it, others only rank its dev and test")
    tests: list[str] = Field(
        [],
        description="data sets whose dev and test are ranked by what trains on this one; none: this one. "
        "Looks at dev while training are at the first of them",
    )
    first_stage: FirstStage = FirstStage()
    mining: Mining = Mining()
    queries: dict[Literal["dev", "test"], Queries] = Field(
        {}, description="at most per split (a sample by hash); a split not named keeps all"
    )

    def collection(self) -> dict[str, Any]:
        """What `lwr collect` gets."""
        return self.slice(include={"source", "queries"})

    def retrieval(self, split: Split) -> dict[str, Any]:
        """What `lwr retrieve` gets for a split: of the runs made elsewhere, its own alone."""
        runs = {name: run for name, run in self.first_stage.runs.items() if name == split}
        return self.first_stage.model_copy(update={"runs": runs}).slice()


# --- training ------------------------------------------------------------------------------------------


class Lora(Section):
    """A low-rank adapter on a frozen backbone."""

    rank: Count = Field(32, description="of the two matrices that are learnt")
    alpha: float = Field(64, gt=0, description="the adapter counts alpha / rank")
    dropout: Share = Field(0.0, description="of the adapter's inputs, while training")
    targets: str | list[str] = Field("all-linear", description="module names, or `all-linear`")


class Distillation(Section):
    """Who teaches an exit, beside the labels."""

    teacher: Literal["deepest", "next", "anchors", "none"] = Field(
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


class Train(Section):
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
    precision: Literal["float32", "bfloat16"] = Field(
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
    lora: Lora | None = Field(None, description="null: full fine-tuning")
    heads: Literal["per_exit", "shared"] = Field("per_exit", description="one for each exit, or one for all")
    head_init: Literal["yes_token", "checkpoint", "random"] = Field(
        "random",
        description="`yes_token`: the language-model head's row of `Yes`, as upstream (decoders); "
        "`checkpoint`: the heads of a layerwise checkpoint",
    )
    distillation: Distillation = Distillation()
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


def _patch_of(section: type[Section]) -> type[Section]:
    """The section with every key optional: what a base model or a variant may override.

    None stands for a key that is not given; given ones keep the section's types and bounds.
    """
    fields = {
        name: Annotated[field.annotation, *field.metadata, Field(None, description=field.description)]
        for name, field in section.model_fields.items()
    }
    name, doc = f"{section.__name__}Override", f"Keys of `{section.__name__.lower()}` that differ."
    return create_model(name, __base__=Section, __doc__=doc, **fields)


TrainOverride = _patch_of(Train)


class Template(Section):
    """The decoder's text around query and passage. Default: upstream's."""

    prefix: str = Field("", description="after the bos token, before the query; never cut")
    query: str = Field("A: {query}", description="cut to fit")
    between: str = Field("\n", description="between the two; never cut")
    passage: str = Field("B: {passage}", description="cut to fit")
    after: list[str] = Field(["\n", "{instruction}"], description="pieces tokenised one by one; never cut")
    instruction: str = Field(
        "Given a query A and a passage B, determine whether the passage contains an answer to the query "
        "by providing a prediction of either 'Yes' or 'No'.",
        description="stands for {instruction}; training groups may bring their own",
    )


class Base(Section):
    """A base model: a Hugging Face checkpoint."""

    model: str = Field(description="folder, hub id, or `package:NAME/FOLDER` inside an installed package")
    revision: str | None = Field(None, description="commit hash of a hub id")
    num_layers: Layers | None = Field(None, description="cut to its first blocks; null: all")
    pooling: Literal["last", "first", "mean"] | None = Field(
        None, description="token(s) a head reads; null: `last` for decoders, `mean` for encoders"
    )
    template: Template = Template()
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of frozen weights; keep float32 for full fine-tuning"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="how transformers computes it"
    )
    start_layers: list[Layers] | None = Field(None, min_length=1, description="instead of the grid's")
    variants: list[Name] | None = Field(None, min_length=1, description="these of the grid's; null: all")
    train: TrainOverride = Field(TrainOverride(), description="keys of `train` that differ for this model")

    def identity(self) -> dict[str, Any]:
        """The part that makes another model of it (what `lwr base` and `lwr train` get)."""
        return self.slice(exclude={"start_layers", "variants", "train"})


class Score(Section):
    """Scoring all candidates at all exits."""

    tokens_per_batch: Tokens | None = Field(
        None, description="in one forward pass, padding included; null: 2048 on a CPU, 16384 on a GPU"
    )
    shards: Jobs = Field(1, description="jobs that share the queries of one split")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the backbone; heads: float32"
    )


class Cascade(Section):
    """The search for a cascade: which exits, and how many candidates survive them; on dev, for the least FLOPs."""

    epsilon: Share = Field(0.01, description="of the deepest exit's dev nDCG@10, what a cascade may lose")
    stages: Annotated[Layers, Field(ge=2, le=4)] = Field(3, description="exits of a cascade, at most")
    exits: Annotated[Layers, Field(ge=2)] = Field(8, description="exits that are tried, evenly spread")
    keep: list[Passages] | None = Field(
        None, min_length=1, description="numbers of survivors that are tried; null: a ladder from 1 to 1000"
    )


class Cost(Section):
    """Measuring the time and memory of each exit and of the cascade, all in one run."""

    queries: Queries | None = Field(20, description="of test, whose lists are ranked; null: nothing is timed")


# --- the grid ------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the grid: one training run."""

    dataset: str
    base_model: str
    start_layer: int
    variant: str
    seed: int


class Config(Section):
    """A grid: every data set x base model x start layer x variant x seed is one cell."""

    results: str = Field("results", description="folder that everything is written to")
    datasets: dict[Name, Dataset] = Field(min_length=1, description="name: a collection")
    base_models: dict[Name, Base] = Field(min_length=1, description="name: a checkpoint")
    start_layers: list[Layers] = Field(min_length=1, description="first layers with a head")
    variants: dict[Name, TrainOverride] = Field(
        {"default": TrainOverride()}, min_length=1, description="name: keys of `train` that differ"
    )
    seeds: list[int] = Field([1], min_length=1, description="of heads, data order and dropout")
    train: Train = Train()
    score: Score = Score()
    cascade: Cascade = Cascade()
    cost: Cost = Cost()
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

    def train_of(self, base_model: str, variant: str) -> Train:
        """`train`, then what the base model overrides, then the variant. Raises ValidationError."""
        patches = [self.base_models[base_model].train, self.variants[variant]]
        merged = self.train.model_dump(exclude_unset=True)
        for patch in patches:
            merged |= patch.model_dump(exclude_unset=True)
        return Train.model_validate(merged)

    def tests_of(self, dataset: str) -> list[str]:
        """The data sets that a reranker trained on `dataset` ranks."""
        return self.datasets[dataset].tests or [dataset]

    def cells(self) -> list[Cell]:
        return [
            Cell(dataset, base_model, start_layer, variant, seed)
            for dataset, about in self.datasets.items()
            if about.train
            for base_model in self.base_models
            for start_layer in self.start_layers_of(base_model)
            for variant in self.variants_of(base_model)
            for seed in self.seeds
        ]

    def arms(self) -> list[Cell]:
        """The first cell of each arm: of what differs in seeds alone."""
        return [cell for cell in self.cells() if cell.seed == self.seeds[0]]

    def train_settings(self, base_model: str, variant: str) -> dict[str, Any]:
        """What `lwr train` needs to know of this config for one base model under one variant."""
        return self.train_of(base_model, variant).slice()

    def measures_of(self, dataset: str) -> list[str]:
        """The grid's measures, and the recall that the first stage leaves to a reranker."""
        return list(dict.fromkeys([*self.measures, f"R@{self.datasets[dataset].first_stage.depth}"]))
