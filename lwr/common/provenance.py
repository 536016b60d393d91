"""Record what a result depends on: code, package versions, machine, time, energy and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

PACKAGES = ["torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy"]
"""Packages whose versions are recorded, as they change numbers."""


class ResourceMeter:
    """A meter of the time, energy and memory that a step uses; it starts when it is created."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.joules_at_start = read_cpu_joules()

    def read(self) -> dict[str, float | None]:
        """Return the time, energy and memory used since the start.

        Returns:
            `wall_seconds`; `energy_joules`, used by all processes on the CPUs of this machine (None if it cannot be
            read); `peak_memory_mib` of this process.
        """
        before, now = self.joules_at_start, read_cpu_joules()
        energy = None
        # the counter is lower than at the start if it wrapped around
        if before is not None and now is not None and now >= before:
            energy = round(now - before, 1)
        return {
            "wall_seconds": round(time.monotonic() - self.started_at, 1),
            "energy_joules": energy,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def read_cpu_joules() -> float | None:
    """Return the energy counter of the CPUs from Linux's powercap interface, or None if it cannot be read.

    Only differences between two readings have a meaning.
    """
    try:
        counters = Path("/sys/class/powercap").glob("*-rapl:?")
        microjoules = [int((counter / "energy_uj").read_text()) for counter in counters]
    except OSError:
        return None
    return sum(microjoules) / 1e6 if microjoules else None


def make_provenance(meter: ResourceMeter, **facts: Any) -> dict[str, Any]:
    """Return `facts` together with the code, versions, machine and resources behind them, for a JSON file."""
    return {
        **facts,
        "lwr": importlib.metadata.version("lwr"),
        "git_commit": git_commit(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {"host": platform.node(), "system": platform.platform(), "processor": processor_name()},
        **meter.read(),
    }


def processor_name() -> str:
    """Return the number and the model of the processors, such as `8 x Intel(R) Xeon(R)`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def git_commit() -> str | None:
    """Return the git commit of this package, with `+` appended if there are edits; None outside a checkout."""
    try:
        commit = _git_output("rev-parse", "HEAD").strip()
        edits = _git_output("status", "--porcelain").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if edits else "")


def _git_output(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
