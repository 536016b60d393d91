"""Floating-point operations of a pair up to each layer, in closed form from a backbone's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedModel

from lwr.model.layer_hooks import find_blocks

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Shape:
    """What FLOPs follow from, per block."""

    weights: tuple[int, ...]  # numbers in the matrices that each token is multiplied with
    attended: tuple[int, ...]  # heads x head size of a softmax attention; 0 in a block that mixes otherwise


def shape_of(backbone: PreTrainedModel) -> Shape:
    """Raises UnsupportedBackbone where there is not one list of blocks."""
    config, blocks = backbone.config.get_text_config(), find_blocks(backbone)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(blocks)
    width = config.num_attention_heads * head_size
    return Shape(
        tuple(sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear)) for block in blocks),
        tuple(width if kind in ATTENTION else 0 for kind in kinds),
    )


def read_shape(model: Path) -> Shape:
    """Of the saved model in a folder; reads its config.json alone, no weights."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return shape_of(AutoModel.from_config(config, trust_remote_code=False))


def flops(shape: Shape, tokens: np.ndarray) -> np.ndarray:
    """float64 [layers, …]: of a pair of so many tokens, from layer 1 up to and with each layer.

    A block takes 2 n W for its W weights and 4 n² A for scores and values of an attention A numbers wide (the whole
    square, as kernels and torch's counter have it, also under a causal mask). Left out: embeddings, norms, biases
    and the head's one row, which are in the thousandths; state-space, convolution and linear attention's own mixing;
    mixtures of experts, whose weights lie in no Linear. Padding does not count.
    """
    n = np.asarray(tokens, dtype=np.float64)
    blocks = [2 * n * w + 4 * n**2 * a for w, a in zip(shape.weights, shape.attended, strict=True)]
    return np.cumsum(blocks, axis=0)


@torch.inference_mode()
def counted(backbone: PreTrainedModel, input_ids: Tensor) -> int:
    """FLOPs of one full pass as torch counts them, operation by operation. input_ids: int64 [rows, tokens].

    With plain attention: the counter knows not all of the fused kernels.
    """
    attention = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        backbone(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    backbone.set_attn_implementation(attention)
    return counter.get_total_flops()
