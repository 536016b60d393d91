"""Tiny random MiniCPM checkpoints, raw or layerwise, as files."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, HIDDEN, HEADS, KV_HEADS, START = 4, 32, 4, 2, 2

CONFIG = {
    "model_type": "minicpm",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 1000.0,
    "rope_scaling": None,
    "vocab_size": tiny.VOCABULARY,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def weights() -> dict[str, Tensor]:
    """Make the tensors of a raw language model without its vocabulary head."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"embed_tokens": (tiny.VOCABULARY, HIDDEN), "norm": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"layers.{i}.input_layernorm": (HIDDEN,),
            f"layers.{i}.self_attn.q_proj": (HIDDEN, HIDDEN),
            f"layers.{i}.self_attn.k_proj": (kv, HIDDEN),
            f"layers.{i}.self_attn.v_proj": (kv, HIDDEN),
            f"layers.{i}.self_attn.o_proj": (HIDDEN, HIDDEN),
            f"layers.{i}.post_attention_layernorm": (HIDDEN,),
            f"layers.{i}.mlp.gate_proj": (48, HIDDEN),
            f"layers.{i}.mlp.up_proj": (48, HIDDEN),
            f"layers.{i}.mlp.down_proj": (HIDDEN, 48),
        }
    return {f"model.{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, Tensor], **config) -> str:
    """Write a checkpoint with tokenizer and config.json; return its folder."""
    tiny.tokenizer(encoder=False).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def heads(rows: int = 1) -> dict[str, Tensor]:
    """Make the heads of a layerwise checkpoint, one for each layer."""
    return {f"lm_head.{i}.linear_head.weight": torch.randn(rows, HIDDEN) for i in range(LAYERS - START + 1)}
