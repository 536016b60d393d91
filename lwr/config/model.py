"""The section of a base model, and the text around its queries and passages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lwr.config.section import Layers, Precision, Section

Pooling = Literal["last", "first", "mean"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]


class PromptTemplate(Section):
    """The text around query and passage for a decoder. Default: upstream's."""

    prefix: str = Field(
        default="",
        description="text after the bos token and before the query, which may have {instruction}; never truncated",
    )
    query: str = Field(default="A: {query}", description="text with the query; truncated to fit")
    between: str = Field(default="\n", description="text between query and passage; never truncated")
    passage: str = Field(default="B: {passage}", description="text with the passage; truncated to fit")
    after: list[str] = Field(
        default=["\n", "{instruction}"],
        description="texts after the passage, which may have {instruction}, each tokenised on its own; never truncated",
    )
    instruction: str = Field(
        default="Given a query A and a passage B, determine whether the passage contains an answer to the query "
        "by providing a prediction of either 'Yes' or 'No'.",
        description="text that replaces {instruction}; training groups and requests may have their own",
    )

    @property
    def has_instruction(self) -> bool:
        """Whether `prefix` or `after` has a place for an instruction."""
        return "{instruction}" in "".join([self.prefix, *self.after])

    def written(self, instruction: str) -> list[str]:
        """Return `prefix` and the pieces of `after` with an instruction in its place."""
        return [piece.replace("{instruction}", instruction) for piece in (self.prefix, *self.after)]


class BaseModelConfig(Section):
    """A base model: a Hugging Face checkpoint."""

    model: str = Field(description="folder, hub id, or `package:NAME/FOLDER` inside an installed package")
    revision: str | None = Field(default=None, description="commit hash of a hub id")
    num_layers: Layers | None = Field(
        default=None, description="number of blocks that are kept, from the first on; null: all"
    )
    pooling: Pooling | None = Field(
        default=None, description="token(s) that a head reads; null: `last` for decoders, `mean` for encoders"
    )
    template: PromptTemplate = PromptTemplate()
    dtype: Precision = Field(
        default="float32", description="data type of frozen weights; full fine-tuning needs float32"
    )
    attention: Attention = Field(default="sdpa", description="attention implementation of transformers")
