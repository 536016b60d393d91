"""How a batch of rows lies before a backbone: padded to one length, or packed without padding.

Both say what the backbone gets (`inputs`), which rows are here (`rows`), what a head reads of each (`pool`), what stays
of a hidden state where rows leave (`keep`), and which rows may be computed apart (`parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lwr.config.model import Pooling
from lwr.model.layer_hooks import Part
from lwr.model.packing import NO_MASK, Packing

# if it saves that share of the tokens: attention needs a mask then, and is slower with one
SHARING_PAYS = 0.1


class Padded:
    """Rows one below the other, [rows, tokens]."""

    dim = 0  # of a hidden state, which keep() indexes

    def __init__(self, features: Mapping[str, Tensor], causal: bool, pooling: Pooling):
        """features: as `LayerwiseReranker.encode` takes them."""
        self.mask, self.pooling = features["attention_mask"], pooling
        self.rows = torch.arange(len(self.mask), device=self.mask.device)
        self.read = _read(features, pooling)
        self.inputs: dict[str, Any] = {"input_ids": features["input_ids"], "attention_mask": self.mask}
        if "token_type_ids" in features:
            self.inputs["token_type_ids"] = features["token_type_ids"]
        if causal:
            self.inputs["position_ids"] = features.get("position_ids", _positions(self.mask))

    def pool(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """[rows here, tokens, hidden] -> normalised [rows here, hidden]."""
        if self.pooling == "mean":
            weight = self.mask[self.rows].unsqueeze(-1)
            return (norm(hidden) * weight).sum(dim=1) / weight.sum(dim=1)
        return norm(hidden[torch.arange(len(hidden), device=hidden.device), self.read[self.rows]])

    def keep(self, kept: Tensor) -> Tensor:
        """Let all rows go but these, int64 positions among `rows`; where they lie in a hidden state."""
        self.rows = self.rows[kept]
        return kept

    def parts(self, tokens: int) -> list[Part]:
        """The rows here, as many at a time as have so many tokens, padding among them; at least one."""
        here = torch.arange(len(self.rows), device=self.rows.device)
        return [Part(rows) for rows in here.split(max(1, tokens // self.mask.shape[1]))]


class Packed:
    """Rows one after the other, [1, tokens]; what all rows start with, once."""

    dim = 1

    def __init__(
        self, features: Mapping[str, Tensor], pooling: Pooling, first_position: int, can_share_prefix: bool
    ):
        """first_position: what the backbone calls a row's first token. can_share_prefix: nothing that all rows start with
        is read by a head."""
        mask, self.pooling = features["attention_mask"], pooling
        shares = can_share_prefix and "labels" not in features and not torch.is_grad_enabled()
        self.packing = packing = Packing(mask, _shared(features) if shares else 0)
        positions = features.get("position_ids", _positions(mask) + first_position)
        self.read = _read(features, pooling) - mask.argmax(dim=1) - packing.shared  # from a row's own start
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
        return self.packing.rows

    def pool(self, hidden: Tensor, norm: nn.Module) -> Tensor:
        """[1, packed tokens, hidden] -> normalised [rows here, hidden]."""
        if self.pooling != "mean":
            return norm(hidden[0, self.packing.starts() + self.read[self.rows]])
        rectangles = zip(self.packing.rectangles(norm(hidden)), self.packing.real(), strict=True)
        sums = [(states * real.unsqueeze(-1)).sum(dim=1) for states, real in rectangles]
        return torch.cat(sums) / self.packing.lengths.unsqueeze(-1)

    def keep(self, kept: Tensor) -> Tensor:
        """As in `Padded`; the tokens of the rows that stay."""
        return self.packing.keep(kept)

    def parts(self, tokens: int) -> list[Part]:
        """As in `Padded`, about as many."""
        shared = self.packing.shared
        return [Part(where, shared, {"packing": part}) for where, part in self.packing.parts(tokens)]


def _positions(mask: Tensor) -> Tensor:
    """Counted from a row's first real token: padding on the left must not shift them."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _read(features: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """int64 [rows]: the column that a head reads, where it reads one."""
    mask = features["attention_mask"]
    if "labels" in features:
        return features["labels"].argmax(dim=1) - 1
    if pooling == "last":
        return mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return mask.argmax(dim=1)


def _shared(features: Mapping[str, Tensor]) -> int:
    """How many tokens all rows start with, where to compute them once pays; each row goes on behind them."""
    mask = features["attention_mask"]
    shortest = int(mask.sum(dim=1).min())
    columns = mask.argmax(dim=1, keepdim=True) + torch.arange(shortest, device=mask.device)
    starts = features["input_ids"].gather(1, columns)
    alike = int((starts == starts[0]).all(dim=0).cumprod(dim=0).sum())
    shared = min(alike, shortest - 1)
    return shared if shared * (len(mask) - 1) >= SHARING_PAYS * int(mask.sum()) else 0
