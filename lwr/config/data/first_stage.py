"""The sections of first stages: BM25, a bi-encoder, and both together; any split may have a run made elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lwr.config.data.bi_encoder import BiEncoderSection
from lwr.config.problems import Problem, missing_file, suggest
from lwr.config.section import Passages, Section
from lwr.formats.beir import Split

# fmt: off
StemmedLanguage = Literal[
    "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto", "estonian",
    "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian",
    "nepali", "norwegian", "persian", "polish", "portuguese", "romanian", "russian", "serbian", "sesotho", "spanish",
    "swedish", "tamil", "turkish", "yiddish",
]
# fmt: on
"""The languages for which PyStemmer has a Snowball stemmer."""
NgramLanguage = Literal["chinese", "japanese", "korean", "thai"]
"""The languages that are searched by pairs of characters."""


def _refuse_unknown_language(value: Any) -> Any:
    languages = sorted([*get_args(StemmedLanguage), *get_args(NgramLanguage)])
    if value == "auto":
        raise ValueError(
            "auto is not a language: it cannot be told from a short query, and queries and passages must be split "
            f"alike; name the language of the passages, one of {', '.join(languages)}"
        )
    if isinstance(value, str) and value not in languages:
        raise ValueError(
            f"BM25 has no language {value}{suggest(value, languages)}; for another language, set kind: dense, or give "
            "runs"
        )
    return value


Language = Annotated[StemmedLanguage | NgramLanguage, BeforeValidator(_refuse_unknown_language)]


class FirstStageSection(Section):
    """The keys that all first stages share."""

    runs: dict[Split, str] = Field(
        default={},
        description="TREC run of a split, used instead of the retriever; cut to `depth`, keeps its tag",
    )
    depth: Passages = Field(default=100, description="number of candidates per query")
    keep_same_id: bool = Field(
        default=False,
        description="false: a candidate with the id of its query is left out unless it is judged relevant, as in "
        "BEIR's evaluation, because queries of ArguAna or Quora are passages of the corpus; true: all are kept. "
        "Mining never makes it a negative",
    )

    def problems(self) -> list[Problem]:
        """Return the runs that do not exist."""
        return [problem for split, run in self.runs.items() for problem in missing_file(("runs", split), run)]


class Bm25Section(Section):
    """The keys of BM25."""

    language: Language = Field(
        default="english",
        description="BM25: language of queries and passages. Chinese, Japanese, Korean and Thai are searched by pairs "
        "of characters, and by the words of other scripts in between. The other languages are searched by words, which "
        "are split at spaces and punctuation, and reduced to their stems by Snowball's stemmers. Stop words are left "
        "out for Danish, Dutch, English, French, German, Italian, Norwegian, Portuguese, Russian, Spanish, Swedish and "
        "Turkish; for the others there is no list",
    )
    k1: float = Field(
        default=0.9, ge=0, description="BM25: saturation of repeated words; higher saturates later"
    )
    b: float = Field(
        default=0.4, ge=0, le=1, description="BM25: how strongly a passage's length lowers its score"
    )


class Bm25FirstStage(FirstStageSection, Bm25Section):
    """BM25: candidates share a word with the query. Queries without a candidate are counted in the log."""

    kind: Literal["bm25"] = "bm25"


class EmbeddingFirstStage(FirstStageSection, BiEncoderSection):
    """The keys of first stages that need the embeddings of a collection, which `lwr embed` makes."""

    def problems(self) -> list[Problem]:
        """Return the runs that do not exist, and what is wrong with the checkpoint."""
        return [*FirstStageSection.problems(self), *BiEncoderSection.problems(self)]

    def embed_settings(self) -> dict[str, Any]:
        """Return what `lwr embed` depends on."""
        return {"kind": "dense", **self.slice(include=set(BiEncoderSection.model_fields))}


class DenseFirstStage(EmbeddingFirstStage):
    """A bi-encoder: the passages whose embeddings have the highest cosine with the query's, by exact search."""

    kind: Literal["dense"]


class HybridFirstStage(EmbeddingFirstStage, Bm25Section):
    """BM25 and a bi-encoder, combined by reciprocal rank fusion.

    A candidate's score is the sum of 1 / (60 + its rank) over the lists of `depth` passages that hold it (Cormack et
    al. 2009).
    """

    kind: Literal["hybrid"]


def _kind_of(section: Any) -> str:
    """Return the kind of a first stage, `bm25` where none is given."""
    return str(section.get("kind", "bm25") if isinstance(section, dict) else getattr(section, "kind", "bm25"))


FIRST_STAGES = (Bm25FirstStage, DenseFirstStage, HybridFirstStage)
FirstStage = Annotated[
    Annotated[Bm25FirstStage, Tag("bm25")]
    | Annotated[DenseFirstStage, Tag("dense")]
    | Annotated[HybridFirstStage, Tag("hybrid")],
    Discriminator(_kind_of),
]
