"""Compute the linear layers of blocks in int8 on a CPU.

Each output of a weight matrix has a scale, and so has each token of an input, found when it comes. A token's result
therefore does not depend on the other tokens of its batch; with one scale for all, a few large activations would take
the digits of the others. Token-wise scales: Yao et al. 2022, ZeroQuant, arXiv 2206.01861, section 4.1.

The products are oneDNN's, through the operators that PyTorch's own int8 models use. They take plain integer tensors;
torch.ao's quantised modules rest on tensor types that PyTorch removes (pytorch/pytorch issue 184982).

Letters in shape comments: T tokens, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lwr.model.linear.replacement import InferenceLinear, replace_linear_layers

LARGEST = 127
"""The largest magnitude of an activation. Zero is 128: oneDNN has no fast kernel of signed ones on CPUs without AMX."""
WEIGHT_LIMITS = (127, 63)
"""Largest magnitudes of weights. CPUs without VNNI add pairs of products in 16 bits, which 63 * 255 * 2 fits into."""
ELEMENTS_PER_THREAD = 131_072
"""Elements of an input that are quantised at a time: 512 KiB, which stay in a core's cache from step to step."""


class Int8Linear(InferenceLinear):
    """A linear layer that multiplies in int8 and adds its bias in float32. It computes no gradients."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear | Conv1D, limit: int):
        """Quantise the weights of a layer.

        Args:
            linear: The layer, float32, on the CPU.
            limit: The largest magnitude of a quantised weight.
        """
        weight = linear.weight.detach()
        if isinstance(linear, Conv1D):
            weight = weight.t()
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs)
        scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / limit  # [O]
        integers = (weight / scales[:, None]).round().to(torch.int8).contiguous()  # [O, I]
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(integers, None))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, states: Tensor) -> Tensor:
        """Return float32 [..., O] of float32 [..., I].

        Raises:
            ValueError: The layer is in training mode.
        """
        if self.training:
            raise ValueError("int8 layers compute no gradients; train with precision float32 or bfloat16")
        flat = states.reshape(-1, self.in_features)  # [T, I]
        integers, scales = quantise_tokens(flat)
        out = multiply(integers, self.packed, self.scales, self.zeros)  # [T, O]
        if self.bias is None:
            out.mul_(scales)
        else:
            torch.addcmul(self.bias, out, scales, out=out)
        return out.view(*states.shape[:-1], self.out_features)


def quantise_tokens(states: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each token by its own largest magnitude.

    Args:
        states: float32 [T, I].

    Returns:
        uint8 [T, I], where 128 is zero; and the scales, float32 [T, 1].
    """
    integers = states.new_empty(states.shape, dtype=torch.int8)
    scales = states.new_empty(len(states), 1)
    tokens = max(1, ELEMENTS_PER_THREAD * torch.get_num_threads() // states.shape[1])
    for part, part_integers, part_scales in zip(
        states.split(tokens), integers.split(tokens), scales.split(tokens), strict=True
    ):
        work = part.abs()
        torch.amax(work, dim=1, keepdim=True, out=part_scales)
        part_scales.clamp_min_(torch.finfo(torch.float32).tiny).div_(LARGEST)
        part_integers.copy_(torch.div(part, part_scales, out=work).round_())
    return integers.view(torch.uint8).bitwise_xor_(128), scales  # adds 128


def multiply(integers: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return float32 [T, O], the products of quantised tokens and weights times the weights' scales.

    Args:
        integers: uint8 [T, I], where 128 is zero.
        packed: The weights as oneDNN packs them.
        scales: float32 [O], of the weights.
        zeros: int64 [O], zeros.
    """
    tokens, weights = (integers, 1.0, 128), (packed, scales, zeros)
    no_bias, no_scaling, nothing_after = None, (1.0, 0, torch.float32), ("none", [], "")
    return torch.ops.onednn.qlinear_pointwise(*tokens, *weights, no_bias, *no_scaling, *nothing_after)


def quantise_blocks(blocks: nn.ModuleList) -> None:
    """Replace each linear layer in the blocks of a backbone, in place.

    Raises:
        ValueError: There is none, or this machine's PyTorch has no int8 products.
    """
    limit = find_weight_limit()
    replaced = replace_linear_layers(
        blocks,
        lambda module: isinstance(module, nn.Linear | Conv1D),
        lambda layer: Int8Linear(layer, limit),
        "precision int8",
    )
    if replaced == 0:
        raise ValueError(
            f"precision int8: the blocks of {type(blocks[0]).__name__} have no linear layers; use float32"
        )


@cache
def find_weight_limit() -> int:
    """Return the largest magnitude of weights with which this machine's int8 products are exact.

    Raises:
        ValueError: There is none, or PyTorch was built without oneDNN.
    """
    if torch.backends.mkldnn.is_available():
        for limit in WEIGHT_LIMITS:
            if is_exact(limit):
                return limit
    raise ValueError("precision int8: the PyTorch of this machine has no exact int8 products; use float32")


def is_exact(limit: int) -> bool:
    """Return whether products of the largest activations and weights of magnitude `limit` are exact."""
    integers = torch.full((64, 64), 255, dtype=torch.uint8)  # [T, I]
    signs = torch.ones(64, dtype=torch.int8)  # [O]
    signs[::2] = -1
    weights = (signs * limit)[:, None].repeat(1, 64)  # [O, I]
    packed = torch.ops.onednn.qlinear_prepack(weights, None)
    product = multiply(integers, packed, torch.ones(64), torch.zeros(64, dtype=torch.int64))
    return torch.equal(product, (signs * (LARGEST * 64.0 * limit)).expand(64, 64))
