"""Replace the linear layers in the blocks of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lwr.common.progress import log


def replace_linear_layers(
    blocks: nn.ModuleList,
    is_replaced: Callable[[nn.Module], bool],
    make: Callable[[Any], nn.Module],
    setting: str,
) -> int:
    """Replace linear layers in the blocks of a backbone, in place, and return their number.

    A layer with several parents gets one replacement. How many weights are in none of these layers, such as those of
    experts that are one tensor, is logged; they stay as they are.

    Args:
        blocks: The blocks.
        is_replaced: Whether a module is such a layer; it has a `weight`.
        make: Returns the replacement of a layer.
        setting: The key and value in the config that ask for it, for the log.
    """
    found = [
        (parent, name, child)
        for parent in blocks.modules()
        for name, child in parent.named_children()
        if is_replaced(child)
    ]
    layers: dict[Any, Any] = dict.fromkeys(child for _, _, child in found)
    weights = sum(weight.numel() for weight in blocks.parameters() if weight.ndim > 1)
    others = weights - sum(layer.weight.numel() for layer in layers)
    for layer in layers:
        layers[layer] = make(layer).train(layer.training)
    for parent, name, child in found:
        setattr(parent, name, layers[child])
    if layers and others:
        log(
            f"{setting}: {others:,} of the blocks' {weights:,} weights are in no such layer, and stay as they are"
        )
    return len(layers)
