"""Tests of observing layers on every architecture: states, early exits, dropped rows, chunks, refused backbones."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel, T5Config, T5EncoderModel, T5Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lwr.model.layer_hooks import Chunk, UnsupportedBackbone, find_layer_stack, run_to

EVERY_LAYER = list(range(1, tiny.LAYERS + 1))
NORMS = {"lfm2": "embedding_norm", "modernbert": "final_norm", "bert": None, "xlm-roberta": None}
"""The name of the final norm if it is not `norm`; None: each block normalises its own output."""

T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 5, "num_heads": 2}

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, tiny.VOCABULARY, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@architectures
@torch.no_grad()
def test_states_equal_hidden_states_of_transformers(architecture):
    backbone = tiny.backbone(architecture)
    features = inputs()
    expected = backbone(**features, output_hidden_states=True)
    name = NORMS.get(architecture, "norm")
    norm = nn.Identity() if name is None else backbone.get_submodule(name)
    states = tiny.normed_states(backbone, EVERY_LAYER, **features)
    for k in EVERY_LAYER[:-1]:
        torch.testing.assert_close(states[k - 1], norm(expected.hidden_states[k]), atol=1e-5, rtol=0)
    torch.testing.assert_close(states[-1], expected.last_hidden_state, atol=1e-5, rtol=0)
    assert not torch.allclose(states[0], states[1], atol=0.1), (
        "layers must differ for this test to mean anything"
    )


@architectures
@torch.no_grad()
def test_early_exit_runs_no_deeper_block_and_equals_full_pass(architecture, monkeypatch):
    backbone = tiny.backbone(architecture)
    features = inputs()
    full = tiny.normed_states(backbone, EVERY_LAYER, **features)
    stack = find_layer_stack(backbone)
    blocks_run: list[int] = []
    states: dict[int, torch.Tensor] = {}
    tiny.record_blocks(stack.blocks, monkeypatch, lambda k, _: blocks_run.append(k))

    def record(layer: int, hidden: torch.Tensor) -> None:
        states[layer] = stack.norm(hidden)

    for k in EVERY_LAYER:
        blocks_run.clear()
        run_to(backbone, stack, [k], record, **features)
        assert blocks_run == list(range(1, k + 1))
        assert torch.equal(states[k], full[k - 1])


@architectures
def test_layer_stack_of_every_architecture(architecture):
    backbone = tiny.backbone(architecture)
    stack = find_layer_stack(backbone)
    assert stack.num_layers == tiny.LAYERS
    assert stack.causal == (architecture in tiny.DECODERS)
    unread = {p for module in stack.unused for p in module.parameters()}
    names = {name for name, p in backbone.named_parameters() if p in unread}
    assert names == {name for name, _ in backbone.named_parameters() if name.startswith("pooler.")}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_decoder_of_experts_is_causal(architecture):
    # An expert computes all its tokens in one batch, so a later token may change the last bits of an earlier one.
    shape = tiny.SHAPE | {"hidden_size": 512, "head_dim": 128, "moe_intermediate_size": 64}
    assert find_layer_stack(AutoModel.from_config(AutoConfig.for_model(architecture, **shape))).causal


def test_encoder_of_t5_is_a_backbone():
    stack = find_layer_stack(T5EncoderModel(T5Config(**T5)))
    assert (stack.num_layers, stack.causal, type(stack.norm).__name__) == (5, False, "T5LayerNorm")
    assert not stack.unused


def test_final_norm_with_reshaped_output_is_found():
    gpt2 = AutoModel.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_head=4, n_layer=3, vocab_size=50))
    assert find_layer_stack(gpt2).norm is gpt2.ln_f


# --- dropped rows and chunks -----------------------------------------------------------------------------------


def uneven(rows: int, tokens: int, side: str) -> dict[str, torch.Tensor]:
    """Make rows of different lengths, padded on one side."""
    ids = torch.randint(3, tiny.VOCABULARY, (rows, tokens))
    mask = (torch.arange(tokens) < torch.linspace(tokens // 2, tokens, rows).long()[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask if side == "right" else mask.flip(1)}


def states_with_dropped_rows(backbone, keep: dict[int, torch.Tensor], **features) -> list[torch.Tensor]:
    """Return the hidden state at every layer; after a layer of `keep` only those rows remain."""
    stack, states = find_layer_stack(backbone), []

    def record(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        states.append(hidden)
        return keep.get(layer)

    run_to(backbone, stack, EVERY_LAYER, record, **features)
    return states


# Token counts are multiples of the vector width: the scalar code for a remainder rounds differently.
@architectures
@pytest.mark.parametrize(("rows", "tokens"), [(8, 8), (4, 16)])
@torch.no_grad()
def test_remaining_rows_equal_full_batch_bit_for_bit(architecture, rows, tokens):
    decoder = architecture in tiny.DECODERS
    backbone = tiny.backbone(architecture)
    features = uneven(rows, tokens, "left" if decoder else "right")
    if decoder:
        features["position_ids"] = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
    full = states_with_dropped_rows(backbone, {}, **features)
    first, then = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
    dropped = states_with_dropped_rows(backbone, {1: first, 3: then}, **features)
    for k, remaining in enumerate([torch.arange(rows), first, first, first[then]]):
        assert torch.equal(dropped[k], full[k][remaining])


@torch.no_grad()
def test_keeping_the_only_row_changes_nothing():
    backbone = tiny.backbone("llama")
    features = uneven(1, 6, "right")
    full = states_with_dropped_rows(backbone, {}, **features)
    kept = states_with_dropped_rows(backbone, {1: torch.tensor([0])}, **features)
    assert all(torch.equal(a, b) for a, b in zip(kept, full, strict=True))


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "t5"])
@torch.no_grad()
def test_chunks_equal_complete_batch(architecture, monkeypatch):
    backbone = T5EncoderModel(T5Config(**T5)).eval() if architecture == "t5" else tiny.backbone(architecture)
    stack, features = find_layer_stack(backbone), uneven(7, 8, "right")
    features["input_ids"] %= 50
    calls: list[int] = []
    tiny.record_blocks(stack.blocks, monkeypatch, lambda k, _: calls.append(k))
    keep = {1: torch.tensor([0, 2, 3, 5, 6]), 3: torch.tensor([1, 4])}

    def states(rows_per_chunk: int | None) -> list[torch.Tensor]:
        """Return the states of every layer, and record the blocks that computed in `calls`."""
        remaining, recorded = [7], []

        def record(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            recorded.append(hidden)
            remaining.append(len(hidden) if layer not in keep else len(keep[layer]))
            return keep.get(layer)

        def chunks() -> list[Chunk]:
            return [Chunk(rows) for rows in torch.arange(remaining[-1]).split(rows_per_chunk)]

        calls.clear()
        make_chunks = None if rows_per_chunk is None else chunks
        run_to(backbone, stack, EVERY_LAYER, record, make_chunks=make_chunks, **features)
        return recorded

    together = states(None)
    assert calls == [1, 2, 3, 4]
    for rows, expected in ((3, [1, 1, 1, 2, 2, 3, 3, 4]), (1, [1] * 7 + [2] * 5 + [3] * 5 + [4] * 2)):
        in_chunks = states(rows)
        assert calls == expected
        for actual, complete in zip(in_chunks, together, strict=True):
            torch.testing.assert_close(actual, complete, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hooks_are_removed_after_a_pass():
    backbone = tiny.backbone("llama")
    stack = find_layer_stack(backbone)

    def fail(*_):
        raise RuntimeError("in the middle of a pass")

    tiny.normed_states(backbone, [2], **inputs())
    with pytest.raises(RuntimeError, match="in the middle of a pass"):
        run_to(backbone, stack, [2], fail, make_chunks=lambda: [Chunk(torch.arange(2))], **inputs())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in backbone.modules())


def test_find_layer_stack_restores_training_mode():
    backbone = tiny.backbone("llama").train()
    find_layer_stack(backbone)
    assert backbone.training


def test_find_layer_stack_uses_and_restores_attention():
    def attention(*_, **__):
        raise RuntimeError("no kernel for this device")

    ALL_ATTENTION_FUNCTIONS.register("gpu_only", attention)
    backbone = tiny.backbone("llama")
    backbone.set_attn_implementation("gpu_only")
    assert find_layer_stack(backbone).causal
    assert backbone.config._attn_implementation == "gpu_only"


# --- refused backbones ------------------------------------------------------------------------------------------


def test_two_lists_of_blocks_are_refused():
    backbone = tiny.backbone("llama")
    backbone.extra = nn.ModuleList(nn.Identity() for _ in range(tiny.LAYERS))
    with pytest.raises(UnsupportedBackbone, match="LlamaModel: expected one list of its 4 blocks, found 2"):
        find_layer_stack(backbone)


def test_encoder_with_decoder_is_refused():
    t5 = T5Model(T5Config(**T5))
    with pytest.raises(UnsupportedBackbone, match="T5Model: an encoder with a decoder"):
        find_layer_stack(t5)


class _TwiceNormed(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        self.another = nn.LayerNorm(config.hidden_size)

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.last_hidden_state = self.another(output.last_hidden_state)
        return output


def test_two_norms_after_the_last_block_are_refused():
    backbone = _TwiceNormed(LlamaConfig(**tiny.SHAPE)).eval()
    with pytest.raises(UnsupportedBackbone, match="not one norm"):
        find_layer_stack(backbone)
