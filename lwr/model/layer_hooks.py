"""The one mechanism: watch a backbone's blocks in its own forward pass, let rows go, stop where nobody looks deeper.

The blocks of a Hugging Face backbone live in one `ModuleList`. A forward pre-hook on block k sees the hidden
state after k blocks and may change it, whatever the architecture does inside; no forward pass is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class UnsupportedBackbone(ValueError):
    """A backbone whose layers can't be watched; the message says why."""


@dataclass(frozen=True)
class LayerStack:
    """A backbone as the depth mechanism sees it."""

    blocks: nn.ModuleList
    norm: nn.Module  # after the last block; Identity where each block normalises its own output
    causal: bool  # no token sees a later one: the last token has read everything
    unused: list[nn.Module]  # run after `norm` without touching the hidden state, e.g. BERT's pooler

    @property
    def num_layers(self) -> int:
        return len(self.blocks)


@dataclass(frozen=True)
class Part:
    """Rows that blocks may compute apart from the others.

    where: int64 positions along `dim` of the hidden state. repeats: how many of these, the first, are in every part.
    inputs: what a block gets by name that is a part's own.
    """

    where: Tensor
    repeats: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)


class _DeepEnough(Exception):
    """Ends a forward pass from inside a hook."""


def run_to(
    backbone: nn.Module,
    stack: LayerStack,
    layers: Sequence[int],
    look: Callable[[int, Tensor], Tensor | None],
    dim: int = 0,
    parts: Callable[[], Sequence[Part]] | None = None,
    **inputs,
) -> None:
    """One forward pass with a `look(layer, hidden state)` at each of `layers`, ascending. No later block runs.

    The hidden state of layer k in 1..depth is [rows, tokens, hidden], after k blocks and *before* the final
    norm: `look` applies `stack.norm`, so that it may do so to the positions it keeps alone. It returns None, or
    what goes on: int64 positions along `dim` of the hidden state, rows (0) or, of rows packed into one sequence,
    tokens (1). Later blocks compute nothing for the others.

    parts: of the rows that are here when it is called. Each block then computes one after the other, which takes less
    memory and stays in a processor's caches. Without gradients only: what is checkpointed runs once.

    Hooks run outside Hugging Face's gradient checkpointing, hence once, and what they compute is kept.
    """
    deepest = max(layers)
    size = inputs["input_ids"].shape[: dim + 1]
    left: Tensor | None = None  # positions of the batch along dim; None: nobody was let go
    apart: Sequence[Part] = ()  # those of the rows here, once a block has asked

    def at(layer: int, hidden: Tensor) -> Tensor:
        nonlocal left, apart
        kept = look(layer, hidden) if layer in layers else None
        if layer == deepest and layer < stack.num_layers:
            raise _DeepEnough
        if kept is None:
            return hidden
        left, apart = kept if left is None else left[kept], ()
        return hidden.index_select(dim, kept)

    def before(layer: int, args: tuple, kwargs: dict[str, Any]):
        hidden = at(layer, args[0] if args else kwargs["hidden_states"])
        if left is None:
            return None
        # the model's own loop doesn't know that rows are gone: all but the hidden state comes whole each time
        others = {name: _at(value, left, size) for name, value in kwargs.items()}
        if args:
            return (hidden, *_at(args[1:], left, size)), others
        return (), others | {"hidden_states": hidden}

    def those_here() -> Sequence[Part]:
        nonlocal apart
        apart = apart or parts()
        return apart

    with ExitStack() as hooks:
        for k in range(1, min(deepest, stack.num_layers - 1) + 1):
            hooks.enter_context(
                stack.blocks[k].register_forward_pre_hook(
                    lambda _, args, kwargs, k=k: before(k, args, kwargs), with_kwargs=True
                )
            )
        if parts:
            for block in stack.blocks[:deepest]:
                hooks.enter_context(_in_parts(block, those_here, dim))
        if deepest == stack.num_layers:
            hooks.enter_context(
                stack.blocks[-1].register_forward_hook(
                    lambda _, __, output: look(stack.num_layers, _hidden_state(output))
                )
            )
        try:
            backbone(**inputs)
        except _DeepEnough:
            pass


def _at(value: Any, positions: Tensor, size: torch.Size) -> Any:
    """An argument of a block, at some positions alone: masks, positions, rotary tables, also in tuples.

    size: how a tensor begins that has them, [batch] or [1, tokens].
    """
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[: len(size)] == size:
        return value.index_select(len(size) - 1, positions)
    if isinstance(value, tuple):
        return tuple(_at(each, positions, size) for each in value)
    return value


@contextmanager
def _in_parts(block: nn.Module, parts: Callable[[], Sequence[Part]], dim: int) -> Iterator[None]:
    """Whoever calls the block, has it compute the first part, then the others, and gets all of them."""
    whole: dict[str, Any] = {}

    def of(part: Part) -> tuple[tuple, dict[str, Any]]:
        args, kwargs = whole["args"], whole["kwargs"]
        size = (args[0] if args else kwargs["hidden_states"]).shape[: dim + 1]
        named = {name: _at(value, part.where, size) for name, value in kwargs.items()}
        return _at(args, part.where, size), named | part.inputs

    def first(_, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        whole.update(args=args, kwargs=kwargs)
        return of(parts()[0])

    def others(_, __, output: Any) -> Any:
        outputs = [output]
        for part in parts()[1:]:
            args, kwargs = of(part)
            outputs.append(block.forward(*args, **kwargs))
        whole.clear()
        return _together(outputs, parts()[0].repeats, dim)

    with block.register_forward_pre_hook(first, with_kwargs=True), block.register_forward_hook(others):
        yield


def _together(outputs: Sequence[Any], repeats: int, dim: int) -> Any:
    """What a block returned for each part, as it would have for all rows. Beside the hidden state that is nothing, or
    the same for all, as T5's bias of positions."""
    states = [_hidden_state(output) for output in outputs]
    own = [state.narrow(dim, repeats, state.shape[dim] - repeats) for state in states[1:]]
    hidden = torch.cat([states[0], *own], dim)
    return hidden if isinstance(outputs[0], Tensor) else (hidden, *outputs[0][1:])


def _hidden_state(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Of what a block returns."""
    return output if isinstance(output, Tensor) else output[0]


def find_blocks(backbone: PreTrainedModel) -> nn.ModuleList:
    """Raises UnsupportedBackbone where there is not one list of them."""
    depth = backbone.config.get_text_config().num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise UnsupportedBackbone(
            f"{type(backbone).__name__}: expected one list of its {depth} blocks, found {len(lists)}; "
            "a backbone must keep all its blocks in a single ModuleList"
        )
    return lists[0]


@torch.no_grad()
def find_layer_stack(backbone: PreTrainedModel) -> LayerStack:
    """Blocks, final norm and direction of a backbone, read off forward passes over three tokens.

    Its cache is turned off for good: nothing here generates. Raises UnsupportedBackbone where there is not one
    list of blocks, or where more than one norm stands between the last block and the output.
    """
    kind = type(backbone).__name__
    if backbone.config.is_encoder_decoder:
        raise UnsupportedBackbone(f"{kind}: an encoder with a decoder; give one of the two")
    config = backbone.config.get_text_config()
    config.use_cache = False
    blocks = find_blocks(backbone)

    state: dict[str, Tensor] = {}
    later: list[tuple[nn.Module, Tensor]] = []  # modules that ran after the last block, with their outputs
    inside = set(blocks.modules())
    outside = [m for m in backbone.modules() if m not in inside and blocks not in m.modules()]

    def after_block(_, __, output):
        state["last"] = _hidden_state(output)

    def after_any(module, _, output):
        if "last" in state and isinstance(output, Tensor):
            later.append((module, output))

    def final_state(*ids: int) -> Tensor:
        ids = torch.tensor([ids], device=backbone.device)
        return backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    training, attention = backbone.training, backbone.config._attn_implementation
    # eager: the backbone may still be on the CPU, where flash attention is not
    backbone.eval().set_attn_implementation("eager")
    with ExitStack() as hooks:
        hooks.enter_context(blocks[-1].register_forward_hook(after_block))
        for module in outside:
            hooks.enter_context(module.register_forward_hook(after_any))
        output = final_state(1, 2, 3)
    if not output.isfinite().all():
        raise UnsupportedBackbone(
            f"{kind}: its output is not finite: damaged weights, or a dtype they do not fit into"
        )
    felt = (output - final_state(1, 2, 4)).norm(dim=-1)[0]  # how each token feels that the third is another
    causal = bool(felt[:2].max() < 1e-3 * felt[2])  # not 0: experts compute in batches that the others shape
    backbone.train(training).set_attn_implementation(attention)

    if torch.equal(state["last"], output):
        norm = nn.Identity()
    else:
        norm = next((module for module, result in later if torch.equal(result, output)), None)
        if norm is None or not torch.equal(norm(state["last"]), output):
            raise UnsupportedBackbone(
                f"{kind}: between its last block and its output stands more than one norm, "
                "so a shallower hidden state cannot be treated as the deepest is"
            )
    parts = set(norm.modules())
    unused = [m for m, result in later if m not in parts and not torch.equal(result, output)]
    return LayerStack(blocks, norm, causal, unused)
