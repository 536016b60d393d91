"""Pack rows of unequal length into one sequence, so that no block computes padding or a shared prefix twice.

Everything in a transformer block but attention works on one token at a time, so rows may follow each other in one
sequence. Attention needs the rows again: rows of similar length form a rectangle, and each rectangle is one call of the
usual attention kernel.

Letters in shape comments: R rows, W width of a rectangle (tokens of its longest row), P tokens of the shared prefix,
T tokens of the packed sequence, S tokens of a padded row, A attention heads, D size of such a head, H hidden size.

Index spaces:
- a *batch row* is a row's index in the batch as given;
- a *row* is its index among the remaining rows, longest first;
- a *column* is a token's index in its padded row;
- a *packed position* is a token's index in the packed sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lwr.model.layer_hooks import LayerStack, run_to, select

ATTENTION_NAME = "lwr_packed"
TRIAL_NAME = "lwr_packed_trial"
MIN_FILL = 0.9
"""Length of a rectangle's shortest row, as a share of its width. Lower: fewer kernel calls, more filling."""
PACKABLE_LAYER_TYPES = {"full_attention", "sliding_attention"}
"""The ways to mix tokens that `packed_attention` computes. Others, such as convolutions, would mix rows."""
NO_MASK = torch.zeros(1, 1, 1, 1)
"""A mask of four dimensions, which transformers passes on instead of making one. `packed_attention` ignores it."""

ROWS_OF_PRODUCT = 16
"""The last block computes a multiple of this many tokens. With 5, say, and two threads, matrix products round the same
token otherwise in one place than in another, and equal passages would not score alike."""


class Packing:
    """The place of every row of a batch in one packed sequence.

    The sequence begins with the shared prefix, the tokens that all rows start with. The rectangles follow, longest rows
    first. A row shorter than its rectangle is filled up with copies of its last token.

    Attributes:
        rows: int64 [R], the batch row of each remaining row, longest first.
        lengths: int64 [R], the tokens of each remaining row after the shared prefix.
        rectangle_shapes: (rows, width) of each rectangle.
        shared_prefix: The number of tokens in the shared prefix.
    """

    def __init__(self, mask: Tensor, shared_prefix: int = 0):
        """Lay out the rows of a batch.

        Args:
            mask: int64 [R, S], 1 where a token is real. Rows may be padded on either side.
            shared_prefix: The number of tokens that every row starts with. Each row must have more tokens than that.
        """
        self.shared_prefix = shared_prefix
        lengths, rows = (mask.sum(dim=1) - shared_prefix).sort(descending=True, stable=True)  # [R], [R]
        widths = torch.tensor(_choose_widths(lengths.tolist()), device=mask.device)  # [R]
        self._set_rows(rows, lengths, widths)
        self._sources = self._find_sources(mask)

    def _set_rows(self, rows: Tensor, lengths: Tensor, widths: Tensor) -> Self:
        """Set the remaining rows and cache what every block needs.

        Args:
            rows: int64 [R], batch rows.
            lengths: int64 [R], without the shared prefix.
            widths: int64 [R], of the rectangle of each row; descending.
        """
        self.rows, self.lengths, self._widths = rows, lengths, widths
        self.rectangle_shapes = [(len(list(same)), width) for width, same in groupby(widths.tolist())]
        self._real = [
            torch.arange(width, device=rows.device) < in_rectangle[:, None]  # [rows, W]
            for in_rectangle, (_, width) in zip(
                lengths.split(self.row_counts()), self.rectangle_shapes, strict=True
            )
        ]
        return self

    def row_counts(self) -> list[int]:
        """Return the number of rows in each rectangle."""
        return [count for count, _ in self.rectangle_shapes]

    def _find_sources(self, mask: Tensor) -> Tensor:
        """Return int64 [T]: for each packed position the index of its token in the flattened batch [R * S]."""
        # [B], first token after the prefix in the flattened batch
        starts = (
            torch.arange(len(mask), device=mask.device) * mask.shape[1]
            + mask.argmax(dim=1)
            + self.shared_prefix
        )
        prefix = mask[0].argmax() + torch.arange(
            self.shared_prefix, device=mask.device
        )  # [P], in batch row 0
        return torch.cat(
            [prefix, *((starts[rows, None] + offsets).flatten() for rows, offsets in self.offsets())]
        )

    def offsets(self) -> list[tuple[Tensor, Tensor]]:
        """Return for each rectangle its batch rows, int64 [rows], and the tokens that it holds, int64 [rows, W].

        Tokens are counted from the first after the shared prefix. The last one of a row is repeated.
        """
        counts = self.row_counts()
        rectangles = zip(
            self.rows.split(counts), self.lengths.split(counts), self.rectangle_shapes, strict=True
        )
        return [
            (rows, torch.arange(width, device=rows.device).clamp(max=lengths[:, None] - 1))
            for rows, lengths, (_, width) in rectangles
        ]

    def with_lengths(self, lengths: Tensor) -> Packing:
        """Lay out the remaining rows anew, with other lengths.

        Args:
            lengths: int64 [R of the batch], the tokens of each batch row after the shared prefix.
        """
        descending, order = lengths[self.rows].sort(descending=True, stable=True)  # [R], [R]
        widths = torch.tensor(_choose_widths(descending.tolist()), device=lengths.device)
        return copy(self)._set_rows(self.rows[order], descending, widths)

    def pack(self, values: Tensor) -> Tensor:
        """Pack padded values [R, S] into [1, T]. All rows of the batch must still remain."""
        return values.flatten()[self._sources][None]

    def rectangles(self, packed: Tensor, dim: int = 1) -> list[Tensor]:
        """Return views of the rectangles in a packed tensor.

        Args:
            packed: [1, T, ...], or [1, A, T, D] with `dim` 2.
            dim: The dimension of the tokens.

        Returns:
            For each rectangle [rows, W, ...], or [rows, A, W, D].
        """
        sizes = [self.shared_prefix, *(count * width for count, width in self.rectangle_shapes)]
        _, *rectangles = packed.split(sizes, dim)  # the prefix, then [1, ..., rows * W, ...]
        return [
            rectangle.unflatten(dim, shape).squeeze(0).movedim(dim - 1, 0)
            for rectangle, shape in zip(rectangles, self.rectangle_shapes, strict=True)
        ]

    def real_tokens(self) -> list[Tensor]:
        """Return for each rectangle bool [rows, W]: False where a row is filled up with copies."""
        return self._real

    def row_starts(self) -> Tensor:
        """Return int64 [R]: the packed position of each row's first token after the shared prefix."""
        return self.shared_prefix + self._widths.cumsum(0) - self._widths

    def keep(self, kept: Tensor) -> Tensor:
        """Drop all rows but `kept`.

        Args:
            kept: int64, ascending indices among the remaining rows.

        Returns:
            int64 [T after dropping], the packed positions of the tokens that remain.
        """
        is_kept = torch.zeros(len(self.rows), dtype=torch.bool, device=self.rows.device)  # [R]
        is_kept[kept] = True
        prefix = torch.ones(self.shared_prefix, dtype=torch.bool, device=is_kept.device)  # [P]
        tokens = torch.cat([prefix, is_kept.repeat_interleave(self._widths)])  # [T]
        self._set_rows(self.rows[kept], self.lengths[kept], self._widths[kept])
        return tokens.nonzero().squeeze(1)

    def chunks(self, tokens: int) -> list[tuple[Tensor, Packing]]:
        """Split the remaining rows into chunks of about `tokens` tokens.

        Returns:
            For each chunk int64, its packed positions, beginning with those of the shared prefix; and its own packing.
        """
        device = self.rows.device
        prefix = torch.arange(self.shared_prefix, device=device)  # [P]
        # [R], the row's chunk
        number = (self.row_starts() - self.shared_prefix).div(tokens, rounding_mode="floor")
        counts = number.unique_consecutive(return_counts=True)[1].tolist()
        chunks, start = [], self.shared_prefix
        by_chunk = (values.split(counts) for values in (self.rows, self.lengths, self._widths))
        for rows, lengths, widths in zip(*by_chunk, strict=True):
            end = start + int(widths.sum())
            positions = torch.cat([prefix, torch.arange(start, end, device=device)])
            chunks.append((positions, copy(self)._set_rows(rows, lengths, widths)))
            start = end
        return chunks


class ReadTokens:
    """The tokens that heads read, one in each row: the only ones that the last block of a pass computes.

    Their attention reads the keys and values of all tokens. The block itself makes these in a call that ends in its
    attention; what follows there and in the feed-forward layers is computed for the read tokens alone.

    Attributes:
        packing: The rows of all tokens.
        offsets: int64 [R], the token read in each row, counted from the first after the shared prefix.
        filling: The number of copies of the last read token that follow; see `ROWS_OF_PRODUCT`.
        keys_and_values: [1, key heads, T, D] each, of all tokens; None until the block makes them.
    """

    def __init__(self, packing: Packing, offsets: Tensor):
        """Choose the tokens; `offsets` as the attribute."""
        self.packing, self.offsets, self.filling = packing, offsets, -len(offsets) % ROWS_OF_PRODUCT
        self.keys_and_values: tuple[Tensor, Tensor] | None = None

    def narrow(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Find keys and values; return the arguments of the block for the read tokens and copies (see `run_to`)."""
        reads = {"packing": self}
        with suppress(_KeysFound):
            block.forward(*args, **kwargs | reads)
        hidden = args[0] if args else kwargs["hidden_states"]  # [1, T, H]
        positions, batch_shape = self.packing.row_starts() + self.offsets, hidden.shape[:2]
        positions = torch.cat([positions, positions[-1:].expand(self.filling)])
        named = {name: select(value, positions, batch_shape) for name, value in kwargs.items()}
        return select(args, positions, batch_shape), named | reads

    def attend(self, module: nn.Module, query: Tensor, sliding_window: int | None, **options: Any) -> Tensor:
        """Compute the attention of the read tokens to all tokens of their rows.

        Args:
            module: The attention module.
            query: [1, A, R + filling, D].
            sliding_window: The number of tokens that a token reads, itself among them.
            options: Passed to SDPA.

        Returns:
            [1, R + filling, A, D].
        """
        assert self.keys_and_values is not None
        packing, shared = self.packing, self.packing.shared_prefix
        keys, values = (packing.rectangles(states, dim=2) for states in self.keys_and_values)
        prefix_key, prefix_value = (states[:, :, :shared] for states in self.keys_and_values)
        counts = packing.row_counts()
        queries = query[0, :, : len(self.offsets)].transpose(0, 1).split(counts)  # [rows, A, D]
        rectangles = zip(
            queries, self.offsets.split(counts), keys, values, packing.real_tokens(), strict=True
        )
        outputs = []
        for q, offsets, k, v, real in rectangles:
            k, v = _prepend(prefix_key, k), _prepend(prefix_value, v)  # [rows, key heads, P + W, D]
            read = torch.arange(-shared, real.shape[1], device=real.device)  # [P + W], as in `_make_mask`
            mask = read <= offsets[:, None] if module.is_causal else real  # [rows, P + W]; encoders: P = 0
            if sliding_window is not None:
                mask = mask & ((offsets[:, None] - read).abs() < sliding_window)
            options["attention_mask"] = None if bool(mask.all()) else mask[:, None, None]
            attended = sdpa_attention_forward(module, q[:, :, None], k, v, **options)[0]  # [rows, 1, A, D]
            outputs.append(attended.transpose(0, 1))
        return torch.cat([*outputs, outputs[-1][:, -1:].expand(-1, self.filling, -1, -1)], dim=1)


class _KeysFound(Exception):
    """Ends a call of a block inside its attention."""


def _choose_widths(lengths: Sequence[int]) -> list[int]:
    """Choose the width of the rectangle of each row; `lengths` are descending."""
    widths: list[int] = []
    for length in lengths:
        widths.append(widths[-1] if widths and length >= MIN_FILL * widths[-1] else length)
    return widths


# --- Attention ---


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | ReadTokens | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute SDPA attention, within the rows of a packed sequence if there is a packing.

    The signature is that of transformers' attention functions.

    Args:
        module: The attention module.
        query: [1, A, T, D].
        key: [1, key heads, T, D].
        value: [1, key heads, T, D].
        attention_mask: The mask of a pass without packing; ignored otherwise.
        packing: The rows of the sequence; or the only tokens of them that are computed; None for an ordinary batch.
        sliding_window: The number of tokens that a token reads, itself among them.
        options: Passed to SDPA.

    Returns:
        [1, T, A, D], and None for the attention weights.
    """
    if packing is None:
        options["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if isinstance(packing, ReadTokens):
        if packing.keys_and_values is None:
            packing.keys_and_values = key, value
            raise _KeysFound
        return packing.attend(module, query, sliding_window, **options), None
    shared, causal, device = packing.shared_prefix, bool(module.is_causal), query.device
    prefix_query, prefix_key, prefix_value = (states[:, :, :shared] for states in (query, key, value))
    outputs = []
    if shared:
        mask = _make_mask(shared, 0, None, sliding_window, causal, device)
        attended = sdpa_attention_forward(module, prefix_query, prefix_key, prefix_value, mask, **options)[0]
        outputs.append(attended)  # [1, P, A, D]
    rectangles = (packing.rectangles(states, dim=2) for states in (query, key, value))
    for q, k, v, real in zip(*rectangles, packing.real_tokens(), strict=True):  # q: [rows, A, W, D]
        mask = _make_mask(q.shape[2], shared, real, sliding_window, causal, device)
        k, v = _prepend(prefix_key, k), _prepend(prefix_value, v)  # [rows, key heads, P + W, D]
        attended = sdpa_attention_forward(module, q, k, v, mask, **options)[0]  # [rows, W, A, D]
        outputs.append(attended.reshape(1, -1, *attended.shape[2:]))  # [1, rows * W, A, D]
    return torch.cat(outputs, dim=1), None


def _prepend(prefix: Tensor, states: Tensor) -> Tensor:
    """Put the states of the shared prefix, [1, heads, P, D], before those of each row, [rows, heads, W, D]."""
    if not prefix.shape[2]:
        return states
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)


def _make_mask(
    width: int, shared: int, real: Tensor | None, window: int | None, causal: bool, device: torch.device
) -> Tensor | None:
    """Make the attention mask of a rectangle.

    Args:
        width: W.
        shared: P, the tokens of the shared prefix, which every row reads before its own.
        real: bool [rows, W]; None if all tokens are real.
        window: The sliding window, or None.
        causal: Whether a token reads only those before it.
        device: The device of the mask.

    Returns:
        bool [rows or 1, 1, W, P + W], True where a token reads another; None if SDPA does so without a mask.
    """
    needs_band = window is not None and shared + width > window
    if causal and not shared and not needs_band:
        return None  # copies follow the real tokens, which do not read them
    if not causal and not needs_band and (real is None or bool(real.all())):
        return None
    reader = torch.arange(width, device=device)[:, None]  # [W, 1], positions after the prefix
    read = torch.arange(-shared, width, device=device)  # [P + W], the prefix has negative positions
    mask = torch.ones(width, shared + width, dtype=torch.bool, device=device)
    if causal:
        mask &= read <= reader
    if window is not None and needs_band:
        mask &= (reader - read).abs() < window
    if causal or real is None:
        return mask[None, None]
    mask = mask & real[:, None]  # [rows, W, W]: an encoder shares no prefix
    itself = torch.eye(width, dtype=torch.bool, device=device)  # a token that reads nothing would become NaN
    return (mask | itself)[:, None]


# --- Which backbones can be packed ---


@torch.no_grad()
def enable_packing(backbone: PreTrainedModel, stack: LayerStack) -> int | None:
    """Switch the backbone to packed attention if it then computes packed rows correctly.

    It is tried on six tokens: two packed rows must get the states that they get alone. Only SDPA attention is replaced.

    Returns:
        The index of a row's first position, or None if packing is not supported. The backbone then keeps its attention.
    """
    if backbone.config._attn_implementation != "sdpa":
        return None
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)  # for passes without packing
    first_position = _try_packing(backbone, stack, ATTENTION_NAME)
    if first_position is None:
        backbone.set_attn_implementation("sdpa")
    return first_position


@torch.no_grad()
def mixes_by_attention(backbone: PreTrainedModel, stack: LayerStack) -> bool:
    """Return whether tokens mix by softmax attention alone, so that their number may change between blocks.

    Then rows can be packed with SDPA attention in place of the backbone's own, which is put back.
    """
    attention = backbone.config._attn_implementation
    AttentionInterface.register(TRIAL_NAME, _packed_attention_without_softcap)
    AttentionMaskInterface.register(TRIAL_NAME, sdpa_mask)
    first_position = _try_packing(backbone, stack, TRIAL_NAME)
    backbone.set_attn_implementation(attention or "eager")
    return first_position is not None


def _packed_attention_without_softcap(*states: Any, softcap: float | None = None, **options: Any) -> Any:
    """Compute `packed_attention` without the soft cap of attention weights, which SDPA refuses. Only for a trial."""
    return packed_attention(*states, **options)


def _try_packing(backbone: PreTrainedModel, stack: LayerStack, attention: str) -> int | None:
    """Switch the backbone to an attention; return a row's first position, or None if packed rows are wrong."""
    config = backbone.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or []) <= PACKABLE_LAYER_TYPES:
        return None
    training = backbone.training
    backbone.eval()
    first_position = _find_first_position(backbone, stack, config.pad_token_id, attention)
    backbone.train(training)
    return first_position


def _find_first_position(
    backbone: PreTrainedModel, stack: LayerStack, pad_token_id: int | None, attention: str
) -> int | None:
    """Find the first position with which packed rows get the states that they get alone; switch to `attention`."""
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]], device=backbone.device)  # [1, T], rows of four and of two tokens
    try:
        backbone.set_attn_implementation(attention)
        rows = [_run(backbone, stack, ids[:, :4]), _run(backbone, stack, ids[:, 4:])]
        alone = torch.cat(rows, dim=1)  # [L, T, H]
        # RoBERTa's first position is the id of its padding token + 1
        for first_position in (0, (pad_token_id or 0) + 1):
            packed, packed_last = _run_packed(backbone, stack, ids, first_position)
            # each layer, because a block that averages all tokens hides what differs before it
            states = [*zip(packed, alone, strict=True), (packed_last, alone[-1, [2, 4]])]
            if all(are_close(*each, alone.dtype) for each in states):
                return first_position
    # it does not accept `packing`, its attention cannot be replaced, or its blocks shape the packed rows otherwise
    except (TypeError, ValueError, AttributeError, RuntimeError):
        pass
    return None


def _run_packed(
    backbone: PreTrainedModel, stack: LayerStack, ids: Tensor, first_position: int
) -> tuple[Tensor, Tensor]:
    """Run rows of four and of two tokens, packed.

    Args:
        backbone: The model.
        stack: Its blocks.
        ids: int64 [1, T].
        first_position: The index of a row's first position.

    Returns:
        [L, T, H], the states after each block; and [2, H], the last states of the third and the fifth token, which the
        last block computes alone.
    """
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=ids.device)  # [R, S]
    packing = Packing(mask)
    positions = first_position + packing.pack(mask.cumsum(dim=1) - 1)  # [1, T]
    inputs = {"position_ids": positions, "attention_mask": NO_MASK.to(ids.device), "packing": packing}
    reads = ReadTokens(packing, torch.tensor([2, 0], device=ids.device))
    last = run_to(
        backbone, stack, [stack.num_layers], _ignore, dim=1, narrow=reads.narrow, input_ids=ids, **inputs
    )
    return _run(backbone, stack, ids, **inputs), last[0, :2]


def _ignore(_: int, __: Tensor) -> None:
    """Keep all entries."""


def _run(backbone: PreTrainedModel, stack: LayerStack, ids: Tensor, **inputs: Any) -> Tensor:
    """Return the states [L, T, H] after each block. ids: int64 [1, T]."""
    states: list[Tensor] = []

    def record(_: int, hidden: Tensor) -> None:
        states.append(hidden[0])

    run_to(backbone, stack, range(1, stack.num_layers + 1), record, input_ids=ids, **inputs)
    return torch.stack(states)


def are_close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two tensors are equal up to rounding in a dtype."""
    return bool((a - b).float().norm() <= torch.finfo(dtype).eps ** 0.5 * b.float().norm())
