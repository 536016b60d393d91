"""The sections of a data set: its source, its first stage, its training groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lwr.config.section import Groups, Passages, Queries, Ranks, Section, Share
from lwr.formats.beir import Split


class PythonDocsSource(Section):
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


class BeirFolderSource(Section):
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


class IrDatasetsSource(Section):
    """A collection by its `ir_datasets` ids, which share one corpus (`pip install ir_datasets`)."""

    kind: Literal["ir_datasets"]
    splits: dict[Split, str] = Field(description="split: id, such as `beir/scifact/train`")
    dev_from_train: Share = Field(0.0, description="of the train queries (by hash) taken as dev")


class HubSource(Section):
    """A Hugging Face data set in the hub's BEIR form (`pip install datasets`)."""

    kind: Literal["hub"]
    id: str = Field(description="of corpus and queries, such as `BeIR/scifact`")
    qrels: str = Field(description="of the judgements, such as `BeIR/scifact-qrels`")
    revision: str = Field(description="commit hash of `id`")
    qrels_revision: str = Field(description="commit hash of `qrels`")
    dev_from_train: Share = Field(0.0, description="of the train queries (by hash) taken as dev")


class FlagEmbeddingSource(Section):
    """Training groups made elsewhere: FlagEmbedding's JSON lines. To train on; `tests` says what to rank."""

    kind: Literal["flag_embedding"]
    path: str = Field(description="a .jsonl file, or a folder of them")


Source = PythonDocsSource | BeirFolderSource | IrDatasetsSource | HubSource | FlagEmbeddingSource


class FirstStageConfig(Section):
    """The retriever whose candidates are reranked: BM25, or runs made elsewhere."""

    runs: dict[Split, str] = Field(
        {}, description="split: TREC run to take instead of BM25's; cut to `depth`, keeps its tag"
    )
    depth: Passages = Field(100, description="candidates per query")
    k1: float = Field(0.9, ge=0, description="BM25: how slowly a repeated word stops to count")
    b: float = Field(0.4, ge=0, le=1, description="BM25: how much long passages are held back")


class MiningConfig(Section):
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


class DatasetConfig(Section):
    """One collection: where it comes from, its first stage, and the training groups made of it."""

    source: Annotated[
        PythonDocsSource | BeirFolderSource | IrDatasetsSource | HubSource | FlagEmbeddingSource,
        Field(discriminator="kind"),
    ]
    train: bool = Field(True, description="false: no cell trains on it, others only rank its dev and test")
    tests: list[str] = Field(
        [],
        description="data sets whose dev and test are ranked by what trains on this one; none: this one. "
        "Looks at dev while training are at the first of them",
    )
    first_stage: FirstStageConfig = FirstStageConfig()
    mining: MiningConfig = MiningConfig()
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
