"""The wheel, installed without this repository: it ranks, and `lwr init` makes a grid that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import yaml
from project import ROOT, keep_one_cell

RANK = """
import sys
from lwr import LayerwiseReranker
import lwr
assert lwr.__file__.startswith(sys.prefix), lwr.__file__
print(LayerwiseReranker.from_pretrained(sys.argv[1]).rank("a", ["a passage", "b"], layer=2))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel."""

    folder: Path

    def run(self, program: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
        command = [self.folder / "bin" / program, *arguments]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel, in a copy of what goes into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("lwr", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run(build, cwd=folder, check=True)
    [built] = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Environment:
    """Install the wheel in a new environment, which sees the packages of this one after its own."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    made = Environment(folder)
    installed = made.run("python", "-m", "pip", "install", "--no-deps", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    [own_packages] = folder.glob("lib/python*/site-packages")
    (own_packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    return made


@pytest.mark.slow
def test_init_makes_a_grid_that_runs(environment, tmp_path):
    said = environment.run("lwr", "init", "my-grid", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    folder = tmp_path / "my-grid"
    assert (folder / "config/config.yaml").read_text() == (ROOT / "config/config.yaml").read_text()
    tiny.save("llama", folder / "checkpoints/tiny-llama")
    grid = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    keep_one_cell(grid)
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    run = environment.run(
        "python", "-m", "snakemake", "--cores", "2", "--configfile", "config/tiny.yaml", cwd=folder
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Using workflow specific profile workflow/profiles/default" in run.stderr
    assert "tiny-llama" in (folder / "results/test/tables/layers.md").read_text()


@pytest.mark.nightly
def test_wheel_in_a_bare_environment_reranks(wheel, golden, tmp_path):
    """Install the wheel and its own dependencies, and nothing else."""
    venv.create(tmp_path / "bare", with_pip=True)
    bare = Environment(tmp_path / "bare")
    installed = bare.run("python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    ranked = bare.run("python", "-c", RANK, golden / "minicpm-layerwise-tiny", cwd=tmp_path)
    assert ranked.returncode == 0, ranked.stderr
    assert "a passage" in ranked.stdout
    shown = bare.run("lwr", "--help", cwd=tmp_path)
    assert "lwr[workflow]" in shown.stdout
    options = ["--collection", tmp_path, "--split", "test", "--settings", "{depth: 5}", "--out", "run.trec"]
    refused = bare.run("lwr", "retrieve", *options, cwd=tmp_path)
    assert refused.stderr == "lwr: retrieve needs Stemmer: pip install 'lwr[workflow]'\n"
