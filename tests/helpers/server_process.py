"""A server process: `lwr serve` on a free port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2


def start(model: Path, *options: str, **environment: str) -> tuple[subprocess.Popen, str]:
    """The process and its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lwr.cli", "serve", "--model", str(model), "--port", str(port), *options]
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | alone | environment
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            if httpx2.get(f"{address}/health").status_code == 200:
                return process, address
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError("no answer after a minute")


def stop(process: subprocess.Popen) -> str:
    """Return its output; it must end by itself, without a traceback."""
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in said, said
    return said
