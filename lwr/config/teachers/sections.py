"""The sections of teachers: rerankers whose scores others learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lwr.common.errors import BadInput
from lwr.common.exits import Cell, describe_layers, layers_with_head
from lwr.common.json_lines import read_json
from lwr.config.data.bi_encoder import BiEncoderSection, CheckpointSection, ComputingSection
from lwr.config.model import PromptTemplate
from lwr.config.problems import Problem
from lwr.config.section import Layers, Name, Section, Tokens
from lwr.formats.checkpoint import exits_of_description, read_config

QWEN3_RERANKER_TEMPLATE = PromptTemplate(
    prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>:",
    query=" {query}",
    between="\n<Document>:",
    passage=" {passage}",
    after=["<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"],
)


class TeacherSection(Section):
    """The keys that all teachers share."""

    first_stage_weight: float = Field(
        default=0.0,
        ge=0,
        description="factor of the first stage's score, which is added to the teacher's; a positive that the first "
        "stage did not find counts as the query's lowest candidate; 0: the teacher's score alone",
    )


class PairTeacher(CheckpointSection, TeacherSection):
    """The keys that teachers share which read query and passage together."""

    query_max_len: Tokens = Field(
        default=64, description="maximum length of the query; it may use what a short passage leaves"
    )
    passage_max_len: Tokens = Field(
        default=448,
        description="maximum length of the passage; a pair has at most `query_max_len` + `passage_max_len`, with the "
        "text of a template",
    )


class CrossEncoderTeacher(PairTeacher):
    """A cross-encoder: a sequence classifier of transformers with one label, whose logit is the score."""

    kind: Literal["cross_encoder"]

    def problems_of_folder(self, folder: Path) -> list[Problem]:
        """Return a problem where the checkpoint is no classifier, or has more labels than one."""
        config = read_config(folder)
        names = config.get("architectures") or []
        if not any(str(name).endswith("ForSequenceClassification") for name in names):
            found = ", ".join(map(str, names)) or "a model without a name"
            text = (
                f"{folder} is {found}, not a ForSequenceClassification; use another kind of teacher, or model"
            )
            return [Problem(("model",), text)]
        labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
        if labels != 1:
            text = f"{folder} has {labels} labels, but a score is one number; give a model with one label"
            return [Problem(("model",), text)]
        return []


class YesNoTeacher(PairTeacher):
    """A decoder that is asked for yes or no, such as Qwen3-Reranker: the score is logit(yes) - logit(no)."""

    kind: Literal["yes_no"]
    template: PromptTemplate = Field(
        default=QWEN3_RERANKER_TEMPLATE,
        description="text around query and passage, up to where the answer begins; default: Qwen3-Reranker's",
    )
    yes_token: str = Field(default="yes", description="token of the vocabulary that means yes")
    no_token: str = Field(default="no", description="token of the vocabulary that means no")

    def problems_of_folder(self, folder: Path) -> list[Problem]:
        """Return the answers that are not one token of the vocabulary; without a tokenizer.json they are not known."""
        if not (folder / "tokenizer.json").is_file():
            return []
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises bare ones
            return [Problem(("model",), f"{folder}/tokenizer.json cannot be read ({error}); fetch it again")]
        answers = {"yes_token": self.yes_token, "no_token": self.no_token}
        return [
            Problem((key,), f"{folder} has no token {answer!r}; name the token of its vocabulary by `{key}`")
            for key, answer in answers.items()
            if tokenizer.token_to_id(answer) is None
        ]


class LayerwiseTeacher(CheckpointSection, TeacherSection):
    """A layerwise reranker: a folder that `lwr train` wrote, or an upstream layerwise checkpoint, at one layer."""

    kind: Literal["layerwise"]
    layer: Layers = Field(description="layer whose scores teach")
    fusion: str | None = Field(
        default=None,
        description="file that `lwr fuse` wrote, for fused scores at `layer`, without the first stage's score; null: "
        "the scores of the layer alone",
    )

    def problems_of_folder(self, folder: Path) -> list[Problem]:
        """Return a problem where the reranker has no head at the layer."""
        if (folder / "lwr.json").is_file():
            exits = exits_of_description(read_json(folder / "lwr.json", {"start_layer": int, "depth": int}))
        else:
            config = read_json(folder / "config.json", {"num_hidden_layers": int})
            if config.get("start_layer") is None:
                return [Problem(("model",), f"{folder} has no heads; give a folder that `lwr train` wrote")]
            exits = layers_with_head(config["start_layer"], config["num_hidden_layers"])
        if self.layer not in exits:
            text = f"{self.layer} is not an exit of {folder}; exits are {describe_layers(exits)}"
            return [Problem(("layer",), text)]
        return []


class BiEncoderTeacher(BiEncoderSection, TeacherSection):
    """A bi-encoder: the score is `scale` times the cosine of the embeddings of query and passage."""

    kind: Literal["bi_encoder"]
    scale: float = Field(
        default=20.0,
        gt=0,
        description="factor of the cosine, as in sentence-transformers: a softmax over unscaled cosines is nearly flat",
    )


class TeachingCell(Section):
    """The cell that teaches, of the data set that the taught cell is trained on."""

    base_model: Name = Field(description="name of its base model")
    start_layer: Layers = Field(description="its first layer with a head")
    variant: Name = Field(default="default", description="name of its variant")
    seed: int = Field(description="its seed")


class CellTeacher(ComputingSection, TeacherSection):
    """Another cell of the same grid at one layer: born-again training, or a large model that teaches a small one."""

    kind: Literal["cell"]
    cell: TeachingCell
    layer: Layers = Field(description="layer whose scores teach")
    fused: bool = Field(
        default=False,
        description="whether the scores are fused, by the weights that were fitted without the first stage's score",
    )

    def cell_of(self, dataset: str) -> Cell:
        """Return the cell that teaches on a data set."""
        return Cell(dataset, **self.cell.model_dump())

    def as_layerwise(self, model: Path, fusion: Path | None) -> LayerwiseTeacher:
        """Return the reranker that was trained for the cell: its folder, and the weights of its fused scores.

        Raises:
            BadInput: Scores are fused, but there are no weights, or the reverse.
        """
        if self.fused != (fusion is not None):
            raise BadInput(
                f"the teacher has fused: {self.fused}, and --fusion is {fusion}: give both or neither"
            )
        common = ComputingSection.model_fields.keys() | TeacherSection.model_fields.keys()
        shared = self.model_dump(include=set(common), exclude_unset=True)
        file = None if fusion is None else str(fusion)
        return LayerwiseTeacher(kind="layerwise", model=str(model), layer=self.layer, fusion=file, **shared)


StandaloneTeacher = CrossEncoderTeacher | YesNoTeacher | LayerwiseTeacher | BiEncoderTeacher
TEACHERS = (CrossEncoderTeacher, YesNoTeacher, LayerwiseTeacher, BiEncoderTeacher, CellTeacher)

Teacher = Annotated[StandaloneTeacher | CellTeacher, Field(discriminator="kind")]
