"""Snakemake and all of its jobs are killed at random moments; the finished grid is the one of an undisturbed run.

LWR_KILLS is the number of kills: 2 by default; `make test-nightly` sets 10.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time

import pytest
from project import Project
from sessions import kill_session, start

from lwr.verify.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]

KILLS = int(os.environ.get("LWR_KILLS", 2))
STARTUP = 3.0
"""Seconds in which Snakemake loads and no job runs: a kill in them tests nothing."""
UNFINISHED = re.compile("missing|no such file|No such file|no scores, measures or cascades")
"""Faults that `verify` may report of a grid that is not finished."""


def duration(project: Project) -> float:
    """Return the seconds between the first and the last file of a run."""
    times = [file.stat().st_mtime for file in (project.folder / "results").rglob("*") if file.is_file()]
    return max(times) - min(times)


def remove_results(project: Project) -> None:
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / ".snakemake")


def test_kills_at_random_moments_change_nothing(finished_cell, cell):
    longest, expected, rng = duration(finished_cell), finished_cell.tables(), random.Random(1)
    running = 0
    for number in range(1, KILLS + 1):
        remove_results(cell)
        process = start(cell)
        moment = STARTUP + rng.uniform(0, longest)
        time.sleep(moment)
        running += process.poll() is None
        kill_session(process)
        if (cell.results / "collections").exists():
            faults = verify(cell.results).faults
            assert [fault for fault in faults if not UNFINISHED.search(fault)] == []
        cell.snakemake("--unlock")
        cell.snakemake("--rerun-incomplete")
        assert cell.tables() == expected
        assert verify(cell.results).faults == []
        assert cell.plan() == []
        print(f"kill {number} after {moment:.1f} s: the same {len(expected)} tables, verified")
    assert running >= KILLS * 2 // 3, "the kills came after the end of the run"


def test_a_second_snakemake_in_the_same_folder_is_refused(finished_cell, cell):
    remove_results(cell)
    first = start(cell)
    try:
        while not list((cell.folder / ".snakemake/locks").glob("*")):
            assert first.poll() is None, "Snakemake ended before it locked its folder"
            time.sleep(0.05)
        # --rerun-incomplete: without it, the second stops at the incomplete files of the first and not at its lock
        second = cell.snakemake("--rerun-incomplete", check=False)
        assert second.returncode != 0
        assert "lock" in (second.stdout + second.stderr).lower()
        assert first.wait(timeout=1200) == 0
    finally:
        kill_session(first)
    assert cell.tables() == finished_cell.tables()
    assert verify(cell.results).faults == []


def test_touched_results_retrain_nothing(cell):
    collections = [*cell.results.glob("collections/*/*"), *cell.results.glob("collections/*/*/*")]
    base_models = [*cell.results.glob("base_models/*"), *cell.folder.glob("checkpoints/*/*")]
    for path in collections + base_models:
        path.touch()
    assert "train" not in cell.planned_rules()
