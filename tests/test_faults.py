"""Faults that no input causes (memory, disks, overflow) end with one clear message, and shell commands are quoted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bad_input_cases import with_option
from bad_input_world import COLLECT, SCORE, TRAIN, Case, build, no_damage, run

from lwr.cli.app import main as lwr_main
from lwr.common.json_lines import write_jsonl
from lwr.model.batching import out_of_memory_hint
from lwr.model.reranker import LayerwiseReranker

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("faults") / "world")


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "here"))
    monkeypatch.delenv("LWR_DEBUG", raising=False)
    return tmp_path / "here"


# --- memory --------------------------------------------------------------------------------------------


def fails_with(monkeypatch, error: Exception) -> None:
    def encode(*_, **__):
        raise error

    monkeypatch.setattr(LayerwiseReranker, "encode", encode)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
    ids=["gpu", "cpu"],
)
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (TRAIN, ("a batch of 6 rows of ", "lower groups_per_batch", "passage_max_len", "recompute: blocks")),
        (SCORE, ("10 rows of up to ", "set tokens_per_batch below 2048")),
    ],
    ids=["train", "score"],
)
def test_out_of_memory_names_the_batch_and_what_to_set(here, monkeypatch, command, says, error):
    fails_with(monkeypatch, error)
    outcome = run(Case("", command, no_damage))
    assert outcome.code == 1
    assert outcome.stderr.count("out of memory") == 1
    assert all(text in outcome.stderr for text in says), outcome.stderr
    assert outcome.changed == []


@pytest.mark.parametrize("command", [TRAIN, SCORE], ids=["train", "score"])
def test_other_runtime_errors_are_not_swallowed(here, monkeypatch, command):
    fails_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(Case("", command, no_damage))


def test_hint_is_unused_without_an_error():
    with out_of_memory_hint("nothing"):
        pass


# --- numbers -------------------------------------------------------------------------------------------


def test_infinite_gradient_at_the_last_step_saves_no_model(here, monkeypatch):
    """No later loss would reveal it, so weights of NaN would be saved."""
    score = LayerwiseReranker._score

    def with_a_broken_gradient(self, layer, layout, state):
        scores = score(self, layer, layout, state)
        if layer == 3 and scores.requires_grad:
            scores.register_hook(lambda gradient: gradient * torch.inf)
        return scores

    monkeypatch.setattr(LayerwiseReranker, "_score", with_a_broken_gradient)
    settings = TRAIN[TRAIN.index("--settings") + 1].replace("steps: 2", "steps: 1")
    outcome = run(Case("", with_option(TRAIN, "--settings", settings), no_damage))
    assert outcome.code == 1
    assert "the gradient of exits [3" in outcome.stderr
    assert re.search(r"groups\.jsonl:\d, groups\.jsonl:\d;", outcome.stderr)
    assert outcome.changed == []


# --- disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("command", "name"),
    [(COLLECT, "collection"), (TRAIN, "model"), (SCORE, "scores.parquet")],
    ids=["collect", "train", "score"],
)
def test_full_disk_is_reported_and_keeps_previous_files(here, small_disk, command, name):
    long = ({"_id": f"d{i}", "text": f"decode {i * i} " * 500} for i in range(12))
    write_jsonl(Path("data/corpus.jsonl"), long)
    (small_disk / "precious").write_bytes(b"x" * 64 * 1024)
    before = written(small_disk)
    outcome = run(Case("", with_option(command, "--out", str(small_disk / name)), no_damage))
    assert outcome.code == 1
    assert "No space left on device" in outcome.stderr
    assert str(small_disk) in outcome.stderr
    assert written(small_disk) == before
    assert [path.name for path in small_disk.iterdir() if path.name.startswith(".draft")] == []


@pytest.mark.parametrize("command", [COLLECT, TRAIN, SCORE], ids=["collect", "train", "score"])
def test_read_only_disk_is_reported_before_the_work(here, small_disk, command, monkeypatch):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    if command is TRAIN:
        monkeypatch.setattr("lwr.training.train.build_reranker", lambda *_: pytest.fail("training started"))
    outcome = run(Case("", with_option(command, "--out", str(small_disk / "out")), no_damage))
    assert outcome.code == 1
    assert re.search(rf"Read-only file system.*: '{small_disk}/out", outcome.stderr), outcome.stderr


# --- tracebacks ----------------------------------------------------------------------------------------


def test_debug_option_shows_the_traceback(here, monkeypatch):
    arguments = ["--debug", "collect", "--dataset", "{source: {kind: beir, path: nowhere}}", "--out", "o"]
    run_it = [sys.executable, "-m", "lwr.cli", *arguments]
    ended = subprocess.run(run_it, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "nowhere/queries.jsonl: no such file" in ended.stderr
    monkeypatch.setattr("sys.argv", ["lwr", *arguments])
    monkeypatch.setenv("LWR_DEBUG", "")
    with pytest.raises(ValueError, match="no such file"):
        lwr_main()


# --- shells --------------------------------------------------------------------------------------------

SAFE = {"wildcards.split", "wildcards.start_layer", "wildcards.seed"}
"""Names of splits, and integers: see wildcard_constraints in common.smk."""
SAFE |= {"resources.gpu", "resources.processes", "params.margin", "params.shard"}
"""Numbers, and K/N of numbers."""


@pytest.mark.parametrize("file", sorted((ROOT / "workflow/rules").glob("*.smk")), ids=lambda file: file.name)
def test_every_placeholder_of_a_shell_command_is_quoted(file):
    text = file.read_text(encoding="utf-8")
    commands = re.findall(r"^    +shell:\n((?: +\"[^\n]*\n)+)", text, re.MULTILINE)
    assert len(commands) == len(re.findall(r"^ +shell:", text, re.MULTILINE))
    # repeated_option() in common.smk quotes each value.
    quoted_params = re.findall(r"^ +(\w+)=lambda w, input: repeated_option\(", text, re.MULTILINE)
    safe = SAFE | {f"params.{name}" for name in quoted_params}
    for name, quoted in re.findall(r"\{([\w.\[\]]+)(:q)?\}", "".join(commands)):
        assert quoted or name in safe, f"{{{name}}} in {file.name}: write {{{name}:q}}"
