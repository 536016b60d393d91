"""What a training pass keeps for its way back, and what it computes again there.

Selective activation checkpointing: torch.utils.checkpoint, `create_selective_checkpoint_contexts`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from lwr.config.training import Recompute

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


def set_recompute(backbone: PreTrainedModel, blocks: nn.ModuleList, what: Recompute) -> None:
    """cheap: what stands between the matrix products of a feed-forward layer, half of what a block keeps and hardly
    any of its time, where a block has one module for it; blocks: everything inside a block.

    Raises ValueError where a backbone can't.
    """
    if what == "blocks":
        if not backbone.supports_gradient_checkpointing:
            raise ValueError(
                f"{type(backbone).__name__} can't compute its blocks again; set recompute: cheap"
            )
        # the reentrant kind fails under DDP and passes over keyword arguments
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    elif what == "cheap":
        for block in blocks:
            feed_forward = find_feed_forward(block)
            if feed_forward is not None:
                _keep_products_alone(feed_forward)


def find_feed_forward(block: nn.Module) -> nn.Module | None:
    """The part of a block that holds all its widest matrices; None where several share them, as in BERT."""

    def widest(module: nn.Module) -> int:
        return max((max(m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear)), default=0)

    holders = [part for part in block.children() if widest(part) == widest(block)]
    return holders[0] if len(holders) == 1 else None


def _keep_products_alone(module: nn.Module) -> None:
    def policy(_, operation, *args, **kwargs) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE

    forward, contexts = module.forward, partial(create_selective_checkpoint_contexts, policy)

    def lean_forward(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    module.forward = lean_forward
