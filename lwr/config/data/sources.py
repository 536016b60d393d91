"""The sections of the sources of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lwr.config.problems import Problem
from lwr.config.section import Section, Share
from lwr.formats.beir import Split
from lwr.formats.training_groups import (
    SCORED_SUFFIXES,
    SUFFIXES,
    ScoredField,
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
    """A collection named by its `ir_datasets` ids, which share one corpus (`pip install 'lwr[ir-datasets]'`)."""

    kind: Literal["ir_datasets"]
    splits: dict[Split, str] = Field(description="id of each split, such as `beir/scifact/train`")
    dev_from_train: Share = Field(
        default=0.0, description="share of the train queries (by hash) that become dev"
    )
    dangling: Dangling = "drop"


class HubSource(SourceSection):
    """A Hugging Face data set in the hub's BEIR form (`pip install 'lwr[hub]'`)."""

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
    """The same rows as a Hugging Face data set (`pip install 'lwr[hub]'`)."""

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
