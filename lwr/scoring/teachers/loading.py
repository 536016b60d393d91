"""Load the checkpoint of a teacher, and apply it to tokenised texts in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lwr.common.errors import BadInput
from lwr.config.model import PromptTemplate
from lwr.config.problems import Problem
from lwr.config.teachers.sections import CheckpointTeacher, LayerwiseTeacher, PairTeacher
from lwr.formats.checkpoint import (
    DESCRIPTION_FILES,
    HubUnreachable,
    check_no_adapter,
    check_weights,
    fetch_checkpoint,
)
from lwr.model.batching import make_batches, out_of_memory_hint, pad
from lwr.model.loading import (
    check_missing,
    check_row_limit,
    count_embeddings,
    count_positions,
    load_tokenizer,
    load_weights,
    read_model_config,
)
from lwr.model.prompt import Prompt, Row
from lwr.model.reranker import CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH


@dataclass(frozen=True)
class LoadedTeacher:
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
            hint = (
                f"a batch of {shape} tokens; set the teacher's tokens_per_batch below {self.tokens_per_batch}"
            )
            with out_of_memory_hint(hint):
                features = {name: tensor.to(self.model.device) for name, tensor in features.items()}
                computed = compute_batch(features).float().cpu()
            results |= dict(zip(batch, computed, strict=True))
            if on_scored is not None:
                on_scored(len(batch))
        return torch.stack([results[i] for i in range(len(rows))])


def load_teacher(teacher: CheckpointTeacher, auto_class: Any, padding_side: str) -> LoadedTeacher:
    """Load the model of a teacher, in its precision.

    Args:
        teacher: The section of the config.
        auto_class: One of transformers' Auto classes.
        padding_side: `left` or `right`, where rows are padded.

    Raises:
        BadInput: The checkpoint is missing, damaged, or not of the teacher's kind.
    """
    folder = fetch_checkpoint(teacher.model, teacher.revision)
    for problem in teacher.problems_of_folder(folder):
        raise BadInput(f"teacher: {'.'.join(map(str, problem.loc))}: {problem.text}")
    config, tokenizer = _read_description(folder)
    check_weights(folder)
    tokenizer.padding_side = padding_side
    dtype = getattr(torch, teacher.precision)
    model, missing = load_weights(auto_class, folder, config, dtype, "sdpa")
    check_missing(folder, missing)
    has_gpu = torch.cuda.is_available()
    default_tokens = GPU_TOKENS_PER_BATCH if has_gpu else CPU_TOKENS_PER_BATCH
    model = model.eval().to("cuda" if has_gpu else "cpu")  # pyright: ignore[reportArgumentType] - it lacks self
    return LoadedTeacher(model, tokenizer, teacher.tokens_per_batch or default_tokens)


def check_teacher(teacher: CheckpointTeacher) -> list[Problem]:
    """Return what is wrong with the checkpoint of a teacher, without its weights, which are not downloaded.

    Raises:
        HubUnreachable: It is not on this machine, and there is no connection to the hub.
    """
    try:
        folder = fetch_checkpoint(teacher.model, teacher.revision, DESCRIPTION_FILES)
        problems = teacher.problems_of_folder(folder)
        if not problems and not isinstance(
            teacher, LayerwiseTeacher
        ):  # which may be upstream's, or an adapter
            _read_description(folder)
        return problems
    except HubUnreachable:
        raise
    except BadInput as error:
        return [Problem(("model",), str(error))]


def _read_description(folder: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Read config.json and tokenizer of a teacher. Raises BadInput if they cannot be read, or it has an adapter."""
    check_no_adapter(folder)
    return read_model_config(folder), load_tokenizer(folder)


def make_prompt(teacher: PairTeacher, loaded: LoadedTeacher, template: PromptTemplate | None) -> Prompt:
    """Return the way in which a teacher reads pairs; `template` is None for the tokenizer's format of pairs.

    Raises:
        BadInput: Pairs may be longer than the model has positions.
        ValueError: The fixed text leaves no token for query and passage.
    """
    prompt = Prompt(loaded.tokenizer, template, teacher.query_max_len, teacher.passage_max_len)
    check_row_limit(prompt, count_positions(loaded.model))
    return prompt
