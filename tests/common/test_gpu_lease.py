"""A GPU is leased to one step at a time, until the step ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lwr.common.gpu_lease import launch_step

STEP = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); time.sleep(60)"
"""A step that prints its devices and keeps them for a minute."""
LAUNCH = f"""
import os, sys
import lwr.common.gpu_lease
execv = os.execv
os.execv = lambda *_: execv(sys.executable, [sys.executable, "-c", {STEP!r}])
lwr.common.gpu_lease.launch_step(["train"], gpus=int(sys.argv[1]), processes=1)
"""
"""A program that launches STEP in place of a training."""


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """Simulate a machine with two GPUs and no leases, by an nvidia-smi of its own."""
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


@pytest.fixture
def start():
    processes = []

    def start(gpus: int) -> subprocess.Popen:
        command = [sys.executable, "-c", LAUNCH, str(gpus)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def devices(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def test_third_step_waits_until_one_of_two_is_killed(machine, start):
    first, second = start(1), start(1)
    assert {devices(first), devices(second)} == {"0", "1"}
    third = start(1)
    assert "waiting for 1" in third.stderr.readline()
    time.sleep(1.5)
    assert third.poll() is None
    first.send_signal(signal.SIGKILL)  # a kill frees the device too
    assert devices(third) in {"0", "1"}


def test_step_may_lease_two_devices(machine, start):
    assert devices(start(2)) == "0,1"


def test_lease_is_limited_to_visible_devices(machine, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert devices(start(1)) == "7"


def test_more_gpus_than_the_machine_has_is_refused(machine, start):
    process = start(3)
    assert process.wait(30) != 0
    message = process.stderr.read()
    assert "3 GPUs" in message
    assert "offers 2" in message


def test_nothing_is_leased_under_slurm(machine, start, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert devices(start(1)) == "None"
    assert not list(machine.glob("lwr-gpus-*"))


def test_nothing_is_leased_without_gpus(machine, start):
    (machine / "bin/nvidia-smi").unlink()
    assert devices(start(1)) == "None"


@pytest.mark.parametrize(("given", "each"), [("8", "4"), ("1", "1"), (None, "1")])
def test_processes_share_the_threads(monkeypatch, given, each):
    commands = []
    monkeypatch.setattr("os.execv", lambda _, command: commands.append(command))
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # leases no GPU
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    launch_step(["train"], gpus=1, processes=2)
    (command,) = commands
    assert command[command.index("--num_cpu_threads_per_process") + 1] == each
