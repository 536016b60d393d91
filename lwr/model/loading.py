"""Loading a base model: any Hugging Face checkpoint, cut to its first blocks if asked, MiniCPM as Llama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from lwr.common.errors import BadInput, first_line
from lwr.config.model import BaseModelConfig
from lwr.formats.checkpoint import check_weights, fetch_checkpoint, read_config
from lwr.model.minicpm import is_minicpm, load_minicpm
from lwr.model.prompt import yes_token


@dataclass(frozen=True)
class LoadedBaseModel:
    """A backbone in evaluation mode, its tokenizer, and what heads may start from."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    yes_row: Tensor | None  # float32 [hidden]; None without a vocabulary head
    heads: dict[int, Tensor]  # layer -> float32 [hidden]; of a layerwise checkpoint


def load_base_model(base: BaseModelConfig, with_vocabulary: bool = False) -> LoadedBaseModel:
    """with_vocabulary: also read the language-model head, for `yes_row`.

    Raises BadInput where the checkpoint is missing or damaged, needs code of its own, or lacks tensors or
    safetensors.
    """
    folder = fetch_checkpoint(base.model, base.revision)
    dtype = getattr(torch, base.dtype)
    tokenizer = load_tokenizer(folder)
    if is_minicpm(folder):
        minicpm = load_minicpm(folder, tokenizer, base.num_layers, dtype, base.attention)
        vocabulary = minicpm.vocabulary_head
        yes_row = None if vocabulary is None else vocabulary[yes_token(tokenizer)].clone()
        return LoadedBaseModel(minicpm.backbone, tokenizer, yes_row, minicpm.heads)

    config = _config(folder, base.num_layers)
    check_weights(folder)
    kind = AutoModelForCausalLM if with_vocabulary else AutoModel
    model, missing = load_weights(
        kind, folder, config=config, dtype=dtype, attn_implementation=base.attention
    )
    vocabulary = {
        name for name in missing if with_vocabulary and not name.startswith(model.base_model_prefix)
    }
    check_missing(folder, missing - vocabulary)
    yes_row = yes_row_of(model, tokenizer) if with_vocabulary and not vocabulary else None
    return LoadedBaseModel(model.base_model.eval(), tokenizer, yes_row, {})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises BadInput where there is none, a broken one, or one that needs code of its own."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare ones
        raise BadInput(
            f"{folder}: its tokenizer cannot be read ({first_line(error)}); fetch it again"
        ) from error


def load_weights(kind: Any, folder: Path, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model of a class of transformers' Auto ones, and the names of the tensors that its checkpoint lacks.

    Its files are whole (`check_weights`). Raises BadInput where weights are of another shape than config.json says, or
    no safetensors.
    """
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{folder}: no *.safetensors in it; pickled weights are not read, convert them")
    model, info = kind.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told here
        output_loading_info=True,
        **options,
    )
    if mismatched := sorted(info["mismatched_keys"]):
        name, there, expected = mismatched[0]
        shapes = f"{name} is {list(there)}, by config.json {list(expected)}"
        raise BadInput(
            f"{folder}: weights of another shape than its config.json says: {shapes}; fetch it again"
        )
    return model, set(info["missing_keys"])


def check_missing(folder: Path, missing: set[str]) -> None:
    """Raises BadInput where a tensor is needed that a checkpoint lacks; no head reads a pooler."""
    needed = {name for name in missing if not name.startswith("pooler.")}
    if needed:
        raise BadInput(f"{folder}: its checkpoint lacks {len(needed)} tensors, {min(needed)} for one")


def _config(folder: Path, num_layers: int | None) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        why = first_line(error)
        if "auto_map" in read_config(folder):
            why = "needs code of its own (auto_map), which is never run; take a model that transformers knows"
        raise BadInput(f"{folder / 'config.json'}: {why}") from error
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
