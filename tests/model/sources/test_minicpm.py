"""Tests of MiniCPM checkpoints against MiniCPM's forward pass, written out."""

from __future__ import annotations

import logging
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from minicpm_checkpoint import CONFIG, HEADS, HIDDEN, KV_HEADS, LAYERS, START, heads, weights, write
from torch import Tensor

from lwr.config.model import BaseModelConfig
from lwr.config.training import LoraConfig
from lwr.model.base import try_base_model
from lwr.model.batching import pad
from lwr.model.layer_hooks import find_layer_stack
from lwr.model.linear.lora import add_lora
from lwr.model.loading import load_base_model
from lwr.model.prompt import yes_token
from lwr.model.reranker import LayerwiseReranker

PAIRS = [("how is a string decoded?", "Decode a JSON document from a string."), ("who?", "Raise ValueError.")]


def minicpm_states(tensors: dict[str, Tensor], ids: Tensor, rope_factor: float = 1.0) -> list[Tensor]:
    """Compute layers 1..LAYERS [tokens, hidden] of one row, with the three scales in MiniCPM's own places."""

    def w(name: str) -> Tensor:
        return tensors[f"model.{name}.weight"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt() * w(name)

    def rotate(x: Tensor) -> Tensor:
        """Apply rotary positions to x [heads, tokens, size]."""
        half = x.shape[-1] // 2
        frequencies = CONFIG["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.arange(len(ids))[:, None] / rope_factor * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    def attention(x: Tensor, i: int) -> Tensor:
        q, k, v = (
            F.linear(x, w(f"layers.{i}.self_attn.{name}_proj"))
            .view(len(ids), -1, HIDDEN // HEADS)
            .transpose(0, 1)
            for name in "qkv"
        )
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=0) for t in (k, v))
        logits = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(HIDDEN // HEADS)
        later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        mixed = logits.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
        return F.linear(mixed.transpose(0, 1).reshape(len(ids), HIDDEN), w(f"layers.{i}.self_attn.o_proj"))

    def mlp(x: Tensor, i: int) -> Tensor:
        gate, up = (F.linear(x, w(f"layers.{i}.mlp.{name}_proj")) for name in ("gate", "up"))
        return F.linear(F.silu(gate) * up, w(f"layers.{i}.mlp.down_proj"))

    residual = CONFIG["scale_depth"] / math.sqrt(LAYERS)
    x = w("embed_tokens")[ids] * CONFIG["scale_emb"]
    states = []
    for i in range(LAYERS):
        x = x + attention(norm(x, f"layers.{i}.input_layernorm"), i) * residual
        x = x + mlp(norm(x, f"layers.{i}.post_attention_layernorm"), i) * residual
        states.append(norm(x, "norm"))
    return states


def load(folder: str) -> LayerwiseReranker:
    return LayerwiseReranker.from_pretrained(folder, device="cpu")


@torch.no_grad()
def scores(model: LayerwiseReranker) -> Tensor:
    return torch.stack(model.eval().encode(pad(model.prompt.rows(PAIRS), model.tokenizer)))


# --- the backbone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 2.5], ids=["rope", "scaled_rope"])
@pytest.mark.parametrize("cut", [None, 2], ids=["complete", "cut"])
@torch.no_grad()
def test_every_layer_equals_minicpm(tmp_path, factor, cut):
    tensors = weights()
    scaling = None if factor == 1 else {"type": "linear", "factor": factor}
    backbone = load_base_model(
        BaseModelConfig(model=write(tmp_path, tensors, rope_scaling=scaling), num_layers=cut)
    ).backbone
    stack = find_layer_stack(backbone)
    ids = torch.randint(3, tiny.VOCABULARY, (11,))
    layers = list(range(1, (cut or LAYERS) + 1))
    features = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
    assert stack.num_layers == len(layers)
    for k, state in zip(layers, tiny.normed_states(backbone, layers, **features), strict=True):
        torch.testing.assert_close(
            state[0], minicpm_states(tensors, ids, factor)[k - 1], atol=1e-5, rtol=1e-5
        )


def test_yes_row_is_read_from_the_vocabulary_head(tmp_path):
    tensors = weights() | {"lm_head.weight": torch.randn(tiny.VOCABULARY, HIDDEN)}
    loaded = load_base_model(BaseModelConfig(model=write(tmp_path, tensors)), head="vocabulary")
    assert torch.equal(loaded.yes_row, tensors["lm_head.weight"][yes_token(loaded.tokenizer)])
    assert loaded.heads == {}


def test_tied_vocabulary_head_is_the_unscaled_embedding(tmp_path):
    tensors = weights()
    loaded = load_base_model(
        BaseModelConfig(model=write(tmp_path, tensors, tie_word_embeddings=True)), head="vocabulary"
    )
    yes = yes_token(loaded.tokenizer)
    assert torch.equal(loaded.yes_row, tensors["model.embed_tokens.weight"][yes])
    assert torch.equal(loaded.backbone.embed_tokens.weight[yes], loaded.yes_row * CONFIG["scale_emb"])


@pytest.mark.filterwarnings("error")
def test_loading_warns_of_nothing(tmp_path, caplog, monkeypatch):
    folder = write(tmp_path, weights() | {"lm_head.weight": torch.randn(tiny.VOCABULARY, HIDDEN)})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, "transformers"):
        load_base_model(BaseModelConfig(model=folder), head="vocabulary")
    assert caplog.messages == []


# --- layerwise checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(("head_type", "rows"), [("simple", 1), ("complex", tiny.VOCABULARY)])
@torch.no_grad()
def test_heads_of_every_layer(tmp_path, head_type, rows):
    tensors = weights() | heads(rows)
    model = load(write(tmp_path, tensors, start_layer=START, head_multi=True, head_type=head_type))
    row = yes_token(model.tokenizer) if head_type == "complex" else 0
    assert model.exits == [2, 3, 4]
    assert not model.shared_head
    for pair, by_pair in zip(model.prompt.rows(PAIRS), scores(model).T, strict=True):
        states = minicpm_states(tensors, torch.tensor(pair.input_ids))
        for i, k in enumerate(model.exits):
            expected = states[k - 1][-1] @ tensors[f"lm_head.{i}.linear_head.weight"][row]
            assert by_pair[i].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(("head_type", "rows"), [("simple", 1), ("complex", tiny.VOCABULARY), ("complex", 1)])
def test_shared_head(tmp_path, head_type, rows):
    # Upstream writes a single `complex` head of one row when it starts from a raw model.
    head = torch.randn(rows, HIDDEN)
    tensors = weights() | {"lm_head.linear_head.weight": head}
    model = load(write(tmp_path, tensors, start_layer=START, head_multi=False, head_type=head_type))
    assert model.shared_head
    assert model.exits == [2, 3, 4]
    assert torch.equal(model.heads[0].data, head[0 if rows == 1 else yes_token(model.tokenizer)])


def test_cut_checkpoint_keeps_heads_of_its_layers(tmp_path):
    folder = write(tmp_path, weights() | heads(), start_layer=START, head_multi=True, head_type="simple")
    assert list(load_base_model(BaseModelConfig(model=folder)).heads) == [2, 3, 4]
    assert list(load_base_model(BaseModelConfig(model=folder, num_layers=3)).heads) == [2, 3]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_minicpm_scores_as_before(tmp_path, lora):
    tensors = weights() | heads()
    folder = write(tmp_path / "base", tensors, start_layer=START, head_multi=True, head_type="simple")
    model = load(folder)
    if lora:
        add_lora(model, LoraConfig(rank=2))
        torch.nn.init.normal_(
            model.backbone.base_model.model.layers[0].self_attn.q_proj.lora_B.default.weight
        )
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(load(str(tmp_path / "saved"))), scores(model))
    assert torch.equal(scores(load(folder)), scores(model)) != lora


def test_raw_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a raw language model without relevance heads"):
        load(write(tmp_path, weights()))


def test_pickled_weights_are_refused(tmp_path):
    folder = write(tmp_path, weights())
    torch.save(weights(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pickled weights are not read"):
        load_base_model(BaseModelConfig(model=folder))


def test_missing_tensor_is_refused(tmp_path):
    tensors = weights()
    del tensors["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        load_base_model(BaseModelConfig(model=write(tmp_path, tensors)))


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_tensors_of_the_last_block_are_checked_before_training(damage, tmp_path):
    tensors = weights()
    name = f"model.layers.{LAYERS - 1}.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][1:].clone()
    with pytest.raises(ValueError, match=name):
        try_base_model(BaseModelConfig(model=write(tmp_path, tensors)))


def test_missing_head_is_refused(tmp_path):
    tensors = weights() | heads()
    del tensors["lm_head.1.linear_head.weight"]
    folder = write(tmp_path, tensors, start_layer=START, head_multi=True, head_type="simple")
    with pytest.raises(ValueError, match=r"no tensor 'lm_head\.1\.linear_head\.weight'"):
        load(folder)
