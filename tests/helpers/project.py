"""A copy of the project in a folder of its own, which tests run, edit and run again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny
import yaml

ROOT = Path(__file__).parent.parent.parent
PARTS = ("workflow", "lwr", "config")

REPORTING_STEPS = {"compare", "tables", "advise", "figures", "report"}
FROM_EVALUATE = {"evaluate", *REPORTING_STEPS}
"""The step `evaluate` and the steps that use its results; the next three likewise."""
FROM_CASCADE = {"cascade", "cost", *FROM_EVALUATE}
FROM_FUSE = {"fuse", "calibrate", *FROM_CASCADE}
FROM_SCORE = {"score", *FROM_FUSE}

Job = tuple[str, dict[str, str]]
"""Rule and wildcards."""


@dataclass(frozen=True)
class Project:
    """A folder with the workflow, lwr/ and the configuration of a grid."""

    folder: Path
    config: str = "config/test.yaml"

    @property
    def results(self) -> Path:
        return self.folder / "results/test"

    def command(self, *arguments: str) -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", self.config]
        return [*snakemake, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment in which the copied lwr/ is imported."""
        return os.environ | {"PYTHONPATH": str(self.folder)}

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        run = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=1800,
        )
        if check:
            assert run.returncode == 0, run.stdout + run.stderr
        return run

    def plan(self, *arguments: str) -> list[Job]:
        """Return each job that a dry run lists, without the rule `all`."""
        run = self.snakemake("--dry-run", *arguments)
        without_times = re.sub(r"^\[.*\]\n", "", run.stdout + run.stderr, flags=re.M)
        listed = re.findall(r"^rule (\w+):\n((?:    .*\n)*)", without_times, re.M)
        return [(rule, _wildcards(description)) for rule, description in listed if rule != "all"]

    def planned_rules(self, *arguments: str) -> set[str]:
        return {rule for rule, _ in self.plan(*arguments)}

    def edit_config(self, edit: Callable[[dict], object]) -> None:
        """Pass the configuration to `edit`, which changes it in place, and write it back."""
        path = self.folder / self.config
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        edit(config)
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def tables(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (self.results / "tables").iterdir()}


def _wildcards(description: str) -> dict[str, str]:
    found = re.search(r"^    wildcards: (.*)$", description, re.M)
    return dict(pair.split("=", 1) for pair in found[1].split(", ")) if found else {}


def keep_one_cell(config: dict) -> None:
    """Reduce config/test.yaml to the smallest grid that has a job of every rule."""
    del config["base_models"]["tiny-bert"]
    config["start_layers"] = [2]


def copy_project(folder: Path) -> Project:
    """Copy the project and save the two checkpoints that config/test.yaml names."""
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=ignored)
    for name in ("llama", "bert"):
        tiny.save(name, folder / "checkpoints" / f"tiny-{name}")
    return Project(folder)
