"""Tests of the warning where a CPU multiplies bfloat16 slower than float32."""

from __future__ import annotations

import pytest
import tiny
import torch

from lwr.model.linear import bfloat16


@pytest.mark.parametrize(("ratio", "warns"), [(0.4, False), (1.4, False), (6.04, True)])
def test_loading_warns_where_bfloat16_is_slower(ratio, warns, monkeypatch, capsys):
    monkeypatch.setattr(bfloat16, "time_ratio", lambda: ratio)
    tiny.build_reranker("bert").set_precision("bfloat16")
    shown = capsys.readouterr().err
    assert ("6.0 times as slowly as in float32" in shown) is warns
    assert bool(shown) is warns


def test_other_precisions_and_devices_are_not_measured(monkeypatch):
    def fail():
        raise AssertionError("measured")

    monkeypatch.setattr(bfloat16, "time_ratio", fail)
    tiny.build_reranker("bert").set_precision("float32")
    bfloat16.warn_if_slow(torch.device("cuda"))


def test_the_measurement_is_a_ratio_of_times():
    assert 0 < bfloat16.time_ratio.__wrapped__() < 1000
