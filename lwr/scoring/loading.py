"""Load a checkpoint that computes scores or embeddings, and apply it to tokenised texts in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.errors import BadInput
from lwr.config.data.bi_encoder import CheckpointSection
from lwr.formats.checkpoint import check_no_adapter, check_weights, fetch_checkpoint
from lwr.model.batching import make_batches, out_of_memory_hint, pad
from lwr.model.linear.half import warn_if_slow
from lwr.model.loading import (
    check_missing,
    count_embeddings,
    load_tokenizer,
    load_weights,
    read_model_config,
)
from lwr.model.prompt import Row
from lwr.model.reranker import CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model of transformers in evaluation mode, on a GPU if there is one, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens_per_batch: int

    @torch.inference_mode()
    def compute(
        self,
        rows: Sequence[Row],
        compute_batch: Callable[[dict[str, Tensor]], Tensor],
        on_scored: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Apply `compute_batch` to padded batches of rows.

        Args:
            rows: One tokenised text, or pair of texts, each.
            compute_batch: Maps features, int64 [B, tokens] on the model's device, to [B, …].
            on_scored: Called after each batch with its number of rows.

        Returns:
            float32 [rows, …] on the CPU, in the order of the rows.

        Raises:
            MemoryError: A batch does not fit into memory.
        """
        results: dict[int, Tensor] = {}
        for batch in make_batches(rows, self.tokens_per_batch):
            features = pad([rows[i] for i in batch], self.tokenizer, count_embeddings(self.model))
            shape = " x ".join(map(str, features["input_ids"].shape))
            hint = f"a batch of {shape} tokens; set its tokens_per_batch below {self.tokens_per_batch}"
            with out_of_memory_hint(hint):
                features = {name: tensor.to(self.model.device) for name, tensor in features.items()}
                computed = compute_batch(features).float().cpu()
            results |= dict(zip(batch, computed, strict=True))
            if on_scored is not None:
                on_scored(len(batch))
        return torch.stack([results[i] for i in range(len(rows))])


def load_checkpoint(section: CheckpointSection, auto_class: Any, padding_side: str) -> LoadedCheckpoint:
    """Load the model of a section of the config, in its precision.

    Args:
        section: The section.
        auto_class: One of transformers' Auto classes.
        padding_side: `left` or `right`, where rows are padded.

    Raises:
        BadInput: The checkpoint is missing, damaged, or cannot be used for this.
    """
    folder = fetch_checkpoint(section.model, section.revision)
    for problem in section.problems_of_folder(folder):
        raise BadInput(f"{'.'.join(map(str, problem.loc))}: {problem.text}")
    config, tokenizer = read_description(folder)
    check_weights(folder)
    tokenizer.padding_side = padding_side
    dtype = getattr(torch, section.precision)
    model, missing = load_weights(auto_class, folder, config, dtype, "sdpa")
    check_missing(folder, missing)
    has_gpu = torch.cuda.is_available()
    default_tokens = GPU_TOKENS_PER_BATCH if has_gpu else CPU_TOKENS_PER_BATCH
    model = model.eval().to("cuda" if has_gpu else "cpu")  # pyright: ignore[reportArgumentType] - it lacks self
    if dtype != torch.float32:
        warn_if_slow(model.device, dtype)
    return LoadedCheckpoint(model, tokenizer, section.tokens_per_batch or default_tokens)


def read_description(folder: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Read config.json and tokenizer of a checkpoint. Raises BadInput if they cannot be read, or it has an adapter."""
    check_no_adapter(folder)
    return read_model_config(folder), load_tokenizer(folder)
