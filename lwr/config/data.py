"""The sections of a data set: its source, its first stage, its training groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from lwr.config.problems import Problem, missing_file
from lwr.config.section import Groups, Name, Passages, Queries, Ranks, Section, Share
from lwr.formats.beir import Split
from lwr.formats.training_groups import (
    SCORED_SUFFIXES,
    SUFFIXES,
    ScoredField,
    have_teacher_scores,
    list_group_files,
)

Dangling = Annotated[
    Literal["error", "drop"],
    Field(
        description="judgements whose passage is not in the corpus, or whose query is missing, as in ArguAna; drop: "
        "they are left out, and counted in the log"
    ),
]


class SourceSection(Section):
    """The base class of every source of a data set."""

    is_collection: ClassVar[bool] = True
    """Whether the source has a corpus whose passages can be ranked."""

    def problems(self) -> list[Problem]:
        """Return what is wrong with the files that the source names."""
        return []


class PythonDocsSource(SourceSection):
    """First sentence of a docstring -> source code, built from installed packages: nothing is downloaded."""

    kind: Literal["python_docs"]
    packages: list[str] = Field(
        default=["stdlib"], description="`stdlib` or import names of installed packages"
    )
    dev_share: Share = Field(default=0.2, gt=0, description="share of the modules (by hash) that become dev")
    test_share: Share = Field(
        default=0.3, gt=0, description="share of the modules (by hash) that become test"
    )

    @model_validator(mode="after")
    def _leave_train_queries(self) -> Self:
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share + test_share must be below 1: the other modules are train")
        return self


class BeirFolderSource(SourceSection):
    """A folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv."""

    kind: Literal["beir"]
    path: str = Field(description="folder; relative to where the workflow is started")
    dev_from_train: Share = Field(
        default=0.0,
        description="share of the train queries (by hash) that become dev, where qrels/dev.tsv is missing",
    )
    test_from_train: Share = Field(
        default=0.0,
        description="share of the train queries (by hash) that become test, where qrels/test.tsv is missing",
    )
    dangling: Dangling = "error"

    @model_validator(mode="after")
    def _leave_train_queries(self) -> Self:
        if self.dev_from_train + self.test_from_train >= 1:
            raise ValueError("dev_from_train + test_from_train must be below 1: the other queries are train")
        return self

    def problems(self) -> list[Problem]:
        """Return a problem where the path does not exist."""
        if Path(self.path).expanduser().is_dir():
            return []
        return [Problem(("path",), f"no such folder: {self.path}")]


class IrDatasetsSource(SourceSection):
    """A collection named by its `ir_datasets` ids, which share one corpus (`pip install ir_datasets`)."""

    kind: Literal["ir_datasets"]
    splits: dict[Split, str] = Field(description="id of each split, such as `beir/scifact/train`")
    dev_from_train: Share = Field(
        default=0.0, description="share of the train queries (by hash) that become dev"
    )
    dangling: Dangling = "drop"


class HubSource(SourceSection):
    """A Hugging Face data set in the hub's BEIR form (`pip install datasets`)."""

    kind: Literal["hub"]
    id: str = Field(description="hub id of corpus and queries, such as `BeIR/scifact`")
    qrels: str = Field(description="hub id of the judgements, such as `BeIR/scifact-qrels`")
    revision: str = Field(description="commit hash of `id`")
    qrels_revision: str = Field(description="commit hash of `qrels`")
    dev_from_train: Share = Field(
        default=0.0, description="share of the train queries (by hash) that become dev"
    )
    dangling: Dangling = "drop"


class GroupFilesSource(SourceSection):
    """The keys that sources of files with training groups share."""

    is_collection: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]]

    kind: str
    path: str

    def problems(self) -> list[Problem]:
        """Return a problem where the path does not exist."""
        if Path(self.path).expanduser().exists():
            return []
        return [Problem(("path",), f"no such file or folder: {self.path}")]

    def files(self) -> list[Path]:
        """Return the files with groups or rows."""
        return list_group_files(Path(self.path), self.suffixes)


class FlagEmbeddingSource(GroupFilesSource):
    """Training groups made elsewhere, as FlagEmbedding's JSON lines. They cannot be ranked: set `tests`."""

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    kind: Literal["flag_embedding"]
    path: str = Field(
        description="a file of JSON lines or of one JSON list, or a folder, of which all files that end in .jsonl, "
        ".json, .jsonl.gz or .json.gz are read; what else lies in it is named in the log"
    )


class ScoredSource(SourceSection):
    """The keys that sources of scored rows share."""

    is_collection: ClassVar[bool] = False

    columns: dict[ScoredField, str] = Field(
        default={},
        description="fields of a row that have another name -> that name, such as `passage: document`",
    )
    positive_from: float | None = Field(
        default=None,
        description="lowest score of a positive, where a row is one passage, such as the lowest grade that is "
        "relevant; null: a query's best passage is its positive. Queries without a positive or a negative are counted "
        "in the log",
    )


class ScoredFilesSource(GroupFilesSource, ScoredSource):
    """Files of rows with scores or grades: query, passage, score; or query, positive, negatives, scores."""

    suffixes: ClassVar[tuple[str, ...]] = SCORED_SUFFIXES

    kind: Literal["scored"]
    path: str = Field(
        description="a file of JSON lines, of one JSON list or of Parquet, or a folder, of which all files that end in "
        ".jsonl, .json, .jsonl.gz, .json.gz or .parquet are read; what else lies in it is named in the log"
    )


class ScoredHubSource(ScoredSource):
    """The same rows as a Hugging Face data set (`pip install datasets`)."""

    kind: Literal["scored_hub"]
    id: str = Field(description="hub id of the data set")
    revision: str = Field(description="commit hash of `id`")
    subset: str | None = Field(default=None, description="subset of the data set; null: its only one")
    split: str = Field(default="train", description="split that is read")

    def files(self) -> list[Path]:
        """Return no files: the rows are streamed from the hub."""
        return []


GroupSource = FlagEmbeddingSource | ScoredFilesSource | ScoredHubSource
GROUP_SOURCES = (FlagEmbeddingSource, ScoredFilesSource, ScoredHubSource)
"""Sources of training groups, which `lwr groups` reads."""

Source = PythonDocsSource | BeirFolderSource | IrDatasetsSource | HubSource | GroupSource


class FirstStageConfig(Section):
    """The retriever whose candidates are reranked: BM25 for English, or runs made elsewhere."""

    runs: dict[Split, str] = Field(
        default={},
        description="TREC run of a split, used instead of BM25; cut to `depth`, keeps its tag. BM25 is for English: it "
        "splits words at spaces and punctuation, and leaves out English stop words and word endings. Queries without "
        "a candidate are counted in the log; a split where no query has one is an error",
    )
    depth: Passages = Field(default=100, description="number of candidates per query")
    keep_same_id: bool = Field(
        default=False,
        description="false: a candidate with the id of its query is left out unless it is judged relevant, as in "
        "BEIR's evaluation, because queries of ArguAna or Quora are passages of the corpus; true: all are kept. "
        "Mining never makes it a negative",
    )
    k1: float = Field(
        default=0.9, ge=0, description="BM25: saturation of repeated words; higher saturates later"
    )
    b: float = Field(
        default=0.4, ge=0, le=1, description="BM25: how strongly a passage's length lowers its score"
    )

    def problems(self) -> list[Problem]:
        """Return the runs that do not exist."""
        return [problem for split, run in self.runs.items() for problem in missing_file(("runs", split), run)]


class MiningConfig(Section):
    """Training groups: one positive and hard negatives from the first stage of the train queries."""

    samples: Groups = Field(default=1, description="number of groups per query, each with other negatives")
    teacher_run: str | None = Field(
        default=None,
        description="TREC run with a teacher's scores of the train candidates and positives; the scores are "
        "written into the groups, and passages without a score are left out",
    )
    teacher: Name | None = Field(
        default=None,
        description="name of a teacher in `teachers`, whose scores are used like those of a `teacher_run`; not a cell, "
        "as cells are trained on the groups",
    )
    margin: float | None = Field(
        default=None,
        description="candidates are dropped as likely false negatives if they score higher than the positive's "
        "score minus this margin, by the teacher or else by the first stage; null: keep all",
    )
    negatives: Passages = Field(default=7, description="number of negatives per group in the file")
    depth: tuple[Ranks, Ranks] = Field(
        default=(1, 50), description="first and last rank of the first stage that negatives are drawn from"
    )
    groups: Groups | None = Field(
        default=None, description="maximum number of groups, from a seeded sample of the queries; null: all"
    )
    seed: int = Field(default=0, description="random seed of the negatives and of the sample")

    @field_validator("depth")
    @classmethod
    def _put_first_rank_first(cls, depth: tuple[int, int]) -> tuple[int, int]:
        if depth[0] > depth[1]:
            raise ValueError(f"[{depth[0]}, {depth[1]}] is an empty range; put the first rank first")
        return depth

    @model_validator(mode="after")
    def _have_one_teacher(self) -> Self:
        if self.teacher is not None and self.teacher_run is not None:
            raise ValueError("`teacher` and `teacher_run` both name scores; give one of them")
        return self

    def problems(self) -> list[Problem]:
        """Return a problem where the teacher's run does not exist."""
        return [] if self.teacher_run is None else missing_file(("teacher_run",), self.teacher_run)


class DatasetConfig(Section):
    """One collection: its source, its first stage, and the training groups made from it."""

    source: Annotated[Source, Field(discriminator="kind")]
    train: bool = Field(
        default=True,
        description="false: no cell trains on this data set; others may rank its dev and test queries",
    )
    tests: list[str] = Field(
        default=[],
        description="data sets whose dev and test queries are ranked by the rerankers trained on this one; empty: this "
        "one. Evaluation during training uses the first",
    )
    variants: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="names of the variants that are trained on this data set; null: all",
    )
    first_stage: FirstStageConfig = FirstStageConfig()
    mining: MiningConfig = MiningConfig()
    queries: dict[Literal["dev", "test"], Queries] = Field(
        default={},
        description="maximum number of queries of a split, from a sample by hash; a split without one keeps all",
    )

    def problems(self) -> list[Problem]:
        """Return what is wrong with the files that the data set names."""
        return [
            *(problem.below("source") for problem in self.source.problems()),
            *(problem.below("first_stage") for problem in self.first_stage.problems()),
            *(problem.below("mining") for problem in self.mining.problems()),
        ]

    def has_teacher_scores(self) -> bool:
        """Return whether the training groups will have the scores of a teacher; reads the first group of a file."""
        if isinstance(self.source, FlagEmbeddingSource):
            return have_teacher_scores(self.source.files())
        if isinstance(self.source, ScoredSource):
            return True
        return self.mining.teacher_run is not None or self.mining.teacher is not None

    def collect_settings(self) -> dict[str, Any]:
        """Return what `lwr collect` depends on."""
        return self.slice(include={"source", "queries"})

    def retrieve_settings(self, split: Split) -> dict[str, Any]:
        """Return what `lwr retrieve` depends on for a split: of the runs made elsewhere, only its own."""
        runs = {name: run for name, run in self.first_stage.runs.items() if name == split}
        return self.first_stage.model_copy(update={"runs": runs}).slice()
