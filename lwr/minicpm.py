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

from lwr.checkpoint import read_config
from lwr.prompt import yes_token

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

    embeddings = tensors["model.embed_tokens.weight"].float()
    heads = _layerwise_heads(config, tensors, tokenizer)
    # A tied language-model head shares the *unscaled* embeddings: it is untied by the folding.
    vocabulary_head = None if heads else tensors.get("lm_head.weight", embeddings).float()

    residual = config["scale_depth"] / math.sqrt(full_depth)
    state = {
        name.removeprefix("model."): tensor.float() * (residual if _closes_a_branch(name) else 1.0)
        for name, tensor in tensors.items()
        if name.startswith("model.") and _block_of(name) < depth
    }
    state["embed_tokens.weight"] = embeddings * config["scale_emb"]

    shape = {key: config[key] for key in SAME_IN_LLAMA if config.get(key) is not None}
    llama = LlamaConfig(**shape, num_hidden_layers=depth, tie_word_embeddings=False, use_cache=False)
    llama._attn_implementation = attention
    backbone = LlamaModel(llama)
    backbone.load_state_dict(state)
    return MiniCPM(backbone.to(dtype).eval(), vocabulary_head, {k: w for k, w in heads.items() if k <= depth})


def _closes_a_branch(name: str) -> bool:
    return name.endswith(("o_proj.weight", "down_proj.weight"))


def _block_of(name: str) -> int:
    """Index of the block a tensor belongs to; -1 outside the blocks."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _layerwise_heads(
    config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> dict[int, Tensor]:
    """The relevance heads of a layerwise checkpoint by layer; empty for a raw language model.

    `head_type: simple` has one output; `complex` one per vocabulary entry, of which `Yes` is read.
    `head_multi: false` is one head that serves all layers.
    """
    if config.get("head_type", "raw") == "raw":
        return {}
    exits = range(config["start_layer"], config["num_hidden_layers"] + 1)
    row = yes_token(tokenizer) if config["head_type"] == "complex" else 0
    middle = (lambda i: f"{i}.") if config["head_multi"] else (lambda _: "")
    return {k: tensors[f"lm_head.{middle(i)}linear_head.weight"][row].float() for i, k in enumerate(exits)}


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
