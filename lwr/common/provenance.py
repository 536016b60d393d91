"""Where a result came from: code, versions, machine, data, time and memory."""

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


class ResourceMeter:
    """Time and energy from its making on."""

    def __init__(self) -> None:
        self.began, self.joules = time.monotonic(), package_joules()

    def read(self) -> dict[str, float | None]:
        """energy_joules: of the processor packages, everything that ran on them; None where it can't be read."""
        before, now = self.joules, package_joules()
        counted = before is not None and now is not None and now >= before  # the counter wraps around
        return {
            "wall_seconds": round(time.monotonic() - self.began, 1),
            "energy_joules": round(now - before, 1) if counted else None,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def package_joules() -> float | None:
    """What the processor packages have used since some time ago, by Linux's powercap."""
    try:
        meters = Path("/sys/class/powercap").glob("*-rapl:?")
        microjoules = [int((meter / "energy_uj").read_text()) for meter in meters]
    except OSError:
        return None
    return sum(microjoules) / 1e6 if microjoules else None


def make_provenance(meter: ResourceMeter, **facts: Any) -> dict[str, Any]:
    """facts, and what stood behind them."""
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
    """Model and number of the processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def git_commit() -> str | None:
    """The commit this package is checked out at, `+` where there are edits; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        edits = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if edits.strip() else "")
