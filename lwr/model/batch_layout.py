"""Lay out a batch of rows for a backbone: padded to one length, or packed into one sequence without padding.

Both layouts provide the backbone's inputs (`inputs`), the rows that remain (`rows`), the pooled state of each row
(`pool`), the entries of a hidden state that remain when rows are dropped (`keep`), the hidden state with fewer passage
tokens (`compress`), and the rows that blocks may compute separately (`chunks`).

Letters in shape comments: B rows of the batch, R remaining rows, S tokens of a padded row, T tokens of the packed
sequence, H hidden size. Index spaces as in `lwr.model.packing`; an *offset* is a token's index in its unpadded row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lwr.config.model import Pooling
from lwr.model.layer_hooks import Chunk
from lwr.model.packing import NO_MASK, Packing, ReadTokens

MIN_SAVED_SHARE = 0.1
"""The share of a batch's tokens that a shared prefix must save: attention needs a mask then, and is slower with one."""


@dataclass(frozen=True)
class RowSpans:
    """The parts of each batch row, by offset.

    Attributes:
        lengths: int64 [B], the number of tokens.
        passage_starts: int64 [B], the first token that compression may average; `lengths` if there is none.
        passage_ends: int64 [B], the token after the last of these.
        read: int64 [B], the token that a head reads; unused with mean pooling.
    """

    lengths: Tensor
    passage_starts: Tensor
    passage_ends: Tensor
    read: Tensor

    @classmethod
    def find(cls, features: Mapping[str, Tensor], pooling: Pooling, with_passages: bool) -> Self:
        """Find the parts in the features of a batch; passages only if they are wanted.

        The token that a head reads is no part of the passage.
        """
        mask = features["attention_mask"]
        lengths, first_columns = mask.sum(dim=1), mask.argmax(dim=1)  # [B]
        read = _columns_to_read(features, pooling) - first_columns
        if not with_passages:
            return cls(lengths, lengths, lengths, read)
        passage = features["passage_mask"]
        counts = passage.sum(dim=1)
        starts = torch.where(counts > 0, passage.argmax(dim=1) - first_columns, lengths)
        ends = torch.where(counts > 0, starts + counts, lengths)
        if pooling != "mean":
            ends = torch.where((starts <= read) & (read < ends), read, ends)
        return cls(lengths, starts, ends, read)

    def compress(self, ratio: int) -> Self:
        """Return the parts after each `ratio` neighbouring tokens of a passage became one."""
        removed = self.passage_ends - self.passage_starts - self._groups(ratio)
        read = torch.where(self.read >= self.passage_ends, self.read - removed, self.read)
        return replace(
            self, lengths=self.lengths - removed, passage_ends=self.passage_ends - removed, read=read
        )

    def members(self, rows: Tensor, offsets: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
        """Find the tokens that became one.

        Args:
            rows: int64 [R], batch rows.
            offsets: int64 [R, tokens], after the compression.
            ratio: The number of tokens that became one. The last of a passage may stand for fewer.

        Returns:
            int64 [R, tokens, ratio], offsets before the compression; and bool, whether an entry is a member. Entries
            that are none repeat the first.
        """
        start, end = self.passage_starts[rows, None], self.passage_ends[rows, None]  # [R, 1]
        groups = self._groups(ratio)[rows, None]
        is_group = (offsets >= start) & (offsets < start + groups)  # [R, tokens]
        behind = torch.where(offsets < start, offsets, offsets + end - start - groups)
        first = torch.where(is_group, start + (offsets - start) * ratio, behind)[..., None]
        steps = torch.arange(ratio, device=offsets.device)
        is_member = torch.where(is_group[..., None], first + steps < end[..., None], steps == 0)
        return torch.where(is_member, first + steps, first), is_member

    def _groups(self, ratio: int) -> Tensor:
        """Return int64 [B]: the number of passage tokens after a compression."""
        return (self.passage_ends - self.passage_starts + ratio - 1).div(ratio, rounding_mode="floor")


class PaddedLayout:
    """Rows padded to one length: a hidden state is [R, S, H].

    Attributes:
        dim: The dimension of a hidden state that `keep` indexes.
        rows: int64 [R], the batch row of each remaining row.
        weights: int64 [R, S], how many tokens each state stands for; 0: padding.
        inputs: Keyword arguments of the backbone.
    """

    dim = 0

    def __init__(
        self, features: Mapping[str, Tensor], causal: bool, pooling: Pooling, with_passages: bool = False
    ):
        """Lay out `features`, which are those of `LayerwiseReranker.encode`.

        Args:
            features: Tensors [B, S].
            causal: Whether the backbone is causal. Only then are positions passed to it.
            pooling: The state of a row that a head reads.
            with_passages: Whether `compress` will be called, which needs `passage_mask`.
        """
        mask = features["attention_mask"]
        self.causal, self.pooling, self.weights = causal, pooling, mask
        self.rows = torch.arange(len(mask), device=mask.device)
        self.first_columns = mask.argmax(dim=1)  # [R], of each row's first token
        self.spans = RowSpans.find(features, pooling, with_passages)
        self.inputs: dict[str, Any] = {"input_ids": features["input_ids"], "attention_mask": mask}
        if "token_type_ids" in features:
            self.inputs["token_type_ids"] = features["token_type_ids"]
        if causal:
            self.inputs["position_ids"] = features.get("position_ids", _count_positions(mask))

    def pool(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """Pool a hidden state [R, S, H] into the normalised state [R, H] that a head reads."""
        if self.pooling == "mean":
            weight = self.weights.unsqueeze(-1)  # [R, S, 1]
            return (norm(hidden) * weight).sum(dim=1) / weight.sum(dim=1)
        index = torch.arange(len(hidden), device=hidden.device)
        return norm(hidden[index, self.first_columns + self.spans.read[self.rows]])

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but `kept`.

        Args:
            kept: int64, ascending indices among the remaining rows.

        Returns:
            int64, the entries of a hidden state along `dim` that remain.
        """
        self.rows, self.weights = self.rows[kept], self.weights[kept]
        self.first_columns = self.first_columns[kept]
        return kept

    def compress(self, hidden: Tensor, ratio: int) -> Tensor:
        """Average each `ratio` neighbouring passage tokens. Rows are then padded on the right.

        Args:
            hidden: [R, S, H].
            ratio: The number of tokens that become one.

        Returns:
            [R, fewer tokens, H]. A pass that reads it takes the new `inputs`.
        """
        before, self.spans = self.spans, self.spans.compress(ratio)
        lengths, device = self.spans.lengths[self.rows, None], hidden.device  # [R, 1]
        columns = torch.arange(int(lengths.max()), device=device)
        offsets = columns.clamp(max=lengths - 1)  # [R, new S], the last one repeated as padding
        members, is_member = before.members(self.rows, offsets, ratio)  # [R, new S, ratio]
        row_starts = torch.arange(len(hidden), device=device) * hidden.shape[1] + self.first_columns  # [R]
        members = members + row_starts[:, None, None]  # in the flattened batch
        mask = (columns < lengths).long()
        self.weights = (self.weights.flatten()[members] * is_member).sum(dim=-1) * mask
        self.first_columns = torch.zeros_like(self.first_columns)
        self.inputs = _inputs_without_ids(self.inputs, mask) | {"attention_mask": mask}
        if self.causal:
            self.inputs["position_ids"] = _count_positions(mask)
        return _average(hidden.flatten(0, 1), members, is_member)

    def chunks(self, tokens: int) -> list[Chunk]:
        """Split the remaining rows into chunks of at most `tokens` tokens, padding included; at least one row each."""
        positions = torch.arange(len(self.rows), device=self.rows.device)  # [R]
        return [Chunk(each) for each in positions.split(max(1, tokens // self.weights.shape[1]))]


class PackedLayout:
    """Rows one after the other, with the prefix that they share stored once: a hidden state is [1, T, H].

    Attributes:
        dim: The dimension of a hidden state that `keep` indexes.
        weights: int64 [1, T], how many tokens each state stands for; copies of a row's last token count as it does.
        inputs: Keyword arguments of the backbone.
        reads: The tokens that heads read, once the last block is to compute them alone; see `narrow`.
    """

    dim = 1

    def __init__(
        self,
        features: Mapping[str, Tensor],
        pooling: Pooling,
        first_position: int,
        can_share_prefix: bool,
        with_passages: bool = False,
    ):
        """Lay out `features`, which are those of `LayerwiseReranker.encode`.

        Args:
            features: Tensors [B, S].
            pooling: The state of a row that a head reads.
            first_position: The index that the backbone gives a row's first position.
            can_share_prefix: Whether a prefix may be shared: no head reads it, and it reads nothing after it.
            with_passages: Whether `compress` will be called, which needs `passage_mask`. A shared prefix then ends
                before the passages.
        """
        mask, self.pooling, self.first_position = features["attention_mask"], pooling, first_position
        self.spans = RowSpans.find(features, pooling, with_passages)
        self.reads: ReadTokens | None = None
        shares = can_share_prefix and "labels" not in features and not torch.is_grad_enabled()
        shared_prefix = _count_shared_tokens(features, self.spans.passage_starts) if shares else 0
        self.packing = packing = Packing(mask, shared_prefix)
        positions = features.get("position_ids", _count_positions(mask) + first_position)  # [B, S]
        input_ids = packing.pack(features["input_ids"])  # [1, T]
        self.weights = torch.ones_like(input_ids)
        self.inputs: dict[str, Any] = {
            "input_ids": input_ids,
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
        packing = self.packing
        if self.reads is not None:
            return norm(hidden[0, : len(self.rows)])
        if self.pooling != "mean":
            return norm(hidden[0, packing.row_starts() + self._offsets_to_read()])
        rectangles = zip(
            packing.rectangles(norm(hidden)),
            packing.rectangles(self.weights),
            packing.real_tokens(),
            strict=True,
        )
        sums, counts = [], []  # [rows, H] each, [rows] each
        for states, weights, real in rectangles:
            weights = weights * real  # [rows, W]
            sums.append((states * weights.unsqueeze(-1)).sum(dim=1))
            counts.append(weights.sum(dim=1))
        return torch.cat(sums) / torch.cat(counts).unsqueeze(-1)

    def _offsets_to_read(self) -> Tensor:
        """Return int64 [R]: the token that a head reads, counted from the first after the shared prefix."""
        return self.spans.read[self.rows] - self.packing.shared_prefix

    def narrow(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of the last block for the tokens that heads read (see `run_to`)."""
        self.reads = ReadTokens(self.packing, self._offsets_to_read())
        return self.reads.narrow(block, args, kwargs)

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but `kept`, as `PaddedLayout.keep` does; return the packed positions that remain."""
        positions = self.packing.keep(kept)
        self.weights = self.weights[:, positions]
        return positions

    def compress(self, hidden: Tensor, ratio: int) -> Tensor:
        """Average passage tokens as `PaddedLayout.compress` does: [1, T, H] -> [1, new T, H]."""
        before, self.spans = self.spans, self.spans.compress(ratio)
        shared = self.packing.shared_prefix
        starts = torch.zeros_like(
            before.lengths
        )  # [B], packed position of each row's first token after the prefix
        starts[self.rows] = self.packing.row_starts()
        self.packing = packing = self.packing.with_lengths(self.spans.lengths - shared)
        prefix = torch.arange(shared, device=hidden.device)  # [P]
        steps = torch.arange(ratio, device=hidden.device)
        members, is_member = [prefix[:, None].expand(-1, ratio)], [(steps == 0).expand(shared, -1)]
        positions = [prefix]
        for rows, own_offsets in packing.offsets():  # [rows], [rows, W]
            offsets = own_offsets + shared
            of_row, is_of_row = before.members(rows, offsets, ratio)  # [rows, W, ratio]
            members.append((of_row - shared + starts[rows, None, None]).flatten(0, 1))
            is_member.append(is_of_row.flatten(0, 1))
            positions.append(offsets.flatten())
        packed_members, packed_is_member = torch.cat(members), torch.cat(is_member)  # [new T, ratio]
        self.weights = (self.weights[0, packed_members] * packed_is_member).sum(dim=-1)[None]
        self.inputs = _inputs_without_ids(self.inputs, self.weights) | {
            "position_ids": torch.cat(positions)[None] + self.first_position,
            "packing": packing,
        }
        return _average(hidden[0], packed_members, packed_is_member)[None]

    def chunks(self, tokens: int) -> list[Chunk]:
        """Split the remaining rows into chunks of about `tokens` tokens."""
        shared_prefix = self.packing.shared_prefix
        return [
            Chunk(positions, shared_prefix, {"packing": packing})
            for positions, packing in self.packing.chunks(tokens)
        ]


def _average(states: Tensor, members: Tensor, is_member: Tensor) -> Tensor:
    """Average states [tokens, H] over their members: [..., ratio] -> [..., H]. One member alone stays as it is."""
    total = states[members[..., 0]]
    for i in range(1, members.shape[-1]):
        total = total + states[members[..., i]] * is_member[..., i, None]
    return total / is_member.sum(dim=-1, keepdim=True)


def _inputs_without_ids(inputs: Mapping[str, Any], shape_like: Tensor) -> dict[str, Any]:
    """Return inputs of another shape, for blocks that read given states in place of embeddings."""
    ids = {name: torch.zeros_like(shape_like) for name in ("input_ids", "token_type_ids") if name in inputs}
    return {**inputs, **ids}


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


def _count_shared_tokens(features: Mapping[str, Tensor], most: Tensor) -> int:
    """Count the tokens that all rows start with; 0 if computing them once would save too little.

    At least one token of each row is left after the prefix.

    Args:
        features: Those of the batch.
        most: int64 [B], the tokens at the start of each row that may be shared.
    """
    mask = features["attention_mask"]  # [B, S]
    shortest = int(mask.sum(dim=1).min())
    columns = mask.argmax(dim=1, keepdim=True) + torch.arange(shortest, device=mask.device)  # [B, shortest]
    tokens = features["input_ids"].gather(1, columns)  # [B, shortest], without padding
    is_shared = (tokens == tokens[0]).all(dim=0).cumprod(dim=0)  # [shortest], 1 up to the first difference
    shared = min(int(is_shared.sum()), shortest - 1, int(most.min()))
    saved = shared * (len(mask) - 1)
    return shared if saved >= MIN_SAVED_SHARE * int(mask.sum()) else 0
