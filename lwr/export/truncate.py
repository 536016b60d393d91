"""The config and the tensors of a backbone's first blocks."""

from __future__ import annotations

import copy

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

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
