"""Tests of int8 linear layers: near float32, a token's result is its own, and what they are refused for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers.pytorch_utils import Conv1D

from lwr.config.training import LoraConfig
from lwr.model.cascade_schedule import Compression, Schedule
from lwr.model.linear import int8
from lwr.model.linear.int8 import Int8Linear, find_weight_limit, is_exact, quantise_blocks, quantise_tokens
from lwr.model.linear.lora import add_lora
from lwr.model.reranker import LayerwiseReranker

QUERY = "load the object"
TEXTS = [f"def decode{i}(s): return {'json' * (i % 3)} s" + " and more" * (i % 4) for i in range(16)]
PAIRS = [(QUERY, text) for text in TEXTS]
STEP = 127 / find_weight_limit()
"""How coarse the steps of this machine's weights are: 1, or 2 on CPUs without VNNI. Errors grow with them."""
ALIKE = ("lfm2", "qwen3_5_text")
"""Architectures whose tiny models with random weights give all pairs nearly the same score."""

architectures = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
ranking_architectures = pytest.mark.parametrize(
    "architecture", [name for name in tiny.ARCHITECTURES if name not in ALIKE]
)


def build(architecture: str, precision: str = "int8") -> LayerwiseReranker:
    reranker = tiny.build_reranker(architecture).eval()
    reranker.set_precision(precision)
    return reranker


def largest_difference(scores: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return for each exit the largest difference, as a share of the range of expected scores. [..., pairs] both."""
    return np.abs(scores - expected).max(axis=-1) / np.ptp(expected, axis=-1)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    layer.weight.data *= torch.logspace(-2, 2, 40)[
        :, None
    ]  # of one scale for all, the small outputs would vanish
    return layer


def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the relative error of `a` in each column, that is, of each output."""
    return (a - b).norm(dim=0) / b.norm(dim=0)


# --- A layer ---


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(96,), (7, 96), (1, 7, 96), (2, 3, 96), (0, 96)])
def test_a_layer_is_near_float32(linear, shape):
    states = torch.randn(shape)
    result = Int8Linear(linear, find_weight_limit()).eval()(states)
    assert result.shape == (*shape[:-1], 40)
    assert result.dtype == torch.float32
    assert (result - linear(states)).norm() <= 0.03 * linear(states).norm()


@torch.inference_mode()
def test_each_token_and_each_output_has_its_own_scale(linear):
    states = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None]
    layer = Int8Linear(linear, find_weight_limit()).eval()
    expected, result = linear(states) - linear.bias, layer(states) - linear.bias
    # with one scale for all tokens, the smallest would be zero
    assert error(result.T, expected.T).max() < 0.03 * STEP
    assert error(result, expected).max() < 0.03 * STEP


@torch.inference_mode()
def test_a_tokens_result_does_not_depend_on_other_tokens(linear, monkeypatch):
    layer = Int8Linear(linear, find_weight_limit()).eval()
    states = torch.randn(50, 96)
    together = layer(states)
    with_outlier = torch.cat([1000 * torch.randn(3, 96), states])
    assert torch.equal(layer(with_outlier)[3:], together)
    assert torch.equal(torch.cat([layer(one) for one in states.split(1)]), together)
    monkeypatch.setattr(int8, "ELEMENTS_PER_THREAD", 7 * 96)
    assert torch.equal(layer(states), together)


def test_tokens_are_quantised_to_the_nearest_step():
    states = torch.tensor([[1.27, -1.27, 0.0, 0.014, 0.016], [0.0] * 5, [-2.54, 1.0, 0.5, -0.01, 0.0]])
    integers, scales = quantise_tokens(states)
    assert integers.dtype == torch.uint8
    assert (integers.int() - 128).tolist() == [[127, -127, 0, 1, 2], [0] * 5, [-127, 50, 25, 0, 0]]
    assert scales[[0, 2], 0].tolist() == pytest.approx([0.01, 0.02])


@torch.inference_mode()
def test_layers_without_bias_and_transposed_ones_compute_the_same(linear):
    states, limit = torch.randn(9, 96), find_weight_limit()
    transposed = Conv1D(40, 96)
    transposed.weight.data, transposed.bias.data = linear.weight.data.T.contiguous(), linear.bias.data
    assert torch.equal(Int8Linear(transposed, limit).eval()(states), Int8Linear(linear, limit).eval()(states))
    no_bias = copy.deepcopy(linear)
    no_bias.bias = None
    torch.testing.assert_close(
        Int8Linear(no_bias, limit).eval()(states) + linear.bias, Int8Linear(linear, limit).eval()(states)
    )


@torch.inference_mode()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(linear, value):
    states = torch.randn(3, 96)
    states[1, 5] = value
    result = Int8Linear(linear, find_weight_limit()).eval()(states)
    assert result.isfinite().all(dim=1).tolist() == [True, False, True]
    assert not result[1].isfinite().any()


def test_products_are_exact_with_the_limit_of_this_machine():
    assert is_exact(find_weight_limit())


@pytest.mark.parametrize(("exact", "limit"), [({127, 63}, 127), ({63}, 63)])
def test_weights_have_fewer_steps_where_products_saturate(exact, limit, monkeypatch):
    monkeypatch.setattr(int8, "is_exact", exact.__contains__)
    assert find_weight_limit.__wrapped__() == limit


@pytest.mark.parametrize("available", [True, False])
def test_a_machine_without_exact_products_is_refused(available, monkeypatch):
    monkeypatch.setattr(int8, "is_exact", lambda limit: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    with pytest.raises(ValueError, match=r"precision int8: .* no exact int8 products; use float32"):
        find_weight_limit.__wrapped__()


# --- A reranker ---


@architectures
def test_all_linear_layers_of_the_blocks_and_nothing_else_are_replaced(architecture):
    reranker, original = build(architecture), tiny.build_reranker(architecture)
    names = {name for name, module in original.stack.blocks.named_modules() if isinstance(module, nn.Linear)}
    replaced = {n for n, module in reranker.stack.blocks.named_modules() if isinstance(module, Int8Linear)}
    assert replaced == names
    assert len(names) >= 4 * reranker.stack.num_layers
    assert sum(isinstance(module, Int8Linear) for module in reranker.modules()) == len(names)
    assert not any(isinstance(module, nn.Linear) for module in reranker.stack.blocks.modules())
    assert {parameter.dtype for parameter in reranker.parameters()} == {torch.float32}


@ranking_architectures
def test_scores_rank_as_in_float32(architecture):
    expected = build(architecture, "float32").score(PAIRS, layers="all")
    scores = build(architecture).score(PAIRS, layers="all")
    assert not np.array_equal(scores, expected)
    assert (
        min(spearmanr(*of_exit).statistic for of_exit in zip(scores, expected, strict=True)) > 1 - 0.1 * STEP
    )
    assert largest_difference(scores, expected).max() < 0.2 * STEP


@ranking_architectures
def test_scores_do_not_depend_on_the_batch(architecture):
    """A rounding step of int8 may differ where float32, in attention and norms, differs by its last bit."""
    reranker = build(architecture)
    rows = list(reranker.prompt.rows([*PAIRS, (QUERY, "~" * 80)]))
    together = reranker.score_rows(rows, reranker.exits, tokens_per_batch=10**6)
    alone = reranker.score_rows(rows, reranker.exits, tokens_per_batch=1)
    assert largest_difference(together, alone).max() < 0.02


@pytest.mark.parametrize("architecture", ["llama", "bert", "modernbert", "gemma3_text"])
def test_packed_rows_score_as_padded_ones(architecture):
    packed, padded = build(architecture), tiny.build_reranker(architecture).eval()
    assert packed.first_position is not None
    padded.first_position = None
    padded.backbone.set_attn_implementation("sdpa")
    padded.set_precision("int8")
    difference = largest_difference(padded.score(PAIRS, layers="all"), packed.score(PAIRS, layers="all"))
    assert difference.max() < 0.02


@pytest.mark.parametrize("architecture", ["llama", "bert", "gemma2"])
@pytest.mark.parametrize("compression", [None, Compression.at(2, 2)])
def test_survivors_of_a_cascade_score_as_in_the_full_pass(architecture, compression):
    reranker = build(architecture)
    rows = list(reranker.prompt.rows(PAIRS))
    schedule = Schedule.parse("2:6 4")
    ranking = reranker.rank_rows(
        rows, schedule if compression is None else schedule.compress(compression), 64
    )
    full = reranker.score_rows(rows, [4], compression=compression)[0]
    survivors = ranking.order[:6]
    assert largest_difference(ranking.scores[survivors], full[survivors]) < 0.02


# --- Loading, and refusals ---


@pytest.fixture
def stored(tmp_path):
    tiny.build_reranker("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_stored_reranker_is_loaded_in_int8(stored):
    reranker = LayerwiseReranker.from_pretrained(stored, device="cpu", precision="int8")
    assert reranker.precision == "int8"
    assert np.array_equal(reranker.score(PAIRS), build("llama").score(PAIRS))
    reranker.set_precision("int8")  # again: nothing to do


def test_adapters_are_merged_before():
    reranker = tiny.build_reranker("llama").eval()
    before = reranker.score(PAIRS)
    torch.manual_seed(0)
    add_lora(reranker, LoraConfig(rank=4))
    for name, parameter in reranker.backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    expected = reranker.eval().score(PAIRS)
    reranker.set_precision("int8")
    scores = reranker.score(PAIRS)
    assert largest_difference(before, expected) > 0.3  # what ignoring them would give
    assert largest_difference(scores, expected) < 0.2
    assert not any("lora" in name for name, _ in reranker.named_modules())


def test_gpus_are_refused(monkeypatch):
    reranker = tiny.build_reranker("llama").eval().to("meta")
    with pytest.raises(ValueError, match="precision int8: computed by CPUs alone, not on meta; use bfloat16"):
        reranker.set_precision("int8")


def test_weights_of_another_type_are_refused(stored):
    with pytest.raises(ValueError, match=r"int8: made from float32 weights, not torch\.bfloat16"):
        LayerwiseReranker.from_pretrained(stored, device="cpu", dtype=torch.bfloat16, precision="int8")


def test_training_is_refused():
    with pytest.raises(ValueError, match="compute no gradients; train in float32 or bfloat16"):
        tiny.build_reranker("llama").train().set_precision("int8")
    reranker = build("llama").train()
    with pytest.raises(ValueError, match="compute no gradients"):
        reranker({"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4).long()})


def test_another_precision_afterwards_and_saving_are_refused(tmp_path):
    reranker = build("bert")
    with pytest.raises(
        ValueError, match="precision float32: the weights are int8 already; load the reranker"
    ):
        reranker.set_precision("float32")
    with pytest.raises(ValueError, match="int8 layers are not saved: save the reranker in float32"):
        reranker.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_blocks_without_linear_layers_are_refused():
    with pytest.raises(ValueError, match="the blocks of LayerNorm have no linear layers; use float32"):
        quantise_blocks(nn.ModuleList([nn.LayerNorm(4)]))


def test_weights_outside_linear_layers_are_told(capsys):
    block = nn.Module()
    block.router = nn.Linear(16, 4, bias=False)
    block.experts = nn.Parameter(torch.zeros(4, 16, 3))
    quantise_blocks(nn.ModuleList([block]))
    assert "192 of the blocks' 256 weights" in capsys.readouterr().err


def test_nothing_is_told_where_all_weights_are_in_linear_layers(capsys):
    build("bert")
    assert "precision int8" not in capsys.readouterr().err
