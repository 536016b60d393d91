"""The one mechanism: watch a backbone's blocks during its own forward pass, and stop where nobody looks deeper.

The blocks of a Hugging Face backbone live in one `ModuleList`. A forward pre-hook on block k sees the hidden
state after k blocks, whatever the architecture does inside; no forward pass is written again here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class UnsupportedBackbone(ValueError):
    """A backbone whose layers can't be watched; the message says why."""


@dataclass(frozen=True)
class Trunk:
    """A backbone as the depth mechanism sees it."""

    blocks: nn.ModuleList
    norm: nn.Module  # after the last block; Identity where each block normalises its own output
    causal: bool  # no token sees a later one: the last token has read everything
    unused: list[nn.Module]  # run after `norm` without touching the hidden state, e.g. BERT's pooler

    @property
    def depth(self) -> int:
        return len(self.blocks)


class _DeepEnough(Exception):
    """Ends a forward pass from inside a hook."""


def run_to(
    backbone: nn.Module, trunk: Trunk, layers: Sequence[int], read: Callable[[Tensor], Tensor], **inputs
) -> list[Tensor]:
    """One forward pass; `read(hidden state)` at each of `layers`, in that order. No later block runs.

    The hidden state of layer k in 1..depth is [batch, tokens, hidden], after k blocks and *before* the final
    norm: `read` applies `trunk.norm`, so that it may do so to the positions it keeps alone.
    Hooks run outside Hugging Face's gradient checkpointing, hence once, and what they compute is kept.
    """
    deepest = max(layers)
    seen: dict[int, Tensor] = {}

    def see(layer: int, hidden: Tensor) -> None:
        if layer in layers:
            seen[layer] = read(hidden)
        if layer == deepest and layer < trunk.depth:
            raise _DeepEnough

    with ExitStack() as hooks:
        for k in range(1, min(deepest, trunk.depth - 1) + 1):
            hooks.enter_context(_before(trunk.blocks[k], lambda hidden, k=k: see(k, hidden)))
        if deepest == trunk.depth:
            hooks.enter_context(_after(trunk.blocks[-1], lambda hidden: see(trunk.depth, hidden)))
        try:
            backbone(**inputs)
        except _DeepEnough:
            pass
    return [seen[k] for k in layers]


def _before(block: nn.Module, see: Callable[[Tensor], None]):
    def hook(_, args, kwargs):
        see(args[0] if args else kwargs["hidden_states"])

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def _after(block: nn.Module, see: Callable[[Tensor], None]):
    def hook(_, __, output):
        see(output if isinstance(output, Tensor) else output[0])

    return block.register_forward_hook(hook)


@torch.no_grad()
def find_trunk(backbone: PreTrainedModel) -> Trunk:
    """Blocks, final norm and direction of a backbone, read off forward passes over three tokens.

    Its cache is turned off for good: nothing here generates. Raises UnsupportedBackbone where there is not one
    list of blocks, or where more than one norm stands between the last block and the output.
    """
    kind = type(backbone).__name__
    if backbone.config.is_encoder_decoder:
        raise UnsupportedBackbone(f"{kind}: an encoder with a decoder; give one of the two")
    config = backbone.config.get_text_config()
    config.use_cache = False
    depth = config.num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise UnsupportedBackbone(
            f"{kind}: expected one list of its {depth} blocks, found {len(lists)}; "
            "a backbone must keep all its blocks in a single ModuleList"
        )
    blocks = lists[0]

    state: dict[str, Tensor] = {}
    later: list[tuple[nn.Module, Tensor]] = []  # modules that ran after the last block, with their outputs
    inside = set(blocks.modules())
    outside = [m for m in backbone.modules() if m not in inside and blocks not in m.modules()]

    def after_block(_, __, output):
        state["last"] = output if isinstance(output, Tensor) else output[0]

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
    return Trunk(blocks, norm, causal, unused)
