"""Read MiniCPM checkpoints as a plain Llama, without remote code.

MiniCPM is Llama with three scales (upstream: modeling_minicpm_reranker.py):

1. Embeddings are multiplied by `scale_emb`.
2. Each residual branch is multiplied by `scale_depth / sqrt(layers)`.
3. The input of the language-model head is divided by `hidden_size / dim_model_base`.

The first two are folded into the weights, in float32. The third does not concern a reranker, whose heads read the
undivided state. The result is an ordinary `LlamaModel`.
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

SAME_IN_LLAMA = (  # keys of config.json
    "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
    "max_position_embeddings initializer_range attention_bias attention_dropout bos_token_id eos_token_id "
    "pad_token_id rope_theta rope_scaling"
).split()


@dataclass(frozen=True)
class MiniCPM:
    """A MiniCPM checkpoint as a Llama.

    Attributes:
        backbone: In evaluation mode.
        vocabulary_head: float32 [vocabulary, H]; None for a layerwise checkpoint.
        heads: Layer -> float32 [H] for a layerwise checkpoint; else empty.
    """

    backbone: LlamaModel
    vocabulary_head: Tensor | None
    heads: dict[int, Tensor]


def is_minicpm(folder: Path) -> bool:
    """Return whether a checkpoint is a MiniCPM."""
    return read_config(folder).get("model_type") == "minicpm"


def has_heads(config: dict[str, Any]) -> bool:
    """Return whether a MiniCPM's config.json is a layerwise reranker's, not a raw language model's."""
    return config.get("head_type", "raw") != "raw"


def load_minicpm(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> MiniCPM:
    """Load a MiniCPM checkpoint.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer.
        num_layers: Keep the first blocks only; None: all. The residual scale remains that of the complete checkpoint.
        dtype: The dtype of the backbone.
        attention: The name of an attention function of transformers.

    Raises:
        ValueError: A tensor is missing or has another shape, or there are no safetensors.
    """
    config = read_config(folder)
    tensors = _read_safetensors(folder)
    kept_layers: int = num_layers or config["num_hidden_layers"]
    backbone = _make_llama(config, kept_layers, attention)
    try:
        backbone.load_state_dict(_fold_scales(config, tensors, kept_layers))
    except RuntimeError as error:
        raise ValueError(f"{folder}: {error}") from None

    heads = _layerwise_heads(folder, config, tensors, tokenizer)
    # A tied language-model head uses the *unscaled* embeddings. With the scale folded into these, it is no longer tied.
    vocabulary = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return MiniCPM(
        backbone.to(dtype).eval(),  # pyright: ignore[reportArgumentType]
        None if heads else vocabulary.float(),
        {k: head for k, head in heads.items() if k <= kept_layers},
    )


def check_tensors(folder: Path, num_layers: int | None) -> None:
    """Compare the names and shapes of the tensors that `load_minicpm` needs with config.json, without reading them.

    Raises:
        ValueError: One is missing or has another shape.
    """
    config = read_config(folder)
    actual: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            actual |= {name: reader.get_slice(name).get_shape() for name in reader.keys()}  # noqa: SIM118
    with torch.device("meta"):
        backbone = _make_llama(config, num_layers or config["num_hidden_layers"], "eager")
    expected = {f"model.{name}": list(tensor.shape) for name, tensor in backbone.state_dict().items()}
    if missing := sorted(set(expected) - set(actual)):
        raise ValueError(
            f"{folder}: its checkpoint lacks {len(missing)} tensors, {missing[0]} for one; fetch it again"
        )
    if other := [name for name, shape in expected.items() if shape != actual[name]]:
        shapes = f"{other[0]} is {actual[other[0]]}, by config.json {expected[other[0]]}"
        raise ValueError(
            f"{folder}: weights of another shape than its config.json says: {shapes}; fetch it again"
        )


def _make_llama(config: dict[str, Any], num_layers: int, attention: str) -> LlamaModel:
    """Make a Llama of the shape of a MiniCPM's config.json, with random weights."""
    shape = {key: config[key] for key in SAME_IN_LLAMA if config.get(key) is not None}
    llama = LlamaConfig(**shape, num_hidden_layers=num_layers, tie_word_embeddings=False, use_cache=False)
    llama._attn_implementation = attention
    return LlamaModel(llama)


def _fold_scales(config: dict[str, Any], tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return the weights of the first `num_layers` blocks and of the embeddings, with their scales, in float32."""
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])

    def scale(name: str) -> float:
        if name == "model.embed_tokens.weight":
            return config["scale_emb"]
        ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        return residual if ends_branch else 1.0

    return {
        name.removeprefix("model."): tensor.float() * scale(name)
        for name, tensor in tensors.items()
        if name.startswith("model.") and _block_index(name) < num_layers
    }


def _block_index(name: str) -> int:
    """Return the index of the block that a tensor belongs to; -1 outside the blocks."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _layerwise_heads(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> dict[int, Tensor]:
    """Return the head of each layer of a layerwise checkpoint; nothing for a raw language model.

    A head has one row, or (`head_type: complex`) one per vocabulary entry, of which that of `Yes` is taken. With
    `head_multi: false` all layers share one head.
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
    """Read all tensors of a checkpoint."""
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
