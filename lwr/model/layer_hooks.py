"""Observe the blocks of a backbone in its own forward pass: read hidden states, drop rows, stop early, resume.

The blocks of a Hugging Face backbone live in one `ModuleList`. A forward pre-hook on block k receives the hidden state
after k blocks and may change it, whatever the architecture computes inside. No forward pass is re-implemented.

Gradient checkpointing: transformers checkpoints the `forward` of a block, and PyTorch runs hooks around `forward`. So
the hooks run once, in the forward pass only, and the results of a callback are kept for the backward pass.

Letters in shape comments: R rows, S tokens of a padded row, T tokens of a packed sequence, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class UnsupportedBackbone(ValueError):
    """A backbone whose layers cannot be observed; the message gives the reason."""


@dataclass(frozen=True)
class LayerStack:
    """The parts of a backbone that reading its layers needs.

    Attributes:
        blocks: The transformer blocks. Layer k is the state after k of them, then `norm`.
        norm: The backbone's norm after the last block; Identity if each block normalises its own output.
        causal: Whether a token reads only the tokens before it, so that the last token has read all of them.
        wraps_state: Whether a block returns its hidden state inside a tuple.
        unused: Modules that run after `norm` and do not change the hidden state, such as BERT's pooler.
    """

    blocks: nn.ModuleList
    norm: nn.Module
    causal: bool
    wraps_state: bool
    unused: list[nn.Module]

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)


@dataclass(frozen=True)
class Chunk:
    """Rows that a block may compute separately from the rest of the batch.

    Attributes:
        positions: int64, the chunk's entries of the hidden state along `dim`; it begins with the shared prefix.
        shared_prefix: The number of leading positions that every chunk repeats.
        block_inputs: The keyword arguments of a block that differ per chunk.
    """

    positions: Tensor
    shared_prefix: int = 0
    block_inputs: Mapping[str, Any] = field(default_factory=dict)


class EndOfPass(Exception):
    """Ends a forward pass from inside a hook or a callback."""


LayerCallback = Callable[[int, Tensor], Tensor | None]
"""Receives a layer and its hidden state; returns the positions that remain, or None to keep all.

It may raise `EndOfPass`, so that no deeper block runs."""

BlockHook = Callable[[nn.Module, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]]]
"""A forward pre-hook: receives a block and its arguments, positional and named; returns other arguments."""


def run_to(
    backbone: nn.Module,
    stack: LayerStack,
    layers: Sequence[int],
    on_layer: LayerCallback,
    dim: int = 0,
    make_chunks: Callable[[], Sequence[Chunk]] | None = None,
    start: tuple[int, Tensor] | None = None,
    end: int | None = None,
    narrow: BlockHook | None = None,
    **inputs: Any,
) -> Tensor:
    """Run one forward pass up to a layer, calling `on_layer` at each of `layers` in ascending order.

    Args:
        backbone: The model that is run.
        stack: Its blocks.
        layers: Layers in 1..num_layers.
        on_layer: Called with a layer and its hidden state [R, S, H] or [1, T, H] *before* the final norm, so that it
            may apply `stack.norm` to the tokens it needs alone. It returns None, or the int64 positions along `dim`
            that remain. Later blocks do not compute the others.
        dim: The dimension of the hidden state along which entries are dropped: 0 (rows), or 1 (tokens of rows packed
            into one sequence).
        make_chunks: Returns the chunks of the rows that remain when it is called. Each block then computes one chunk
            after the other, which takes less memory and stays in a processor's caches. Only for passes without
            gradients.
        start: A layer and its hidden state, with which the pass begins: the blocks up to that layer do not compute, and
            the next one reads that state. The backbone makes masks, positions and rotary tables from `inputs`, whose
            token ids then only give the shape. None: the pass begins with the embeddings.
        end: The last layer of the pass; None: the deepest of `layers`. No block after it runs.
        narrow: Replaces the arguments of the last block that runs by those for fewer tokens. `on_layer` gets the state
            of these alone.
        inputs: Keyword arguments of the backbone.

    Returns:
        The hidden state at the last layer that was reached, of the entries that remain.
    """
    deepest = max(layers) if end is None else end
    forward = _ForwardPass(
        stack,
        layers,
        deepest,
        on_layer,
        dim,
        make_chunks,
        start,
        narrow,
        inputs["input_ids"].shape[: dim + 1],
    )
    with ExitStack() as hooks, suppress(EndOfPass):
        forward.install(hooks)
        backbone(**inputs)
    return forward.last_state()


class _ForwardPass:
    """The hooks of one forward pass, and which entries of the batch remain in it."""

    def __init__(
        self,
        stack: LayerStack,
        layers: Sequence[int],
        deepest: int,
        on_layer: LayerCallback,
        dim: int,
        make_chunks: Callable[[], Sequence[Chunk]] | None,
        start: tuple[int, Tensor] | None,
        narrow: BlockHook | None,
        batch_shape: torch.Size,
    ):
        """Prepare a pass over a batch whose tensors begin with `batch_shape`, [R] or [1, T]."""
        self.stack, self.layers, self.deepest = stack, layers, deepest
        self.on_layer, self.dim, self.make_chunks = on_layer, dim, make_chunks
        self.start, self.narrow, self.batch_shape = start, narrow, batch_shape
        self.state: Tensor | None = None  # at the deepest layer that was reached
        self.remaining: Tensor | None = None  # int64, positions in the original batch along dim; None: all
        self.chunks: Sequence[Chunk] = ()  # of the remaining rows; empty until a block needs them

    def install(self, hooks: ExitStack) -> None:
        """Register the hooks on the blocks; closing `hooks` removes them."""
        blocks, last = self.stack.blocks, self.stack.num_layers
        first = 0
        if self.start is not None:
            first, state = self.start
            hooks.enter_context(_skip_blocks(blocks[:first], self.stack.wraps_state))
            resume = partial(_replace_state, state)
            hooks.enter_context(blocks[first].register_forward_pre_hook(resume, with_kwargs=True))
        for layer in range(first + 1, min(self.deepest, last - 1) + 1):
            before = partial(self.before_block, layer)
            hooks.enter_context(blocks[layer].register_forward_pre_hook(before, with_kwargs=True))
        if self.make_chunks is not None:
            current_chunks = partial(self.current_chunks, self.make_chunks)
            for block in blocks[first : self.deepest]:
                _ChunkedBlock(current_chunks, self.dim).install(block, hooks)
        if self.narrow is not None:
            last_to_run = blocks[self.deepest - 1]
            hooks.enter_context(last_to_run.register_forward_pre_hook(self.narrow, with_kwargs=True))
        if self.deepest == last:
            hooks.enter_context(blocks[-1].register_forward_hook(self.after_last_block))

    def before_block(self, layer: int, _: nn.Module, args: tuple, kwargs: dict[str, Any]):
        """Visit the layer before the block after it runs, and replace the block's arguments if rows were dropped."""
        hidden = self.visit(layer, args[0] if args else kwargs["hidden_states"])
        if self.remaining is None:
            return None
        # The model's own loop passes masks, positions and the like of the original batch to every block.
        others = {name: select(value, self.remaining, self.batch_shape) for name, value in kwargs.items()}
        if args:
            return (hidden, *select(args[1:], self.remaining, self.batch_shape)), others
        return (), others | {"hidden_states": hidden}

    def visit(self, layer: int, hidden: Tensor) -> Tensor:
        """Call back at one of the requested layers; return the hidden state of the entries that remain.

        Raises:
            EndOfPass: No deeper layer is requested, or the callback ends the pass.
        """
        try:
            kept = self.on_layer(layer, hidden) if layer in self.layers else None
        except EndOfPass:
            self.state = hidden
            raise
        if kept is not None:
            self.remaining = kept if self.remaining is None else self.remaining[kept]
            self.chunks = ()
            hidden = hidden.index_select(self.dim, kept)
        if layer == self.deepest:
            self.state = hidden
            raise EndOfPass
        return hidden

    def after_last_block(self, _: nn.Module, __: tuple, output: Any) -> None:
        """Call back at the last layer, which no block follows.

        If rows or tokens were dropped, end the pass: what a backbone still does to its output may need all of them.
        """
        self.state = _hidden_state(output)
        self.on_layer(self.stack.num_layers, self.state)
        if self.remaining is not None or self.narrow is not None:
            raise EndOfPass

    def last_state(self) -> Tensor:
        """Return the hidden state at the deepest layer that was reached. The pass must be over."""
        assert self.state is not None
        return self.state

    def current_chunks(self, make_chunks: Callable[[], Sequence[Chunk]]) -> Sequence[Chunk]:
        """Return the chunks of the remaining rows, made once after each change of the rows."""
        if not self.chunks:
            self.chunks = make_chunks()
        return self.chunks


@contextmanager
def _skip_blocks(blocks: Iterable[nn.Module], wraps_state: bool) -> Iterator[None]:
    """Let blocks return the hidden state that they are given, inside a tuple if `wraps_state`."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden,) if wraps_state else hidden

    replaced = [
        (block, vars(block).get("forward")) for block in blocks
    ]  # training may have replaced it before
    for block, _ in replaced:
        block.forward = skip
    try:
        yield
    finally:
        for block, forward in replaced:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _replace_state(
    state: Tensor, _: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Replace the hidden state in the arguments of a block."""
    return ((state, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": state})


class _ChunkedBlock:
    """Hooks by which calling a block computes its chunks one after the other and returns their outputs joined."""

    def __init__(self, current_chunks: Callable[[], Sequence[Chunk]], dim: int):
        """Take the chunks of each call from `current_chunks`; their positions are along `dim`."""
        self.current_chunks, self.dim = current_chunks, dim
        self.args: tuple = ()  # of the call for all rows
        self.kwargs: dict[str, Any] = {}

    def install(self, block: nn.Module, hooks: ExitStack) -> None:
        """Register the hooks on `block`; closing `hooks` removes them."""
        hooks.enter_context(block.register_forward_pre_hook(self.before, with_kwargs=True))
        hooks.enter_context(block.register_forward_hook(self.after))

    def before(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Replace the arguments for all rows by those for the first chunk."""
        self.args, self.kwargs = args, kwargs
        return self.arguments_of(self.current_chunks()[0])

    def after(self, block: nn.Module, _: tuple, output: Any) -> Any:
        """Compute the other chunks and join their outputs to that of the first."""
        first, *others = self.current_chunks()
        outputs = [output]
        for chunk in others:
            args, kwargs = self.arguments_of(chunk)
            outputs.append(block.forward(*args, **kwargs))
        self.args, self.kwargs = (), {}  # free their tensors
        return _join_outputs(outputs, first.shared_prefix, self.dim)

    def arguments_of(self, chunk: Chunk) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of the block for one chunk."""
        hidden = self.args[0] if self.args else self.kwargs["hidden_states"]
        batch_shape = hidden.shape[: self.dim + 1]
        named = {name: select(value, chunk.positions, batch_shape) for name, value in self.kwargs.items()}
        return select(self.args, chunk.positions, batch_shape), named | dict(chunk.block_inputs)


def select(value: Any, positions: Tensor, batch_shape: torch.Size) -> Any:
    """Select some positions of a block's argument: of masks, positions and rotary tables, also inside tuples.

    Args:
        value: The argument. Anything that does not begin with `batch_shape` is returned as it is.
        positions: int64, along the last dimension of `batch_shape`.
        batch_shape: The leading dimensions of a tensor that has one entry per position: [R] or [1, T].
    """
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[: len(batch_shape)] == batch_shape:
        return value.index_select(len(batch_shape) - 1, positions)
    if isinstance(value, tuple):
        return tuple(select(each, positions, batch_shape) for each in value)
    return value


def _join_outputs(outputs: Sequence[Any], shared_prefix: int, dim: int) -> Any:
    """Join a block's outputs for its chunks into its output for all rows.

    Some blocks return more than the hidden state; that is the same for all chunks, such as T5's position bias.
    """
    first, *others = [_hidden_state(output) for output in outputs]
    own = [state.narrow(dim, shared_prefix, state.shape[dim] - shared_prefix) for state in others]
    hidden = torch.cat([first, *own], dim)
    return hidden if isinstance(outputs[0], Tensor) else (hidden, *outputs[0][1:])


def _hidden_state(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden state in a block's output."""
    return output if isinstance(output, Tensor) else output[0]


# --- Finding the parts of a backbone ---


def find_blocks(backbone: PreTrainedModel) -> nn.ModuleList:
    """Find the list of a backbone's blocks.

    Raises:
        UnsupportedBackbone: The backbone has a decoder besides its encoder, or does not hold its blocks in one list.
    """
    if backbone.config.is_encoder_decoder:
        raise UnsupportedBackbone(
            f"{type(backbone).__name__}: an encoder with a decoder; give one of the two"
        )
    num_layers = backbone.config.get_text_config().num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    lists = [m for m in lists if not any(m in outer.modules() for outer in lists if outer is not m)]
    if len(lists) != 1:
        raise UnsupportedBackbone(
            f"{type(backbone).__name__}: expected one list of its {num_layers} blocks, found {len(lists)}; "
            "a backbone must keep all its blocks in a single ModuleList"
        )
    return lists[0]


@torch.no_grad()
def find_layer_stack(backbone: PreTrainedModel) -> LayerStack:
    """Find the blocks, final norm and direction of a backbone by running it on three tokens.

    The backbone's cache is turned off permanently, because nothing here generates text.

    Raises:
        UnsupportedBackbone: The backbone has a decoder besides its encoder, does not hold its blocks in one list,
            computes a value that is not finite, or applies more than one norm after its last block.
    """
    name = type(backbone).__name__
    backbone.config.get_text_config().use_cache = False
    blocks = find_blocks(backbone)
    with evaluating_eagerly(backbone):
        trace = _trace_end(backbone, blocks)
        if not trace.output.isfinite().all():
            raise UnsupportedBackbone(
                f"{name}: its output is not finite: damaged weights, or a dtype they do not fit into"
            )
        causal = _is_causal(backbone, trace.output)
    norm = _find_norm(trace, name)
    norm_modules = set(norm.modules())
    unused = [m for m, out in trace.later if m not in norm_modules and not torch.equal(out, trace.output)]
    return LayerStack(blocks, norm, causal, trace.wraps_state, unused)


@contextmanager
def evaluating_eagerly(backbone: PreTrainedModel) -> Iterator[None]:
    """Put the backbone into evaluation mode with eager attention inside the block.

    The backbone may still be on the CPU, where its own attention, such as flash attention, may not run.
    """
    training, attention = backbone.training, backbone.config._attn_implementation
    backbone.eval().set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.train(training).set_attn_implementation(attention or "eager")


@dataclass(frozen=True)
class _EndTrace:
    """The last steps of a forward pass.

    Attributes:
        last_state: [1, S, H] after the last block.
        later: The modules that ran after the last block, with their outputs.
        output: [1, S, H], the backbone's output.
        wraps_state: Whether the last block returned its state inside a tuple.
    """

    last_state: Tensor
    later: list[tuple[nn.Module, Tensor]]
    output: Tensor
    wraps_state: bool


def _trace_end(backbone: PreTrainedModel, blocks: nn.ModuleList) -> _EndTrace:
    """Run the backbone on three tokens and record what it computes after its last block."""
    last_outputs: list[Any] = []  # one, once the last block has run
    later: list[tuple[nn.Module, Tensor]] = []
    in_blocks = set(blocks.modules())
    outside = [m for m in backbone.modules() if m not in in_blocks and blocks not in m.modules()]

    def record_last_state(_, __, output):
        last_outputs.append(output)

    def record_later(module, _, output):
        if last_outputs and isinstance(output, Tensor):
            later.append((module, output))

    with ExitStack() as hooks:
        hooks.enter_context(blocks[-1].register_forward_hook(record_last_state))
        for module in outside:
            hooks.enter_context(module.register_forward_hook(record_later))
        output = _run_on_tokens(backbone, 1, 2, 3)
    if not last_outputs:
        raise UnsupportedBackbone(f"{type(backbone).__name__}: it does not call its blocks as modules")
    (last,) = last_outputs
    return _EndTrace(_hidden_state(last), later, output, not isinstance(last, Tensor))


def _run_on_tokens(backbone: PreTrainedModel, *ids: int) -> Tensor:
    """Return the backbone's output [1, S, H] for one row of token ids."""
    row = torch.tensor([ids], device=backbone.device)  # [1, S]
    return backbone(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state


def _is_causal(backbone: PreTrainedModel, output: Tensor) -> bool:
    """Return whether the states of the first two tokens stay the same when the third token is replaced.

    Args:
        backbone: The model.
        output: [1, 3, H] of tokens 1, 2, 3.
    """
    change = (output - _run_on_tokens(backbone, 1, 2, 4)).norm(dim=-1)[0]  # [3], of each token
    # Not exactly 0: experts compute tokens in batches, whose shape changes the last bits of a result.
    return bool(change[:2].max() < 1e-3 * change[2])


def _find_norm(trace: _EndTrace, name: str) -> nn.Module:
    """Find the module that turns the state after the last block into the backbone's output."""
    if torch.equal(trace.last_state, trace.output):
        return nn.Identity()
    norm = next((module for module, output in trace.later if torch.equal(output, trace.output)), None)
    if norm is None or not torch.equal(norm(trace.last_state), trace.output):
        raise UnsupportedBackbone(
            f"{name}: what it computes between its last block and its output is not one norm, so a shallower hidden "
            "state cannot be normalised as the deepest is"
        )
    return norm
