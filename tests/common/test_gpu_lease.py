"""GPUs are leased one step each, for as long as the step lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A step that says which devices it got and stays for a while: what `launch_step` becomes, without a training.
STEP = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); time.sleep(60)"
LAUNCH = f"""
import os, sys
import lwr.common.gpu_lease
become = os.execv
os.execv = lambda *_: become(sys.executable, [sys.executable, "-c", {STEP!r}])
lwr.common.gpu_lease.launch_step(["train"], gpus=int(sys.argv[1]), processes=1)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A machine with two GPUs, as nvidia-smi tells, and locks of its own."""
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


def test_two_steps_get_two_devices_and_a_third_waits_until_one_is_killed(machine, start):
    first, second = start(1), start(1)
    assert {devices(first), devices(second)} == {"0", "1"}
    third = start(1)
    assert "waiting for 1" in third.stderr.readline()
    time.sleep(1.5)
    assert third.poll() is None
    first.send_signal(signal.SIGKILL)  # a kill frees the device: no lock file has to be cleaned up
    assert devices(third) in {"0", "1"}


def test_two_devices_at_once(machine, start):
    assert devices(start(2)) == "0,1"


def test_the_devices_that_the_user_leaves_visible(machine, start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert devices(start(1)) == "7"


def test_more_than_there_are_is_refused(machine, start):
    process = start(3)
    assert process.wait(30) != 0
    assert "3 GPUs asked for, but this machine offers 2" in process.stderr.read()


def test_under_slurm_nothing_is_leased(machine, start, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert devices(start(1)) == "None"
    assert not list(machine.glob("lwr-gpus-*"))


def test_without_gpus_nothing_is_leased(machine, start):
    (machine / "bin/nvidia-smi").unlink()
    assert devices(start(1)) == "None"
