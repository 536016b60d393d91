"""The keys of a checkpoint that computes scores, and those of a bi-encoder: a first stage or a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lwr.config.problems import Problem
from lwr.config.section import Precision, Section, Tokens
from lwr.formats.checkpoint import digest_files, find_local_folder


class ComputingSection(Section):
    """The keys that all sections share whose model computes scores or embeddings."""

    precision: Precision = Field(default="float32", description="data type of the computation")
    tokens_per_batch: Tokens | None = Field(
        default=None,
        description="number of tokens in one forward pass, padding included; null: 2048 on a CPU, 16384 on a GPU",
    )


class CheckpointSection(ComputingSection):
    """The keys that sections with a checkpoint of their own share."""

    model: str = Field(description="folder, hub id, or `package:NAME/FOLDER` inside an installed package")
    revision: str | None = Field(default=None, description="commit hash of a hub id")

    def problems(self) -> list[Problem]:
        """Return what is wrong with the checkpoint, as far as it is on this machine as a folder."""
        try:
            folder = find_local_folder(self.model)
            return [] if folder is None else self.problems_of_folder(folder)
        except ValueError as error:
            return [Problem(("model",), str(error))]

    def problems_of_folder(self, folder: Path) -> list[Problem]:
        """Return why the checkpoint in a folder cannot be used for this. Raises BadInput: it is damaged."""
        return []

    def digest(self) -> str | None:
        """Return a digest of the model's files if it is a folder; a hub id is identified by its revision."""
        folder = find_local_folder(self.model)
        return None if folder is None else digest_files(folder)


class BiEncoderSection(CheckpointSection):
    """The keys of a bi-encoder, which turns a text into one vector: its embedding, of length 1."""

    pooling: Literal["mean", "first", "last"] = Field(
        default="mean",
        description="token(s) that are a text's embedding: the mean of all, the first, or the last",
    )
    query_prefix: str = Field(default="", description="text before a query, such as `query: `")
    passage_prefix: str = Field(default="", description="text before a passage, such as `passage: `")
    max_len: Tokens = Field(default=512, description="maximum length of a text, with its special tokens")
