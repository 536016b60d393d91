"""The section of a base model, and the text around its queries and passages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lwr.config.section import Layers, Precision, Section

Pooling = Literal["last", "first", "mean"]


class PromptTemplate(Section):
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


class BaseModelConfig(Section):
    """A base model: a Hugging Face checkpoint."""

    model: str = Field(description="folder, hub id, or `package:NAME/FOLDER` inside an installed package")
    revision: str | None = Field(None, description="commit hash of a hub id")
    num_layers: Layers | None = Field(None, description="cut to its first blocks; null: all")
    pooling: Pooling | None = Field(
        None, description="token(s) a head reads; null: `last` for decoders, `mean` for encoders"
    )
    template: PromptTemplate = PromptTemplate()
    dtype: Precision = Field("float32", description="of frozen weights; keep float32 for full fine-tuning")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="how transformers computes it"
    )
