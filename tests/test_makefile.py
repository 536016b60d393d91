"""The Makefile finds a Python by itself, or says what to install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def make(folder: Path, programs: dict[str, str], *options: str) -> subprocess.CompletedProcess:
    """Make the environment in a folder where only `programs` are on the path: name -> shell script."""
    shutil.copy(ROOT / "Makefile", folder)
    for file in ("pyproject.toml", "requirements.lock"):
        (folder / file).touch()
    (folder / "bin").mkdir()
    for name, script in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    command = [str(shutil.which("make")), *options, ".venv/.installed"]
    path = {"PATH": str(folder / "bin")}
    return subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("programs", "first_command"),
    [
        ({"python3.12": "exit 0", "python3.13": "exit 0"}, "python3.12 -m venv .venv"),
        (
            {"python3.11": "exit 1", "python3.13": "exit 0"},
            "python3.13 -m venv .venv",
        ),  # 3.11 lacks ensurepip
        ({"python3.11": "exit 1", "uv": "exit 0"}, "uv venv --seed --python '>=3.11,<3.14' .venv"),
    ],
)
def test_the_first_usable_python_makes_the_environment(tmp_path, programs, first_command):
    planned = make(tmp_path, programs, "--dry-run").stdout.splitlines()
    assert next(line for line in planned if not line.startswith("command -v")) == first_command


def test_what_to_install_is_said_where_there_is_no_python(tmp_path):
    done = make(tmp_path, {})
    assert done.returncode == 2
    assert (
        "This needs Python 3.11, 3.12 or 3.13 with venv (Debian, Ubuntu: apt install python3-venv), or uv"
        in done.stderr
    )
