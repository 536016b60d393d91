"""The config and the tensors of a backbone's first blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from lwr.model.loading import cut_config
from lwr.model.reranker import LayerwiseReranker

UNREAD = ("pooler.", "contact_head.")
"""Parts of backbones beside their blocks that no head reads; the second one, ESM's, has weights for each block."""


def truncate_config(config: PretrainedConfig, layer: int) -> PretrainedConfig:
    """Copy the config of a backbone, with its first `layer` blocks only."""
    config = copy.deepcopy(config.get_text_config())
    cut_config(config, layer)
    return config


def truncate_tensors(reranker: LayerwiseReranker, layer: int) -> dict[str, Tensor]:
    """Return the backbone's tensors by name, without blocks above `layer` and without UNREAD.

    If exits have their own norms, the final norm is that of exit `layer`, in the backbone's dtype. Of a multimodal
    backbone the language model's tensors remain, under the names that they have in that model alone.
    """
    backbone = _find_language_model(reranker.backbone)
    prefixes = {module: f"{name}." for name, module in backbone.named_modules()}
    blocks = prefixes[reranker.stack.blocks]

    def is_kept(name: str) -> bool:
        if name.startswith(UNREAD):
            return False
        return not name.startswith(blocks) or int(name.removeprefix(blocks).split(".")[0]) < layer

    tensors = {name: tensor for name, tensor in backbone.state_dict().items() if is_kept(name)}
    if reranker.norms:
        norm = reranker.norm(layer).state_dict().items()
        prefix = prefixes[reranker.stack.norm]
        tensors |= {f"{prefix}{name}": tensor.to(backbone.dtype) for name, tensor in norm}
    return tensors


def build_backbone(reranker: LayerwiseReranker, layer: int) -> PreTrainedModel:
    """Build the backbone with its first `layer` blocks, to be saved; unchanged tensors share their memory.

    It cannot run, because buffers that are not saved have no values.
    """
    config = truncate_config(reranker.config, layer)
    with torch.device("meta"):
        backbone = AutoModel.from_config(config)
    state = truncate_tensors(reranker, layer)
    backbone.load_state_dict(state | zeros_for_unread(backbone, "", state), assign=True)
    return backbone


def zeros_for_unread(model: PreTrainedModel, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros for the tensors of parts that a model has but that no head reads, such as BERT's pooler.

    Args:
        model: The model, whose tensors may be on the meta device.
        prefix: What the names of the backbone's tensors start with.
        state: The tensors that are known.
    """
    unread = tuple(f"{prefix}{part}" for part in UNREAD)
    return {
        name: torch.zeros(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.startswith(unread) and name not in state
    }


def _find_language_model(backbone: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a multimodal backbone that its text config describes; of any other the backbone."""
    text_config = backbone.config.get_text_config()
    if text_config is backbone.config:
        return backbone
    return next(
        module
        for module in backbone.modules()
        if isinstance(module, PreTrainedModel) and isinstance(module.config, type(text_config))
    )
