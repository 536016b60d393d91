"""Where a result came from: code, versions, machine, data, time and memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from lwr import __version__

PACKAGES = ["torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy"]
HOUSE = Path(__file__).parent


def code_digest(module: str) -> str:
    """sha256 over the sources of `lwr.{module}` and of every room of this package it imports, directly or not.

    An edit changes the digests of exactly the steps that can feel it; packages from outside don't count.
    """
    finder = ModuleFinder(path=[str(HOUSE.parent)])
    finder.run_script(str(HOUSE / f"{module}.py"))
    files = {HOUSE / f"{module}.py"} | {
        Path(found.__file__) for found in finder.modules.values() if found.__file__
    }
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_relative_to(HOUSE)):
        digest.update(f"{file.relative_to(HOUSE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def provenance(started: float, **facts: Any) -> dict[str, Any]:
    """facts, and what stood behind them. started: `time.time()` at the beginning, in seconds."""
    return {
        **facts,
        "lwr": __version__,
        "git_commit": git_commit(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "host": platform.node()},
        "wall_seconds": round(time.time() - started, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def git_commit() -> str | None:
    """The commit this package is checked out at, `+` where there are edits; None outside a checkout."""
    git = ["git", "-C", str(HOUSE)]
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
