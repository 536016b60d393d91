"""A copy of the project in a folder of its own, which tests may run, edit and run again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tiny
import yaml

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Project:
    """A folder with the Snakefile, lwr/, and config/test.yaml of its own."""

    folder: Path
    config: str = "config/test.yaml"

    def command(self, *arguments: str) -> list[str]:
        run = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", self.config]
        return [*run, *arguments]

    def environment(self) -> dict[str, str]:
        """In which its own code runs."""
        return os.environ | {"PYTHONPATH": str(self.folder)}

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        where = {"cwd": self.folder, "env": self.environment()}
        run = subprocess.run(self.command(*arguments), **where, capture_output=True, text=True, timeout=1200)
        if check:
            assert run.returncode == 0, run.stdout + run.stderr
        return run

    def plan(self, *arguments: str) -> list[tuple[str, dict[str, str]]]:
        """(rule, wildcards) of each job that would run; `all` aside."""
        out = self.snakemake("--dry-run", *arguments)
        jobs = re.findall(
            r"^rule (\w+):\n((?:    .*\n)*)",
            re.sub(r"^\[.*\]\n", "", out.stdout + out.stderr, flags=re.M),
            re.M,
        )
        return [(rule, _wildcards(about)) for rule, about in jobs if rule != "all"]

    def rules(self, *arguments: str) -> set[str]:
        return {rule for rule, _ in self.plan(*arguments)}

    def edit_config(self, edit) -> None:
        path = self.folder / "config/test.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        edit(config)
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def tables(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.folder / "results/test/tables").iterdir()}


def _wildcards(about: str) -> dict[str, str]:
    found = re.search(r"^    wildcards: (.*)$", about, re.M)
    return dict(pair.split("=", 1) for pair in found[1].split(", ")) if found else {}


def copy_project(folder: Path) -> Project:
    for part in ("Snakefile", "workflow", "lwr", "config", "environment.yml"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / part)
    for name in ("llama", "bert"):
        tiny.save(name, folder / "checkpoints" / f"tiny-{name}")
    return Project(folder)
