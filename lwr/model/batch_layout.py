"""Lay out a batch of rows for a backbone: padded to one length, or packed into one sequence without padding.

Both layouts provide the backbone's inputs (`inputs`), the rows that remain (`rows`), the pooled state of each row
(`pool`), the entries of a hidden state that remain when rows are dropped (`keep`), and the rows that blocks may compute
separately (`chunks`).

Letters in shape comments: B rows of the batch, R remaining rows, S tokens of a padded row, T tokens of the packed
sequence, H hidden size. Index spaces as in `lwr.model.packing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lwr.config.model import Pooling
from lwr.model.layer_hooks import Chunk
from lwr.model.packing import NO_MASK, Packing

MIN_SAVED_SHARE = 0.1
"""The share of a batch's tokens that a shared prefix must save: attention needs a mask then, and is slower with one."""


class PaddedLayout:
    """Rows padded to one length: a hidden state is [R, S, H].

    Attributes:
        dim: The dimension of a hidden state that `keep` indexes.
        rows: int64 [R], the batch row of each remaining row.
        inputs: Keyword arguments of the backbone.
    """

    dim = 0

    def __init__(self, features: Mapping[str, Tensor], causal: bool, pooling: Pooling):
        """Lay out `features`, which are those of `LayerwiseReranker.encode`.

        Args:
            features: Tensors [B, S].
            causal: Whether the backbone is causal. Only then are positions passed to it.
            pooling: The state of a row that a head reads.
        """
        self.mask, self.pooling = features["attention_mask"], pooling
        self.rows = torch.arange(len(self.mask), device=self.mask.device)
        self.read_columns = _columns_to_read(features, pooling)  # [B]
        self.inputs: dict[str, Any] = {"input_ids": features["input_ids"], "attention_mask": self.mask}
        if "token_type_ids" in features:
            self.inputs["token_type_ids"] = features["token_type_ids"]
        if causal:
            self.inputs["position_ids"] = features.get("position_ids", _count_positions(self.mask))

    def pool(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """Pool a hidden state [R, S, H] into the normalised state [R, H] that a head reads."""
        if self.pooling == "mean":
            weight = self.mask[self.rows].unsqueeze(-1)  # [R, S, 1]
            return (norm(hidden) * weight).sum(dim=1) / weight.sum(dim=1)
        index = torch.arange(len(hidden), device=hidden.device)
        return norm(hidden[index, self.read_columns[self.rows]])

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but `kept`.

        Args:
            kept: int64, ascending indices among the remaining rows.

        Returns:
            int64, the entries of a hidden state along `dim` that remain.
        """
        self.rows = self.rows[kept]
        return kept

    def chunks(self, tokens: int) -> list[Chunk]:
        """Split the remaining rows into chunks of at most `tokens` tokens, padding included; at least one row each."""
        positions = torch.arange(len(self.rows), device=self.rows.device)  # [R]
        return [Chunk(each) for each in positions.split(max(1, tokens // self.mask.shape[1]))]


class PackedLayout:
    """Rows one after the other, with the prefix that they share stored once: a hidden state is [1, T, H].

    Attributes:
        dim: The dimension of a hidden state that `keep` indexes.
        inputs: Keyword arguments of the backbone.
    """

    dim = 1

    def __init__(
        self, features: Mapping[str, Tensor], pooling: Pooling, first_position: int, can_share_prefix: bool
    ):
        """Lay out `features`, which are those of `LayerwiseReranker.encode`.

        Args:
            features: Tensors [B, S].
            pooling: The state of a row that a head reads.
            first_position: The index that the backbone gives a row's first position.
            can_share_prefix: Whether a prefix may be shared: no head reads it, and it reads nothing after it.
        """
        mask, self.pooling = features["attention_mask"], pooling
        shares = can_share_prefix and "labels" not in features and not torch.is_grad_enabled()
        self.packing = packing = Packing(mask, _count_shared_tokens(features) if shares else 0)
        positions = features.get("position_ids", _count_positions(mask) + first_position)  # [B, S]
        first_column = mask.argmax(dim=1) + packing.shared_prefix  # [B], first token after the prefix
        self.read_offsets = _columns_to_read(features, pooling) - first_column  # [B], from a row's start
        self.inputs: dict[str, Any] = {
            "input_ids": packing.pack(features["input_ids"]),
            "attention_mask": NO_MASK.to(mask.device),
            "position_ids": packing.pack(positions),
            "packing": packing,
        }
        if "token_type_ids" in features:
            self.inputs["token_type_ids"] = packing.pack(features["token_type_ids"])

    @property
    def rows(self) -> Tensor:
        """int64 [R], the batch row of each remaining row."""
        return self.packing.rows

    def pool(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """Pool a hidden state [1, T, H] into the normalised state [R, H] that a head reads."""
        if self.pooling != "mean":
            return norm(hidden[0, self.packing.row_starts() + self.read_offsets[self.rows]])
        rectangles = zip(self.packing.rectangles(norm(hidden)), self.packing.real_tokens(), strict=True)
        sums = [(states * real.unsqueeze(-1)).sum(dim=1) for states, real in rectangles]  # [rows, H] each
        return torch.cat(sums) / self.packing.lengths.unsqueeze(-1)

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but `kept`, as `PaddedLayout.keep` does; return the packed positions that remain."""
        return self.packing.keep(kept)

    def chunks(self, tokens: int) -> list[Chunk]:
        """Split the remaining rows into chunks of about `tokens` tokens."""
        shared_prefix = self.packing.shared_prefix
        return [
            Chunk(positions, shared_prefix, {"packing": packing})
            for positions, packing in self.packing.chunks(tokens)
        ]


def _count_positions(mask: Tensor) -> Tensor:
    """Count positions [B, S] from each row's first real token on, so that padding on the left does not shift them."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _columns_to_read(features: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """Return int64 [B]: the column of the token that a head reads; unused with mean pooling."""
    mask = features["attention_mask"]
    if "labels" in features:
        return features["labels"].argmax(dim=1) - 1
    if pooling == "last":
        return mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return mask.argmax(dim=1)


def _count_shared_tokens(features: Mapping[str, Tensor]) -> int:
    """Count the tokens that all rows start with; 0 if computing them once would save too little.

    At least one token of each row is left after the prefix.
    """
    mask = features["attention_mask"]  # [B, S]
    shortest = int(mask.sum(dim=1).min())
    columns = mask.argmax(dim=1, keepdim=True) + torch.arange(shortest, device=mask.device)  # [B, shortest]
    tokens = features["input_ids"].gather(1, columns)  # [B, shortest], without padding
    is_shared = (tokens == tokens[0]).all(dim=0).cumprod(dim=0)  # [shortest], 1 up to the first difference
    shared = min(int(is_shared.sum()), shortest - 1)
    saved = shared * (len(mask) - 1)
    return shared if saved >= MIN_SAVED_SHARE * int(mask.sum()) else 0
