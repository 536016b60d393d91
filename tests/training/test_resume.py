"""Tests that a training killed at any moment resumes from its last checkpoint and ends with the same weights."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

from lwr.common.json_lines import write_jsonl
from lwr.config.model import BaseModelConfig
from lwr.config.training import RandomCompressionConfig, TrainingConfig
from lwr.training.train import train

KILLS = int(os.environ.get("LWR_KILLS", 2))
SETTINGS = TrainingConfig(
    steps=48,  # most kills must come after the start, or nothing is resumed
    groups_per_batch=2,
    group_size=3,
    query_max_len=8,
    passage_max_len=56,
    checkpoint_steps=2,
    log_steps=12,
    # what a step draws must not depend on where the training began
    compression=RandomCompressionConfig(layers=[2, 3], ratios=[1, 2, 4]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny.save("bert", folder / "tiny-bert")  # with dropout, so that the random state must be restored
    passages = [f"def f{i}(self, {'x, ' * (i % 4)}y): return decode(y, {i})" for i in range(20)]
    groups = (
        {"query": f"decode {i}", "pos": [passages[i]], "neg": passages[i + 1 : i + 4]} for i in range(16)
    )
    write_jsonl(folder / "groups.jsonl", groups)
    return folder


def run(folder: Path, out: str) -> None:
    base = BaseModelConfig(model=str(folder / "tiny-bert"))
    train(base, 2, SETTINGS, folder / "groups.jsonl", folder, folder / "none.trec", 1, folder / out / "model")


def start(folder: Path, out: str) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, out))
    process.start()
    return process


def weight_bytes(folder: Path, out: str) -> dict[str, bytes]:
    tensors = {}
    for file in ("model.safetensors", "heads.safetensors"):
        tensors |= load_file(folder / out / "model" / file)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.slow
def test_kills_at_random_moments_change_no_weight(folder):
    began = time.monotonic()
    undisturbed = start(folder, "undisturbed")
    undisturbed.join()
    lasts = time.monotonic() - began
    expected = weight_bytes(folder, "undisturbed")

    rng = random.Random(1)
    resumed = 0
    for kill in range(KILLS):
        out = f"killed{kill}"
        process = start(folder, out)
        time.sleep(rng.uniform(0.1, 0.95) * lasts)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        model = folder / out / "model"
        assert not model.exists() or weight_bytes(folder, out) == expected, (
            "an incomplete model has its final name"
        )
        resumed += any((folder / out).glob("model.checkpoints-*/checkpoint-*/whole"))

        process = start(folder, out)
        process.join()
        assert process.exitcode == 0
        assert weight_bytes(folder, out) == expected, f"kill {kill}: resumed to other weights"
        assert [path.name for path in (folder / out).iterdir()] == ["model"], "checkpoints or drafts are left"
    assert resumed >= KILLS // 3, "the kills came too early to test resuming"


@pytest.mark.slow
def test_incomplete_checkpoint_is_skipped(folder):
    process = start(folder, "cut")
    while not list((folder / "cut").glob("model.checkpoints-*/checkpoint-4/whole")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (newest,) = (folder / "cut").glob("model.checkpoints-*/checkpoint-4")
    (newest / "whole").unlink()
    (newest / "model.safetensors").write_bytes(b"cut short")
    run(folder, "cut")
    undisturbed = start(folder, "cut-reference")
    undisturbed.join()
    assert weight_bytes(folder, "cut") == weight_bytes(folder, "cut-reference")
