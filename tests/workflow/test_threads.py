"""The threads of trainings and scorings: a share of the cores, or what a profile sets."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec

import pytest
import yaml
from project import ROOT, Project, copy_project, keep_one_cell


@pytest.fixture
def one_cell(tmp_path) -> Project:
    """Copy the project without results, with a grid of one cell."""
    project = copy_project(tmp_path)
    project.edit_config(keep_one_cell)
    return project


def planned_threads(project: Project, *arguments: str) -> dict[str, set[int]]:
    """Return the numbers of threads that the jobs of train and score get: {rule: numbers}."""
    out = project.snakemake("--dry-run", *arguments).stdout
    threads: dict[str, set[int]] = {"train": set(), "score": set()}
    for rule, job in re.findall(r"^rule (train|score):\n((?:    .*\n)*)", out, re.M):
        shown = re.search(r"^    threads: (\d+)$", job, re.M)  # not shown if it is 1
        threads[rule].add(int(shown[1]) if shown else 1)
    return threads


@pytest.mark.parametrize(
    ("cells", "options", "train", "score"),
    [
        (1, ["--cores", "8"], 8, 4),  # dev and test are scored at the same time
        (3, ["--cores", "8"], 2, 1),
        (8, ["--cores", "8"], 1, 1),
        (8, ["--cores", "8", "--resources", "gpu=1"], 8, 8),  # one job at a time
        (1, ["--cores", "8", "--config", "score={shards: 2}"], 8, 2),
    ],
)
def test_jobs_share_the_cores(one_cell, cells, options, train, score):
    one_cell.edit_config(lambda config: config.update(seeds=list(range(cells))))
    assert planned_threads(one_cell, *options) == {"train": {train}, "score": {score}}


needs_slurm = pytest.mark.skipif(
    find_spec("snakemake_executor_plugin_slurm") is None, reason="needs pip install lwr[slurm]"
)


@needs_slurm
def test_slurm_profile_sets_the_threads(one_cell):
    one_cell.edit_config(lambda config: config.update(seeds=[1, 2]))
    threads = planned_threads(one_cell, "--cores", "64", "--profile", "workflow/profiles/slurm")
    assert threads == {"train": {4}, "score": {4}}


@needs_slurm
def test_jobs_may_be_submitted_without_a_number_of_cores(one_cell):
    # a dry run has --cores 1 without it; a run fails at a file that no rule makes, after it has read all rules
    command = one_cell.command("--profile", "workflow/profiles/slurm", "--", "no-such-file")
    at = command.index("--cores")
    command = command[:at] + command[at + 2 :]
    run = subprocess.run(
        command, cwd=one_cell.folder, env=one_cell.environment(), capture_output=True, text=True
    )
    assert "No rule to produce no-such-file" in run.stdout + run.stderr


@pytest.mark.parametrize("name", ["slurm", "kubernetes", "aws-batch", "googlebatch"])
def test_profile_that_submits_jobs_sets_their_threads(name):
    profile = yaml.safe_load((ROOT / f"workflow/profiles/{name}/profile.yaml").read_text(encoding="utf-8"))
    assert profile["set-threads"].keys() == {"train", "score", "teach", "cost"}
