"""Tests of `lwr check`, and of the workflow, which checks a config before any job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from grids import GRID

ROOT = Path(__file__).parents[2]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_check_describes_a_valid_grid(workflow_folder):
    checked = run(workflow_folder, "lwr.cli", "check", "config/test.yaml")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("3 cells")
    assert "tiny-bert; start layers: 4; last layer: 4" in checked.stdout


def test_check_reports_every_problem_of_an_invalid_grid(workflow_folder):
    (workflow_folder / "wrong.yaml").write_text(GRID.replace("[2, 4]", "[9, 9]"), encoding="utf-8")
    checked = run(workflow_folder, "lwr.cli", "check", "wrong.yaml")
    assert checked.returncode == 1
    deep, duplicate = checked.stderr.splitlines()
    assert deep.startswith("wrong.yaml:5: start_layers: 9 is deeper")
    assert duplicate.startswith("wrong.yaml:5: start_layers: 9 is duplicated")


def test_check_reports_widths_that_cannot_be_scored(workflow_folder):
    widths = "score: {widths: [[2, 2], [6, 2], [2, 2]]}\n"
    (workflow_folder / "wide.yaml").write_text(GRID + widths, encoding="utf-8")
    checked = run(workflow_folder, "lwr.cli", "check", "wide.yaml")
    assert checked.returncode == 1
    line = f"wide.yaml:{len(GRID.splitlines()) + 1}: score.widths: "
    duplicate, deep = sorted(checked.stderr.splitlines())
    assert duplicate == f"{line}[2, 2] is duplicated; remove one"
    assert deep.startswith(f"{line}no block of ")


def test_check_reports_training_compression_after_the_last_block(workflow_folder):
    grid = GRID.replace(
        "  group_size: 4\n", "  group_size: 4\n  compression: {layers: [2, 6], ratios: [2]}\n"
    )
    (workflow_folder / "wide.yaml").write_text(grid, encoding="utf-8")
    checked = run(workflow_folder, "lwr.cli", "check", "wide.yaml")
    assert checked.returncode == 1
    assert (
        "wide.yaml:8: train.compression: no block of minilm reads the tokens after layer 6" in checked.stderr
    )


def test_the_workflow_reports_problems_before_any_job(workflow_folder):
    broken = GRID.replace("group_size", "grop_size").replace("nDCG@10", "nDGC@10")
    (workflow_folder / "my grid ü.yaml").write_text(broken, encoding="utf-8")
    command = ["snakemake", "--dry-run", "--configfile", "my grid ü.yaml", "--config", "seeds=[1,1]"]
    stopped = run(workflow_folder, *command)
    printed = stopped.stdout + stopped.stderr
    assert stopped.returncode != 0
    assert "my grid ü.yaml:7: train.grop_size: " in printed
    assert "my grid ü.yaml:8: measures: nDGC@10 " in printed
    assert "--config: seeds: 1 " in printed
    assert "Traceback" not in printed
    assert "rule " not in printed


def test_the_workflow_takes_a_config_with_a_space_in_its_path(workflow_folder):
    (workflow_folder / "my grid.yaml").write_text(GRID, encoding="utf-8")
    command = ["snakemake", "--dry-run", "--quiet", "rules", "--configfile", "my grid.yaml"]
    planned = run(workflow_folder, *command)
    assert planned.returncode == 0, planned.stdout + planned.stderr
