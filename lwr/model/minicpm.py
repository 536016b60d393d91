"""MiniCPM checkpoints read as plain Llama, without remote code.

MiniCPM is Llama with three scales (upstream: modeling_minicpm_reranker.py): embeddings times `scale_emb`,
each residual branch times `scale_depth / sqrt(layers)`, and the language-model head's input divided by
`hidden_size / dim_model_base`. The first two are folded into the weights here, in float32; the third does not
touch a reranker, whose heads read the undivided state. What comes out is a `LlamaModel` like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerBase

from lwr.formats.checkpoint import read_config
from lwr.model.prompt import yes_token

SAME_IN_LLAMA = (
    "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
    "max_position_embeddings initializer_range attention_bias attention_dropout bos_token_id eos_token_id "
    "pad_token_id rope_theta rope_scaling"
).split()


@dataclass(frozen=True)
class MiniCPM:
    """A MiniCPM checkpoint in Llama's shape."""

    backbone: LlamaModel
    vocabulary_head: Tensor | None  # float32 [vocabulary, hidden]; None for a layerwise checkpoint
    heads: dict[int, Tensor]  # layer -> float32 [hidden], from a layerwise checkpoint; else empty


def is_minicpm(folder: Path) -> bool:
    return read_config(folder).get("model_type") == "minicpm"


def has_heads(config: dict[str, Any]) -> bool:
    """Whether it is a layerwise checkpoint's config.json, and not a raw language model's."""
    return config.get("head_type", "raw") != "raw"


def load_minicpm(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> MiniCPM:
    """num_layers: keep the first blocks alone. The residual scale stays that of the whole checkpoint.

    Raises ValueError where a tensor is missing or has another shape, or where there are no safetensors.
    """
    config = read_config(folder)
    tensors = _read_safetensors(folder)
    full_depth = config["num_hidden_layers"]
    depth = num_layers or full_depth

    residual = config["scale_depth"] / math.sqrt(full_depth)

    def scale(name: str) -> float:
        if name == "model.embed_tokens.weight":
            return config["scale_emb"]
        closes_a_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        return residual if closes_a_branch else 1.0

    state = {
        name.removeprefix("model."): tensor.float() * scale(name)
        for name, tensor in tensors.items()
        if name.startswith("model.") and _block_of(name) < depth
    }
    shape = {key: config[key] for key in SAME_IN_LLAMA if config.get(key) is not None}
    llama = LlamaConfig(**shape, num_hidden_layers=depth, tie_word_embeddings=False, use_cache=False)
    llama._attn_implementation = attention
    backbone = LlamaModel(llama)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder}: {error}") from None

    heads = _layerwise_heads(folder, config, tensors, tokenizer)
    # A tied language-model head shares the *unscaled* embeddings: it is untied by the folding.
    vocabulary = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return MiniCPM(
        backbone.to(dtype).eval(),
        None if heads else vocabulary.float(),
        {k: head for k, head in heads.items() if k <= depth},
    )


def _block_of(name: str) -> int:
    """Index of the block a tensor belongs to; -1 outside the blocks."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _layerwise_heads(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> dict[int, Tensor]:
    """The relevance heads of a layerwise checkpoint by layer; empty for a raw language model.

    A head has one row, or (`head_type: complex`) one per vocabulary entry, of which `Yes` is read.
    `head_multi: false` is one head that serves all layers.
    """
    if not has_heads(config):
        return {}
    heads = {}
    for i, k in enumerate(range(config["start_layer"], config["num_hidden_layers"] + 1)):
        name = f"lm_head.{i}.linear_head.weight" if config["head_multi"] else "lm_head.linear_head.weight"
        if name not in tensors:
            raise ValueError(f"{folder}: no tensor {name!r}, which its config.json promises")
        row = 0 if len(tensors[name]) == 1 else yes_token(tokenizer)
        heads[k] = tensors[name][row].float()
    return heads


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder}: no *.safetensors; pickled weights are not read. Convert the checkpoint once"
        )
    tensors = {}
    for file in files:
        with safe_open(file, "pt") as reader:
            tensors |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    return tensors
