"""Tests of scoring in 16 bits, and of the warning where a CPU multiplies them slower than float32."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from lwr.model.linear import half

PAIRS = [("load the object", f"def decode{i}(s): return s" + " and more" * (i % 4)) for i in range(8)]
dtypes = pytest.mark.parametrize("precision", ["bfloat16", "float16"])


@dtypes
@pytest.mark.parametrize("architecture", ["llama", "bert", "modernbert"])
def test_blocks_compute_in_16_bits_and_heads_in_float32(architecture, precision):
    reranker = tiny.build_reranker(architecture).eval()
    expected = reranker.score(PAIRS, layers="all")
    reranker.set_precision(precision)
    scores = reranker.score(PAIRS, layers="all")
    assert scores.dtype == np.float32
    assert not np.array_equal(scores, expected)
    assert len(np.unique(scores[0])) == len(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=0.1 * np.ptp(expected))


@pytest.mark.parametrize("layer", [None, 2])
def test_states_beyond_float16_are_an_error(layer):
    reranker = tiny.build_reranker("llama").eval()
    with torch.no_grad():
        reranker.stack.blocks[0].mlp.down_proj.weight *= 1e8
    assert np.isfinite(reranker.score(PAIRS)).all()
    reranker.set_precision("float16")
    with pytest.raises(FloatingPointError, match=r"not finite.*precision float32"):
        reranker.score(PAIRS, layer)
    with pytest.raises(FloatingPointError, match=r"not finite.*precision float32"):
        reranker.rank(PAIRS[0][0], [text for _, text in PAIRS], layer)


@dtypes
@pytest.mark.parametrize(("ratio", "warns"), [(0.4, False), (1.4, False), (6.04, True)])
def test_loading_warns_where_16_bits_are_slower(ratio, warns, precision, monkeypatch, capsys):
    monkeypatch.setattr(half, "time_ratio", lambda dtype: ratio)
    tiny.build_reranker("bert").set_precision(precision)
    shown = capsys.readouterr().err
    assert (f"{precision}: this CPU multiplies in it 6.0 times as slowly" in shown) is warns
    assert bool(shown) is warns


def test_other_precisions_and_devices_are_not_measured(monkeypatch):
    def fail(dtype):
        raise AssertionError("measured")

    monkeypatch.setattr(half, "time_ratio", fail)
    tiny.build_reranker("bert").set_precision("float32")
    half.warn_if_slow(torch.device("cuda"), torch.float16)


def test_the_measurement_is_a_ratio_of_times():
    assert 0 < half.time_ratio.__wrapped__(torch.bfloat16) < 1000
