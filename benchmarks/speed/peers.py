"""Run contenders in separate processes and environments, one at a time."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TORCH = f"torch=={version('torch').partition('+')[0]}"
PEERS = {
    "ours": None,
    "cores": None,
    "flagembedding": [TORCH, "FlagEmbedding==1.4.2", "transformers==4.44.2", "peft==0.12.0"],
    "cross_encoder": [TORCH, "sentence-transformers==6.2.0", "transformers==5.23.0"],
}
"""Packages of each environment; None is the environment of this process."""
RETURN_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Settings for glibc: freed memory returns to the system at once, so that peaks do not include it."""


def interpreter(peer: str, environments: Path) -> Path:
    """Return the interpreter of a peer's environment, and create the environment on its first use."""
    packages = PEERS[peer]
    if packages is None:
        return Path(sys.executable)
    folder = environments / peer
    if not (folder / "installed").exists():
        print(f"installing {' '.join(packages)} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").touch()
    return folder / "bin/python"


@contextmanager
def contender(peer: str, environments: Path, threads: int, *arguments: str, **environment: str) -> Iterator:
    """Start workers/{peer}.py; yield a function that sends it a task and returns its answer, both JSON."""
    command = [interpreter(peer, environments), HERE / "workers" / f"{peer}.py", *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"} | environment
    worker = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    )

    def ask(**task: Any) -> dict[str, Any]:
        worker.stdin.write(json.dumps(task) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"{peer} died; its output is above")
        return json.loads(answer)

    try:
        yield ask
    finally:
        worker.kill()
        worker.wait()


def describe_machine(threads: int) -> str:
    """Describe date, machine and versions in one line, for the head of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor()
    )
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "lwr"))
    plural = "s" if threads > 1 else ""
    return f"{date.today()}, {threads} thread{plural} of {name}; {packages}"


def format_spread(values: list[float], digits: int = 2) -> str:
    """Format the median and the middle half of values."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
