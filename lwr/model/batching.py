"""Padded batches of rows of unequal length, and an error that says what to do when one exceeds the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lwr.model.batch_layout import SHARING_PAYS
from lwr.model.prompt import Row


def pad(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """int64 [rows, longest] `input_ids`, `attention_mask` and, where rows have types, `token_type_ids`.

    Padded on the tokenizer's side. The mask hides padding, so a tokenizer without a pad token pads with id 0.
    """
    longest = max(map(len, rows))
    left = tokenizer.padding_side == "left"

    def fill(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (longest - len(values))
        return padding + values if left else values + padding

    pad_id = tokenizer.pad_token_id or 0
    features = {
        "input_ids": torch.tensor([fill(row.input_ids, pad_id) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row), 0) for row in rows]),
    }
    if rows[0].token_type_ids is not None:
        features["token_type_ids"] = torch.tensor([fill(row.token_type_ids, 0) for row in rows])
    return features


def make_batches(
    rows: Sequence[Row], tokens_per_batch: int, can_share_prefix: bool = False
) -> list[list[int]]:
    """Indices of the rows, longest first, in batches of at most `tokens_per_batch` padded tokens.

    can_share_prefix: what a batch's rows all start with is computed once; where that pays, a batch has rows of one query.
    A row longer than the budget is a batch of its own.
    """
    starts = [tuple(row.input_ids[: row.before_passage]) for row in rows] if can_share_prefix else []
    by_query = can_share_prefix and _pays(starts, rows, tokens_per_batch)
    batches: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: (starts[i] if by_query else (), -len(rows[i]))):
        longest = batches[-1][0] if batches else i
        another_query = by_query and starts[longest] != starts[i]
        if not batches or another_query or (len(batches[-1]) + 1) * len(rows[longest]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(i)
    return batches


def _pays(starts: Sequence[tuple[int, ...]], rows: Sequence[Row], tokens_per_batch: int) -> bool:
    """Whether batches of one query each save enough, and are not too small to keep a machine busy."""
    distinct, tokens = set(starts), sum(map(len, rows))
    saved = sum(map(len, starts)) - sum(map(len, distinct))
    return saved >= SHARING_PAYS * tokens and tokens >= len(distinct) * tokens_per_batch / 4


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
