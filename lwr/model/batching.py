"""Group rows of unequal length into padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lwr.model.batch_layout import MIN_SAVED_SHARE
from lwr.model.prompt import Row


def pad(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    num_embeddings: int | None = None,
    mark_passages: bool = False,
) -> dict[str, Tensor]:
    """Pad rows to the length of the longest, on the tokenizer's side.

    A layout may pack them again. Padded features are what upstream's `encode` takes.

    Args:
        rows: One row or more.
        tokenizer: The tokenizer.
        num_embeddings: As for `choose_pad_id`.
        mark_passages: Whether to add `passage_mask`, which token compression needs.

    Returns:
        int64 [rows, longest] `input_ids`, `attention_mask` and, if the rows have types, `token_type_ids`; and
        `passage_mask`, 1 where a token is one of the passage.
    """
    longest = max(map(len, rows))
    pads_left = tokenizer.padding_side == "left"

    def fill(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (longest - len(values))
        return padding + values if pads_left else values + padding

    pad_id = choose_pad_id(tokenizer, num_embeddings)
    features = {
        "input_ids": torch.tensor([fill(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row), 0) for row in rows]),
    }
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    if types:
        features["token_type_ids"] = torch.tensor([fill(row_types, 0) for row_types in types])
    if mark_passages:
        features["passage_mask"] = torch.tensor([fill(_mark_passage(row), 0) for row in rows])
    return features


def _mark_passage(row: Row) -> list[int]:
    """Return 1 for each token of a row's passage and 0 for the others."""
    return [0] * row.before_passage + [1] * row.passage_tokens + [0] * row.after_passage


def choose_pad_id(tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None = None) -> int:
    """Return the id that rows are padded with: the tokenizer's, or 0, which the mask hides, if that cannot be used.

    Args:
        tokenizer: One without a pad token pads with 0.
        num_embeddings: The number of token ids that the backbone has embeddings of. A pad token beyond them is
            replaced by 0, too. None: any id may be used.
    """
    pad_id = cast(int, tokenizer.pad_token_id or 0)
    return 0 if num_embeddings is not None and pad_id >= num_embeddings else pad_id


def make_batches(
    rows: Sequence[Row], tokens_per_batch: int, can_share_prefix: bool = False
) -> list[list[int]]:
    """Group rows into batches, the longest first. A row longer than the budget is a batch of its own.

    Args:
        rows: The rows.
        tokens_per_batch: The budget of a batch in tokens, padding included.
        can_share_prefix: Whether a prefix that all rows of a batch share is computed once. If it saves enough tokens, a
            batch then holds the rows of one query.

    Returns:
        The indices of the rows of each batch.
    """
    prefixes = [tuple(row.input_ids[: row.before_passage]) for row in rows] if can_share_prefix else []
    by_query = can_share_prefix and _is_worth_grouping(prefixes, rows, tokens_per_batch)
    order = sorted(range(len(rows)), key=lambda i: (prefixes[i] if by_query else (), -len(rows[i])))
    batches: list[list[int]] = []
    for i in order:
        longest = batches[-1][0] if batches else i
        other_query = by_query and prefixes[longest] != prefixes[i]
        if not batches or other_query or (len(batches[-1]) + 1) * len(rows[longest]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(i)
    return batches


def _is_worth_grouping(
    prefixes: Sequence[tuple[int, ...]], rows: Sequence[Row], tokens_per_batch: int
) -> bool:
    """Return whether batches of one query each save enough tokens and are large enough to keep a processor busy."""
    distinct, tokens = set(prefixes), sum(map(len, rows))
    saved = sum(map(len, prefixes)) - sum(map(len, distinct))
    return saved >= MIN_SAVED_SHARE * tokens and tokens >= len(distinct) * tokens_per_batch / 4


def pool_windows(scores: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
    """Make one score of those of all windows of a passage.

    Args:
        scores: float32 [layers, windows], of the windows of all rows, row by row.
        rows: The rows.

    Returns:
        float32 [layers, rows].
    """
    ends = np.cumsum([len(row.windows) for row in rows], dtype=np.int64)
    pooled = scores[:, [end - len(row.windows) for end, row in zip(ends, rows, strict=True)]]
    for i, row in enumerate(rows):
        if row.further:
            of_windows = scores[:, ends[i] - len(row.windows) : ends[i]]
            pooled[:, i] = of_windows.max(axis=1) if row.pool == "max" else of_windows.mean(axis=1)
    return pooled


@contextmanager
def out_of_memory_hint(hint: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a MemoryError that carries `hint`."""
    try:
        yield
    except RuntimeError as error:
        # the allocator of a CPU raises a plain RuntimeError
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"out of memory: {hint}") from error
        raise
