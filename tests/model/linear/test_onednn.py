"""Tests of linear layers whose weights oneDNN lays out."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from lwr.config.training import LoraConfig
from lwr.model.cascade_schedule import Schedule
from lwr.model.linear import onednn
from lwr.model.linear.lora import add_lora
from lwr.model.linear.onednn import OneDnnLinear, restore_linear_layers, use_onednn
from lwr.model.reranker import LayerwiseReranker

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return {'json' * (i % 3)} s" + " and more" * (i % 4) for i in range(16)]
PAIRS = [(QUERY, text) for text in TEXTS]
architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
computes_bfloat16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="oneDNN does not compute in bfloat16 on this CPU",
)
precisions = pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", marks=computes_bfloat16)]
)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
"""Of the largest score. Sums are rounded in another order."""


@pytest.fixture(autouse=True)
def on_every_cpu(monkeypatch):
    """Take the layers on a CPU on which they are not faster, too."""
    monkeypatch.setattr(onednn, "is_faster", lambda dtype: dtype != torch.float16)


def build(architecture: str, precision: str | None = None) -> LayerwiseReranker:
    reranker = tiny.build_reranker(architecture).eval()
    if precision is not None:
        reranker.set_precision(precision)
    return reranker


def laid_out(reranker: LayerwiseReranker) -> list[OneDnnLinear]:
    return [module for module in reranker.modules() if isinstance(module, OneDnnLinear)]


# --- A layer ---


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96,), (7, 96), (1, 7, 96), (2, 3, 96), (0, 96)])
def test_a_layer_computes_the_same(shape, bias):
    linear, states = nn.Linear(96, 40, bias), torch.randn(shape)
    result = OneDnnLinear(linear, torch.float32).eval()(states)
    torch.testing.assert_close(result, linear(states))


@computes_bfloat16
@torch.inference_mode()
def test_a_layer_in_bfloat16_computes_as_autocast_does():
    linear, states = nn.Linear(96, 40), torch.randn(7, 96)
    result = OneDnnLinear(linear, torch.bfloat16).eval()(states)
    with torch.autocast("cpu", torch.bfloat16):
        expected = linear(states)
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)


@precisions
def test_the_original_layer_comes_back(precision):
    linear = nn.Linear(96, 40)
    laid_out = OneDnnLinear(linear, getattr(torch, precision))
    original = laid_out.original()
    assert torch.equal(laid_out.weight, linear.weight)
    assert torch.equal(original.weight, linear.weight)
    assert torch.equal(original.bias, linear.bias)
    assert original.weight.requires_grad


# --- A reranker ---


@precisions
@architectures
def test_scores_are_those_of_the_original_layers(architecture, precision, monkeypatch):
    reranker = build(architecture, precision)
    scores = reranker.score(PAIRS, layers="all")
    assert laid_out(reranker)
    monkeypatch.setattr(onednn, "is_faster", lambda dtype: False)
    reranker.set_precision(precision)
    assert not laid_out(reranker)
    expected = reranker.score(PAIRS, layers="all")
    largest_difference = np.abs(scores - expected).max()
    assert largest_difference <= TOLERANCE[precision] * np.abs(expected).max()


def test_layers_are_put_back_where_the_precision_has_none():
    reranker = build("bert", "float32")
    reranker.set_precision("float16")
    assert not laid_out(reranker)
    restore_linear_layers(reranker.stack.blocks)  # again: nothing to do
    reranker.precision = "float32"
    assert np.array_equal(reranker.score(PAIRS), build("bert").score(PAIRS))


@precisions
def test_scores_do_not_depend_on_the_batch(precision):
    reranker = build("bert", precision)
    together = reranker.score(PAIRS, layers="all")
    alone = np.concatenate([reranker.score([pair], layers="all") for pair in PAIRS], axis=1)
    np.testing.assert_allclose(alone, together, atol=TOLERANCE[precision] * np.abs(together).max())


def test_equal_passages_score_alike():
    reranker = build("bert", "float32")
    scores = reranker.score(PAIRS + PAIRS[:3] + PAIRS, layers="all")
    assert np.array_equal(scores[:, : len(PAIRS)], scores[:, -len(PAIRS) :])
    assert np.array_equal(scores[:, :3], scores[:, len(PAIRS) : len(PAIRS) + 3])


def test_survivors_of_a_cascade_score_as_in_the_full_pass():
    reranker = build("llama", "float32")
    rows = list(reranker.prompt.rows(PAIRS))
    ranking = reranker.rank_rows(rows, Schedule.parse("2:6 4"), 64)
    full = reranker.score_rows(rows, [4])[0]
    survivors = ranking.order[:6]
    np.testing.assert_allclose(ranking.scores[survivors], full[survivors], atol=1e-5 * np.abs(full).max())


@precisions
def test_a_reranker_is_saved_with_its_original_weights(precision, tmp_path):
    build("bert").save_pretrained(tmp_path / "plain")
    build("bert", precision).save_pretrained(tmp_path / "laid out")
    for name in ("model.safetensors", "heads.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "laid out" / name).read_bytes()


def test_the_layers_are_chosen_by_precision_alone(tmp_path):
    build("bert").save_pretrained(tmp_path)
    assert not laid_out(LayerwiseReranker.from_pretrained(tmp_path, device="cpu"))
    assert laid_out(LayerwiseReranker.from_pretrained(tmp_path, device="cpu", precision="float32"))


def test_int8_is_made_of_the_original_weights():
    direct, after = build("bert", "int8"), build("bert", "float32")
    after.set_precision("int8")
    assert np.array_equal(direct.score(PAIRS), after.score(PAIRS))


def test_layers_with_adapters_and_in_training_stay():
    adapted = tiny.build_reranker("llama")
    add_lora(adapted, LoraConfig(rank=4))
    adapted.eval().set_precision("float32")
    training = tiny.build_reranker("llama").train()
    training.set_precision("float32")
    assert not laid_out(adapted)
    assert not laid_out(training)


def test_training_is_refused():
    reranker = build("llama", "float32").train()
    with pytest.raises(ValueError, match="compute no gradients: load the reranker without `precision`"):
        reranker({"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4).long()})


# --- Which layers, and where ---


def test_only_linear_layers_in_float32_are_replaced():
    block = nn.ModuleDict({"full": nn.Linear(8, 8), "short": nn.Linear(8, 8).half(), "norm": nn.LayerNorm(8)})
    use_onednn(nn.ModuleList([block]), torch.float32)
    assert [name for name, module in block.items() if isinstance(module, OneDnnLinear)] == ["full"]


@pytest.mark.parametrize(
    ("cpu", "dtype", "expected"),
    [
        ("AMD EPYC", torch.float32, True),
        ("Intel Xeon", torch.float32, False),
        (None, torch.float32, False),
        ("AMD EPYC", torch.float16, False),
    ],
)
def test_float32_is_replaced_on_amd_alone(cpu, dtype, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": cpu} if cpu else {})
    assert onednn.is_faster.__wrapped__(dtype) is expected


def test_nothing_is_replaced_without_onednn(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not onednn.is_faster.__wrapped__(torch.float32)
    assert not onednn.is_faster.__wrapped__(torch.bfloat16)
