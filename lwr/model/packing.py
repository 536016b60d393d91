"""Rows of unequal length as one sequence: no block computes padding, and what rows share it computes once.

Everything in a transformer block but attention looks at one token at a time, so rows may lie end to end. Attention
is given back its rows: those of like length, longest first, as rectangles, each one call of the usual kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lwr.model.layer_hooks import LayerStack, run_to

NAME = "lwr_packed"
SLACK = 0.9  # a rectangle's shortest row is at least so long: fewer calls of the kernel, for little padding
# what `attention` computes; others go by a mask it doesn't see
MIXERS = {"full_attention", "sliding_attention"}


class Packing:
    """Where the rows of a batch lie in one sequence: first what all share, then rectangles, longest rows first.

    rows: int64 [rows still here], their places in the batch. lengths: int64 [rows], tokens of each behind the shared
    ones. shapes: (rows, width) of each rectangle. shared: tokens that stand once, before all rows. A row that is
    shorter than its rectangle ends in copies of its last token.
    """

    def __init__(self, mask: Tensor, shared: int = 0):
        """mask: int64 [rows, tokens], 1 where a token is real; padded on either side. shared: tokens that every row
        starts with; each row must go on behind them."""
        self.shared = shared
        lengths, rows = (mask.sum(dim=1) - shared).sort(descending=True, stable=True)
        widths = torch.tensor(_widths(lengths.tolist()), device=mask.device)
        self._settle(rows, lengths, widths)
        first = mask.argmax(dim=1)[self.rows, None] + shared
        columns, start = [], 0
        for count, width in self.shapes:
            here = slice(start, start + count)
            ahead = torch.arange(width, device=mask.device).clamp(max=self.lengths[here, None] - 1)
            columns.append((self.rows[here, None] * mask.shape[1] + first[here] + ahead).flatten())
            start += count
        prefix = mask[0].argmax() + torch.arange(shared, device=mask.device)
        self.source = torch.cat([prefix, *columns])

    def _settle(self, rows: Tensor, lengths: Tensor, widths: Tensor) -> Self:
        """Who is here, and what every block asks for, computed once. widths: int64 [rows], of their rectangles."""
        self.rows, self.lengths, self._widths = rows, lengths, widths
        self.shapes = [(len(list(some)), width) for width, some in groupby(widths.tolist())]
        self._real = [
            torch.arange(width, device=rows.device) < some[:, None]
            for some, (_, width) in zip(
                lengths.split([count for count, _ in self.shapes]), self.shapes, strict=True
            )
        ]
        return self

    def pack(self, values: Tensor) -> Tensor:
        """[rows of the whole batch, tokens] as it was padded -> [1, packed tokens]; before rows leave."""
        return values.flatten()[self.source][None]

    def rectangles(self, packed: Tensor, dim: int = 1) -> list[Tensor]:
        """Views of [1, packed tokens, …] (tokens at `dim`): of each rectangle [rows, width, …], `dim` one later."""
        sizes = [self.shared, *(count * width for count, width in self.shapes)]
        _, *parts = packed.split(sizes, dim)
        return [
            part.unflatten(dim, shape).squeeze(0).movedim(dim - 1, 0)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def real(self) -> list[Tensor]:
        """Of each rectangle bool [rows, width]: which tokens are no copies."""
        return self._real

    def starts(self) -> Tensor:
        """int64 [rows]: where each row begins in the packed sequence, behind the shared tokens."""
        return self.shared + self._widths.cumsum(0) - self._widths

    def keep(self, kept: Tensor) -> Tensor:
        """Let all rows go but these: int64 positions among those that are here, ascending. Returns their tokens,
        int64 positions in the packed sequence as it was."""
        stays = torch.zeros(len(self.rows), dtype=torch.bool, device=self.rows.device)
        stays[kept] = True
        prefix = torch.ones(self.shared, dtype=torch.bool, device=stays.device)
        tokens = torch.cat([prefix, stays.repeat_interleave(self._widths)]).nonzero().squeeze(1)
        self._settle(self.rows[kept], self.lengths[kept], self._widths[kept])
        return tokens

    def parts(self, tokens: int) -> list[tuple[Tensor, Packing]]:
        """The rows that are here, some by some, each time about as many `tokens`: their positions in the packed
        sequence, int64, behind those of the shared ones; and how they lie there."""
        device, starts = self.rows.device, self.starts()
        prefix = torch.arange(self.shared, device=device)
        number = (starts - self.shared).div(tokens, rounding_mode="floor")
        counts, found, begin = number.unique_consecutive(return_counts=True)[1].tolist(), [], self.shared
        here = zip(*(each.split(counts) for each in (self.rows, self.lengths, self._widths)), strict=True)
        for rows, lengths, widths in here:
            end = begin + int(widths.sum())
            where = torch.cat([prefix, torch.arange(begin, end, device=device)])
            found.append((where, copy(self)._settle(rows, lengths, widths)))
            begin = end
        return found


def _widths(lengths: Sequence[int]) -> list[int]:
    """Of the rectangle of each row. lengths: longest first."""
    widths: list[int] = []
    for length in lengths:
        widths.append(widths[-1] if widths and length >= SLACK * widths[-1] else length)
    return widths


# --- attention -----------------------------------------------------------------------------------------


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: SDPA, within the rows of a packed sequence where `packing` is given.

    query, key, value: [1, heads, packed tokens, head size]. Returns [1, packed tokens, heads, head size].
    """
    if packing is None:
        options["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shared, outputs = packing.shared, []
    if shared:
        ahead = [part[:, :, :shared] for part in (query, key, value)]
        mask = _mask(shared, 0, None, sliding_window, module.is_causal, query.device)
        outputs.append(sdpa_attention_forward(module, *ahead, mask, **options)[0])
    parts = (packing.rectangles(part, dim=2) for part in (query, key, value))
    for q, k, v, real in zip(*parts, packing.real(), strict=True):
        mask = _mask(q.shape[2], shared, real, sliding_window, module.is_causal, query.device)
        if shared:
            k, v = (
                torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)
                for before, own in ((ahead[1], k), (ahead[2], v))
            )
        output = sdpa_attention_forward(module, q, k, v, mask, **options)[0]
        outputs.append(output.reshape(1, -1, *output.shape[2:]))
    return torch.cat(outputs, dim=1), None


def _mask(
    width: int, shared: int, real: Tensor | None, window: int | None, causal: bool, device: torch.device
) -> Tensor | None:
    """bool [rows or 1, 1, width, shared + width], which keys a token reads; None: what SDPA does by itself."""
    needs_band = window is not None and shared + width > window
    if causal and not shared and not needs_band:
        return None  # copies stand behind what is real, where no real token looks
    if not causal and not needs_band and (real is None or bool(real.all())):
        return None
    own, read = torch.arange(width, device=device)[:, None], torch.arange(-shared, width, device=device)
    mask = torch.ones(width, shared + width, dtype=torch.bool, device=device)
    if causal:
        mask &= read <= own
    if needs_band:
        mask &= (own - read).abs() < window
    if causal or real is None:
        return mask[None, None]
    mask = mask & real[:, None]
    return (mask | torch.eye(width, dtype=torch.bool, device=device))[:, None]  # a row of no key would be NaN


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for passes that are not packed
NO_MASK = torch.zeros(1, 1, 1, 1)  # of four dimensions: transformers makes none of its own


# --- which backbones -----------------------------------------------------------------------------------


@torch.no_grad()
def find_positions(backbone: PreTrainedModel, stack: LayerStack) -> int | None:
    """The number of a row's first position in a backbone that computes packed rows as it does padded ones; else None.

    Read off forward passes over six tokens: of two packed rows neither feels the other, and both come out as alone.
    Only SDPA is replaced. Leaves the packed attention in place where it works.
    """
    config = backbone.config.get_text_config()
    if backbone.config._attn_implementation != "sdpa" or not MIXERS.issuperset(
        getattr(config, "layer_types", None) or []
    ):
        return None
    training = backbone.training
    backbone.eval()
    rows = torch.tensor([[3, 4, 5, 6, 7, 8]], device=backbone.device)
    alone = torch.cat([_states(backbone, stack, rows[:, part]) for part in (slice(4), slice(4, 6))])
    found = None
    try:
        backbone.set_attn_implementation(NAME)
        for first in (0, (config.pad_token_id or 0) + 1):  # RoBERTa counts from its padding token's id on
            if found is None and _close(_packed(backbone, stack, rows, first), alone):
                found = first
    except (TypeError, ValueError):  # without the argument, or with an attention that can't be replaced
        pass
    backbone.train(training)
    if found is None:
        backbone.set_attn_implementation("sdpa")
    return found


def _packed(backbone: PreTrainedModel, stack: LayerStack, ids: Tensor, first: int) -> Tensor:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=ids.device)
    packing = Packing(mask)
    positions = first + packing.pack(mask.cumsum(dim=1) - 1)
    return _states(
        backbone, stack, ids, position_ids=positions, attention_mask=NO_MASK.to(ids.device), packing=packing
    )


def _states(backbone: PreTrainedModel, stack: LayerStack, ids: Tensor, **inputs: Any) -> Tensor:
    """[tokens, hidden] after the last block."""
    states = []
    run_to(
        backbone,
        stack,
        [stack.num_layers],
        lambda _, hidden: states.append(hidden[0]),
        input_ids=ids,
        **inputs,
    )
    return states[0]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).float().norm() < torch.finfo(a.dtype).eps ** 0.5 * b.float().norm())
