"""Multiply by weights that oneDNN has laid out for its products, on CPUs where these take less time than PyTorch's.

In float32, PyTorch calls MKL, which is slower on CPUs of AMD. In bfloat16 it calls oneDNN, and has it lay out the
weights in each call; here that is done once. The operators are those of PyTorch's own compiler
(torch/_inductor/mkldnn_lowerings.py). `benchmarks/speed/backends.py` measures what they save.

Letters in shape comments: I inputs, O outputs of a layer.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from lwr.model.linear.replacement import InferenceLinear, replace_linear_layers

ROWS = 2048
"""The number of tokens for whose products the weights are laid out: those of a batch."""


class OneDnnLinear(InferenceLinear):
    """A linear layer whose products are oneDNN's. It computes no gradients."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        """Lay out the weights of a layer.

        Args:
            linear: The layer, float32, on the CPU.
            dtype: float32 or bfloat16, in which it computes from then on.
        """
        super().__init__(linear.in_features, linear.out_features)
        self.dtype = dtype
        # a list, which hides it from `modules`; from float32 weights it can be made again
        self._linear = [] if dtype == torch.float32 else [linear]
        weight = linear.weight.detach().to(dtype)  # [O, I]
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)  # [O]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return [..., O] in `dtype` of [..., I].

        Raises:
            ValueError: The layer is in training mode.
        """
        if self.training:
            raise ValueError("layers for scoring compute no gradients: load the reranker without `precision`")
        nothing_after = ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(
            states.to(self.dtype), self.packed, self.bias, *nothing_after
        )

    @property
    def weight(self) -> Tensor:
        """The weights as PyTorch lays them out, float32 [O, I], for models that read them, such as Mamba."""
        return self.original().weight

    def original(self) -> nn.Linear:
        """Return the layer that it was made of, or one with equal weights."""
        if self._linear:
            return self._linear[0]
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.packed.to_dense())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        return linear


def use_onednn(blocks: nn.ModuleList, dtype: torch.dtype) -> None:
    """Replace the linear layers in the blocks of a backbone, in place, if that saves time on this CPU.

    Layers of other classes and weights that are not float32 stay as they are.

    Args:
        blocks: The blocks, on the CPU.
        dtype: In which they compute: float32, or a type of 16 bits under autocast.
    """
    if is_faster(dtype):
        replace_linear_layers(
            blocks,
            lambda module: type(module) is nn.Linear and module.weight.dtype == torch.float32,
            lambda linear: OneDnnLinear(linear, dtype),
        )


def restore_linear_layers(blocks: nn.ModuleList) -> None:
    """Undo `use_onednn`."""
    replace_linear_layers(blocks, lambda module: isinstance(module, OneDnnLinear), OneDnnLinear.original)


@cache
def is_faster(dtype: torch.dtype) -> bool:
    """Return whether laid-out weights are expected to take less time on this CPU.

    In float32: on CPUs of AMD, where it was measured; others were not. In bfloat16: wherever oneDNN computes in it,
    because PyTorch then calls the same products; measured on AMD alone.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return "AMD" in str(torch.cpu.get_capabilities().get("cpu_name"))
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
