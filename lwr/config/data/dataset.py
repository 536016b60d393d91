"""The sections of a data set, and of the training groups that are mined from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lwr.config.data.first_stage import Bm25FirstStage, EmbeddingFirstStage, FirstStage
from lwr.config.data.sources import FlagEmbeddingSource, ScoredSource, Source
from lwr.config.problems import Problem, missing_file
from lwr.config.section import Groups, Name, Passages, Queries, Ranks, Section
from lwr.formats.beir import Split
from lwr.formats.training_groups import have_teacher_scores


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
    chosen_on: Name | None = Field(
        default=None,
        description="for a data set that has no dev queries: the data set on whose dev queries the weights of fused "
        "scores and the cascades are chosen; what ranks this data set must rank that one, too; null: its own",
    )
    variants: list[Name] | None = Field(
        default=None,
        min_length=1,
        description="names of the variants that are trained on this data set; null: all",
    )
    first_stage: FirstStage = Field(
        default=Bm25FirstStage(),
        description="retriever whose candidates are reranked: BM25, which is the default, a bi-encoder, or both",
    )
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

    def needs_embeddings(self, split: Split) -> bool:
        """Return whether the first stage of a split searches embeddings: not where a run is given for it."""
        return isinstance(self.first_stage, EmbeddingFirstStage) and split not in self.first_stage.runs

    def retrieve_settings(self, split: Split) -> dict[str, Any]:
        """Return what `lwr retrieve` depends on for a split: of the runs made elsewhere, only its own."""
        runs = {name: run for name, run in self.first_stage.runs.items() if name == split}
        return self.first_stage.model_copy(update={"runs": runs}).slice()
