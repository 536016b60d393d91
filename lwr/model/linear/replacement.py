"""Replace the linear layers in the blocks of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lwr.common.progress import log


class InferenceLinear(nn.Module):
    """A linear layer that computes no gradients.

    Attributes:
        in_features: The numbers of an input.
        out_features: The numbers of an output.
    """

    def __init__(self, in_features: int, out_features: int):
        """Set the sizes."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features


def replace_linear_layers(
    blocks: nn.ModuleList,
    is_replaced: Callable[[nn.Module], bool],
    make: Callable[[Any], nn.Module],
    setting: str | None = None,
) -> int:
    """Replace linear layers in the blocks of a backbone, in place, and return their number.

    A layer with several parents gets one replacement.

    Args:
        blocks: The blocks.
        is_replaced: Whether a module is such a layer.
        make: Returns the replacement of a layer.
        setting: The key and value in the config that ask for it. How many weights are in none of these layers, such as
            those of experts that are one tensor, is then logged with it; they stay as they are. None: nothing is
            logged.
    """
    found = [
        (parent, name, child)
        for parent in blocks.modules()
        for name, child in parent.named_children()
        if is_replaced(child)
    ]
    layers: dict[Any, Any] = dict.fromkeys(child for _, _, child in found)
    if layers and setting is not None:
        weights = sum(weight.numel() for weight in blocks.parameters() if weight.ndim > 1)
        if others := weights - sum(layer.weight.numel() for layer in layers):
            log(
                f"{setting}: {others:,} of the blocks' {weights:,} weights are in no such layer, and stay as they are"
            )
    for layer in layers:
        layers[layer] = make(layer).train(layer.training)
    for parent, name, child in found:
        setattr(parent, name, layers[child])
    return len(layers)
