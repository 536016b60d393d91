"""Choose which activations a training step keeps for its backward pass and which it computes again.

Selective activation checkpointing: torch.utils.checkpoint, `create_selective_checkpoint_contexts`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from lwr.config.training import Recompute

MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


def set_recompute(backbone: PreTrainedModel, blocks: nn.ModuleList, recompute: Recompute) -> None:
    """Change the forward pass of a backbone so that it keeps fewer activations.

    Args:
        backbone: The model.
        blocks: Its transformer blocks.
        recompute: `nothing` keeps all activations. `cheap` recomputes what lies between the matrix products of a
            feed-forward layer: half of a block's activations and hardly any of its time. It has no effect on blocks
            without a module for their feed-forward layer. `blocks` recomputes everything inside a block.

    Raises:
        ValueError: The backbone does not support `blocks`.
    """
    if recompute == "blocks":
        if not backbone.supports_gradient_checkpointing:
            raise ValueError(
                f"{type(backbone).__name__} can't compute its blocks again; set recompute: cheap"
            )
        # the reentrant implementation fails under DDP and ignores keyword arguments
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    elif recompute == "cheap":
        for block in blocks:
            feed_forward = find_feed_forward(block)
            if feed_forward is not None:
                _keep_only_products(feed_forward)


def find_feed_forward(block: nn.Module) -> nn.Module | None:
    """Return the part of a block that holds all of its widest matrices; None if several parts do, as in BERT."""

    def widest(module: nn.Module) -> int:
        return max((max(m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear)), default=0)

    holders = [part for part in block.children() if widest(part) == widest(block)]
    return holders[0] if len(holders) == 1 else None


def _keep_only_products(module: nn.Module) -> None:
    """Replace a module's forward by one that keeps the results of matrix products and recomputes the rest."""

    def policy(_, operation, *args, **kwargs) -> CheckpointPolicy:
        return (
            CheckpointPolicy.MUST_SAVE if operation in MATRIX_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
        )

    forward, contexts = module.forward, partial(create_selective_checkpoint_contexts, policy)

    def checkpointed_forward(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    module.forward = checkpointed_forward
