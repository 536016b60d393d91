"""Rows of unequal length -> padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lwr.prompt import Row


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


def batches_of(rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
    """Indices of the rows, longest first, in batches of at most `tokens_per_batch` padded tokens.

    A row longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if not batches or (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(index)
    return batches
