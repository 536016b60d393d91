"""Tests of the rates of training, with a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import lwr.training.throughput
from lwr.evaluation.flops import BackboneShape
from lwr.model.cascade_schedule import Compression
from lwr.training.throughput import Throughput, measure_matmul_speed

SHAPE = BackboneShape(weights=(100, 100), attended=(10, 10))
CPU = torch.device("cpu")


@pytest.mark.parametrize(("frozen", "passes"), [(False, 3), (True, 2)])
def test_rates_equal_a_calculation_by_hand(monkeypatch, frozen, passes):
    now = [100.0]
    monkeypatch.setattr(lwr.training.throughput, "measure_matmul_speed", lambda *_: 1000.0)
    monkeypatch.setattr(lwr.training.throughput, "time", SimpleNamespace(monotonic=lambda: now[0]))
    throughput = Throughput(SHAPE, CPU, torch.float32, frozen)
    throughput.add_batch(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]))
    throughput.add_batch(torch.tensor([[0, 1]]))
    now[0] += 2
    forward = 2 * sum(2 * n * 100 + 4 * n**2 * 10 for n in (3, 1, 1))
    expected = {"tokens_per_second": 5 / 2, "mfu": passes * forward / 2 / 1000}
    assert throughput.pop_rates() == pytest.approx(expected)
    throughput.add_batch(torch.tensor([[1]]))
    now[0] += 1
    assert throughput.pop_rates()["tokens_per_second"] == 1, "a batch counts once"


def test_compressed_pass_counts_what_it_computes(monkeypatch):
    monkeypatch.setattr(lwr.training.throughput, "measure_matmul_speed", lambda *_: 1000.0)
    throughput = Throughput(SHAPE, CPU, torch.float32, frozen_backbone=False)
    mask, passage = torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1, 0]])
    throughput.add_batch(mask, passage, Compression.at(1, 2))
    assert throughput.flop_count == 3 * sum(2 * n * 100 + 4 * n**2 * 10 for n in (4, 3))


def test_matmul_is_faster_than_a_python_loop():
    assert measure_matmul_speed(CPU, torch.float32, seconds=0.01) > 1e8
