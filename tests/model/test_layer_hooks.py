"""The depth mechanism on every architecture: what it sees, where it stops, what it refuses."""

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
"""The final norm's name where it is not `norm`; None: each block normalises its own output."""

T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 5, "num_heads": 2}

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, tiny.VOCABULARY, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@architectures
@torch.no_grad()
def test_every_layer_is_what_transformers_reports(architecture):
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
def test_an_early_exit_runs_no_deeper_block_and_changes_nothing(architecture, monkeypatch):
    backbone = tiny.backbone(architecture)
    stack = find_layer_stack(backbone)
    features = inputs()
    full = tiny.normed_states(backbone, EVERY_LAYER, **features)
    blocks_run: list[int] = []
    tiny.watch_blocks(stack.blocks, monkeypatch, lambda k, _: blocks_run.append(k))
    for k in EVERY_LAYER:
        blocks_run.clear()
        states = []
        run_to(backbone, stack, [k], lambda _, hidden, to=states: to.append(stack.norm(hidden)), **features)
        assert blocks_run == list(range(1, k + 1))
        (alone,) = states
        assert torch.equal(alone, full[k - 1])


@architectures
def test_trunk(architecture):
    backbone = tiny.backbone(architecture)
    stack = find_layer_stack(backbone)
    assert stack.num_layers == tiny.LAYERS
    assert stack.causal == (architecture in tiny.DECODERS)
    unread = {p for module in stack.unused for p in module.parameters()}
    names = {name for name, p in backbone.named_parameters() if p in unread}
    assert names == {name for name, _ in backbone.named_parameters() if name.startswith("pooler.")}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_decoder_of_experts_is_causal(architecture):
    # an expert computes all its tokens at once: a later token may change the last bits of an earlier one
    shape = tiny.SHAPE | {"hidden_size": 512, "head_dim": 128, "moe_intermediate_size": 64}
    assert find_layer_stack(AutoModel.from_config(AutoConfig.for_model(architecture, **shape))).causal


def test_the_encoder_of_an_encoder_with_a_decoder_is_a_backbone():
    stack = find_layer_stack(T5EncoderModel(T5Config(**T5)))
    assert (stack.num_layers, stack.causal, type(stack.norm).__name__) == (5, False, "T5LayerNorm")
    assert not stack.unused


def test_a_final_norm_whose_output_is_reshaped_is_found():
    gpt2 = AutoModel.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_head=4, n_layer=3, vocab_size=50))
    assert find_layer_stack(gpt2).norm is gpt2.ln_f


# --- rows that leave -----------------------------------------------------------------------------------


def uneven(rows: int, tokens: int, side: str) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded on one side."""
    ids = torch.randint(3, tiny.VOCABULARY, (rows, tokens))
    mask = (torch.arange(tokens) < torch.linspace(tokens // 2, tokens, rows).long()[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask if side == "right" else mask.flip(1)}


def states_of_those_left(backbone, keep: dict[int, torch.Tensor], **features) -> list[torch.Tensor]:
    """The hidden state at every layer while `keep` lets rows go."""
    stack, states = find_layer_stack(backbone), []

    def look(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        states.append(hidden)
        return keep.get(layer)

    run_to(backbone, stack, EVERY_LAYER, look, **features)
    return states


# A batch as long as its rows, or as deep. Tokens fill whole vectors: what remains for scalar code rounds otherwise.
@architectures
@pytest.mark.parametrize(("rows", "tokens"), [(8, 8), (4, 16)])
@torch.no_grad()
def test_who_stays_is_computed_bit_for_bit_as_if_nobody_left(architecture, rows, tokens):
    decoder = architecture in tiny.DECODERS
    backbone = tiny.backbone(architecture)
    features = uneven(rows, tokens, "left" if decoder else "right")
    if decoder:
        features["position_ids"] = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
    full = states_of_those_left(backbone, {}, **features)
    first, then = torch.tensor([0, 2, 3]), torch.tensor([1, 2])
    left = states_of_those_left(backbone, {1: first, 3: then}, **features)
    for k, rows_there in enumerate([torch.arange(rows), first, first, first[then]]):
        assert torch.equal(left[k], full[k][rows_there])


@torch.no_grad()
def test_a_batch_of_one_row_keeps_it():
    backbone = tiny.backbone("llama")
    features = uneven(1, 6, "right")
    full = states_of_those_left(backbone, {}, **features)
    left = states_of_those_left(backbone, {1: torch.tensor([0])}, **features)
    assert all(torch.equal(a, b) for a, b in zip(left, full, strict=True))


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "t5"])
@torch.no_grad()
def test_rows_that_are_computed_apart_are_what_they_are_together(architecture, monkeypatch):
    backbone = T5EncoderModel(T5Config(**T5)).eval() if architecture == "t5" else tiny.backbone(architecture)
    stack, features = find_layer_stack(backbone), uneven(7, 8, "right")
    features["input_ids"] %= 50
    calls: list[int] = []
    tiny.watch_blocks(stack.blocks, monkeypatch, lambda k, _: calls.append(k))
    keep = {1: torch.tensor([0, 2, 3, 5, 6]), 3: torch.tensor([1, 4])}

    def states(by: int | None) -> list[torch.Tensor]:
        here, seen = [7], []

        def look(layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
            seen.append(hidden)
            here.append(len(hidden) if layer not in keep else len(keep[layer]))
            return keep.get(layer)

        def chunks() -> list[Chunk]:
            return [Chunk(rows) for rows in torch.arange(here[-1]).split(by)]

        calls.clear()
        run_to(backbone, stack, EVERY_LAYER, look, make_chunks=chunks if by else None, **features)
        return seen

    together = states(None)
    assert calls == [1, 2, 3, 4]
    for by, expected in ((3, [1, 1, 1, 2, 2, 3, 3, 4]), (1, [1] * 7 + [2] * 5 + [3] * 5 + [4] * 2)):
        apart = states(by)
        assert calls == expected
        for ours, whole in zip(apart, together, strict=True):
            torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_hook_stays_behind():
    backbone = tiny.backbone("llama")
    stack = find_layer_stack(backbone)

    def fail(*_):
        raise RuntimeError("in the middle of a pass")

    tiny.normed_states(backbone, [2], **inputs())
    with pytest.raises(RuntimeError, match="in the middle of a pass"):
        run_to(backbone, stack, [2], fail, make_chunks=lambda: [Chunk(torch.arange(2))], **inputs())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in backbone.modules())


def test_looking_at_a_backbone_leaves_its_mode():
    backbone = tiny.backbone("llama").train()
    find_layer_stack(backbone)
    assert backbone.training


def test_looking_at_a_backbone_does_without_its_attention():
    def attention(*_, **__):
        raise RuntimeError("no kernel for this device")

    ALL_ATTENTION_FUNCTIONS.register("gpu_only", attention)
    backbone = tiny.backbone("llama")
    backbone.set_attn_implementation("gpu_only")
    assert find_layer_stack(backbone).causal
    assert backbone.config._attn_implementation == "gpu_only"


# --- refusals ------------------------------------------------------------------------------------------


def test_two_lists_of_the_same_length_are_refused():
    backbone = tiny.backbone("llama")
    backbone.extra = nn.ModuleList(nn.Identity() for _ in range(tiny.LAYERS))
    with pytest.raises(UnsupportedBackbone, match="LlamaModel: expected one list of its 4 blocks, found 2"):
        find_layer_stack(backbone)


def test_an_encoder_with_a_decoder_is_refused():
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


def test_more_than_a_norm_after_the_last_block_is_refused():
    backbone = _TwiceNormed(LlamaConfig(**tiny.SHAPE)).eval()
    with pytest.raises(UnsupportedBackbone, match="more than one norm"):
        find_layer_stack(backbone)
