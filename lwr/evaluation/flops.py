"""Count the floating-point operations of a pair up to each layer, in closed form from a backbone's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lwr.model.cascade_schedule import Compression
from lwr.model.layer_hooks import find_blocks
from lwr.model.linear.replacement import InferenceLinear

SOFTMAX_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class BackboneShape:
    """The shapes that FLOPs follow from, a number per block."""

    weights: tuple[int, ...]  # numbers in the matrices that each token is multiplied with
    attended: tuple[int, ...]  # heads x head size of a softmax attention; 0 in a block that mixes otherwise


def derive_shape(backbone: PreTrainedModel) -> BackboneShape:
    """Derive the shapes from a model. Raises UnsupportedBackbone where its blocks are not in one list."""
    config, blocks = backbone.config.get_text_config(), find_blocks(backbone)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(blocks)
    width = config.num_attention_heads * head_size
    return BackboneShape(
        tuple(sum(_count_weights(module) for module in block.modules()) for block in blocks),
        tuple(width if kind in SOFTMAX_ATTENTION else 0 for kind in kinds),
    )


def _count_weights(module: nn.Module) -> int:
    """Return the numbers in the matrix of a linear layer, 0 for any other module."""
    if isinstance(module, InferenceLinear):
        return module.in_features * module.out_features
    return module.weight.numel() if isinstance(module, nn.Linear | Conv1D) else 0


def read_shape(model: Path) -> BackboneShape:
    """Derive the shapes of a saved model from its config.json alone, without its weights."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return derive_shape(AutoModel.from_config(config, trust_remote_code=False))


def count_flops(
    shape: BackboneShape,
    tokens: np.ndarray,
    passage_tokens: np.ndarray | None = None,
    compression: Compression | None = None,
    windows: np.ndarray | None = None,
    last_tokens: np.ndarray | None = None,
) -> np.ndarray:
    """Count the FLOPs of pairs from layer 1 up to and with each layer.

    A block takes 2 n W for its W weights and 4 n² A for scores and values of an attention A numbers wide, where n is
    the number of tokens. The square is complete also under a causal mask, as kernels and torch's counter have it.

    Left out are embeddings, norms, biases and the head's one row, which are in the thousandths; the mixing of
    state-space, convolution and linear-attention blocks; mixtures of experts, whose weights are not in a Linear; and
    padding.

    Args:
        shape: The shape of the backbone.
        tokens: Number of tokens per pair, those of all its windows, of any shape.
        passage_tokens: How many of them compression may average, of the same shape.
        compression: Where they become fewer; None: nowhere.
        windows: Number of windows per pair, of the same shape; 0 where there is no pair; None: each pair has one.
        last_tokens: Number of tokens of its last window. The other windows are equally long.

    Returns:
        float64 [layers, *tokens.shape].
    """
    if windows is not None and last_tokens is not None:
        complete = np.maximum(windows - 1, 0)  # windows before the last
        length = (tokens - last_tokens) / np.maximum(complete, 1)  # of each of these
        passages = None, None
        if passage_tokens is not None and compression is not None:
            # tokens of a window but the passage's
            beside = (tokens - passage_tokens) / np.maximum(windows, 1)
            passages = np.maximum(length - beside, 0), last_tokens - beside
        of_complete = count_flops(shape, length, passages[0], compression)
        return complete * of_complete + count_flops(shape, last_tokens, passages[1], compression)
    steps = {} if compression is None else dict(compression.steps)
    n = np.asarray(tokens, dtype=np.float64)
    p = np.zeros_like(n) if passage_tokens is None else np.asarray(passage_tokens, dtype=np.float64)
    blocks = []
    for layer, (w, a) in enumerate(zip(shape.weights, shape.attended, strict=True)):
        fewer = np.ceil(p / steps.get(layer, 1))
        n, p = n - (p - fewer), fewer
        blocks.append(2 * n * w + 4 * n**2 * a)
    return np.cumsum(blocks, axis=0)


@torch.inference_mode()
def count_flops_with_torch(backbone: PreTrainedModel, input_ids: Tensor) -> int:
    """Count the FLOPs of one full pass operation by operation, to check the closed form.

    The pass uses eager attention: torch's counter does not know all of the fused kernels.

    Args:
        backbone: The model.
        input_ids: int64 [rows, tokens].
    """
    attention = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        backbone(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    backbone.set_attn_implementation(attention or "eager")
    return counter.get_total_flops()
