"""Loading a base model: any Hugging Face checkpoint, cut to its first blocks if asked, MiniCPM as Llama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lwr.checkpoint import fetch
from lwr.config import Base
from lwr.minicpm import is_minicpm, load_minicpm
from lwr.prompt import yes_token


@dataclass(frozen=True)
class BaseModel:
    """A backbone in evaluation mode, its tokenizer, and what heads may start from."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    yes_row: Tensor | None  # float32 [hidden]; None without a vocabulary head
    heads: dict[int, Tensor]  # layer -> float32 [hidden]; of a layerwise checkpoint


def load_base_model(base: Base, with_vocabulary: bool = False) -> BaseModel:
    """with_vocabulary: also read the language-model head, for `yes_row`.

    Raises ValueError where the checkpoint is missing or needs code of its own, OSError where it has no safetensors.
    """
    folder = fetch(base.model, base.revision)
    dtype = getattr(torch, base.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if is_minicpm(folder):
        minicpm = load_minicpm(folder, tokenizer, base.num_layers, dtype, base.attention)
        vocabulary = minicpm.vocabulary_head
        yes_row = None if vocabulary is None else vocabulary[yes_token(tokenizer)].clone()
        return BaseModel(minicpm.backbone, tokenizer, yes_row, minicpm.heads)

    kind = AutoModelForCausalLM if with_vocabulary else AutoModel
    model, info = kind.from_pretrained(
        folder,
        config=_config(folder, base.num_layers),
        dtype=dtype,
        attn_implementation=base.attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = set(info["missing_keys"])
    vocabulary = {
        name for name in missing if with_vocabulary and not name.startswith(model.base_model_prefix)
    }
    # no head reads a pooler
    needed = {name for name in missing - vocabulary if not name.startswith("pooler.")}
    if needed:
        raise ValueError(f"{base.model}: its checkpoint lacks {len(needed)} tensors, {min(needed)} for one")
    yes_row = yes_row_of(model, tokenizer) if with_vocabulary and not vocabulary else None
    return BaseModel(model.base_model.eval(), tokenizer, yes_row, {})


def _config(folder: Path, num_layers: int | None) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if num_layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = num_layers
        if getattr(text, "layer_types", None):  # kinds of attention or convolution, one per block
            text.layer_types = text.layer_types[:num_layers]
    return config


def yes_row_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """float32 [hidden]: where a causal model's vocabulary head reads `Yes`."""
    return model.get_output_embeddings().weight[yes_token(tokenizer)].detach().float().clone()


def set_dropout(backbone: nn.Module, share: float) -> None:
    """Of hidden states and of attention, while training. share: 0..1."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        if "attention_dropout" in vars(module):  # a number to decoders, who pass it to the attention function
            module.attention_dropout = share
