"""Snakemake and all of its jobs killed at random moments, again and again: what comes out is what would have anyway.

LWR_KILLS says how often (5; before a release: `LWR_KILLS=50 pytest -m slow tests/workflow/test_kills.py`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import Project

from lwr.verify.verify import verify

pytestmark = pytest.mark.xdist_group("workflow")

KILLS = int(os.environ.get("LWR_KILLS", 5))
STARTS_IN = 3.0  # seconds before which a kill meets nothing
NOT_YET = re.compile("missing|no such file|No such file|no scores, measures or cascades")
"""What may be said of results that are not finished: nothing in them is broken, or does not go together."""


def start(project: Project) -> subprocess.Popen:
    """In a session of its own, with which it and all of its jobs can be killed."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = {"cwd": project.folder, "env": project.environment()}
    return subprocess.Popen(project.command("--rerun-incomplete"), **where, start_new_session=True, **quiet)


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[3]) == leader:
            found.append(int(stat.parent.name))
    return found


def kill(process: subprocess.Popen) -> None:
    """-9, all of the session at once, whatever group a job is in."""
    while left := [pid for pid in session(process.pid) if pid != process.pid or process.poll() is None]:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


def one_cell(config: dict) -> None:
    """The smallest grid that has a job of every rule."""
    del config["base_models"]["tiny-bert"]
    config["start_layers"] = [2]


def lasts(project: Project) -> float:
    """Seconds from the first file to the last."""
    times = [file.stat().st_mtime for file in (project.folder / "results").rglob("*") if file.is_file()]
    return max(times) - min(times)


def begin_again(project: Project) -> None:
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / ".snakemake")


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(project):
    project.edit_config(one_cell)
    begin_again(project)
    project.snakemake()
    took, undisturbed, rng = lasts(project), project.tables(), random.Random(1)
    met = 0
    for number in range(1, KILLS + 1):
        begin_again(project)
        process = start(project)
        moment = STARTS_IN + rng.uniform(0, took)
        time.sleep(moment)
        met += process.poll() is None
        kill(process)
        results = project.folder / "results/test"
        if (results / "collections").exists():
            assert [fault for fault in verify(results).faults if not NOT_YET.search(fault)] == []
        project.snakemake("--unlock")
        project.snakemake("--rerun-incomplete")
        assert project.tables() == undisturbed
        assert verify(results).faults == []
        assert project.plan() == []
        print(f"kill {number} after {moment:.1f} s: the same {len(undisturbed)} tables, verified")
    assert met >= KILLS * 2 // 3, "the kills came too late to test anything"


@pytest.mark.slow
def test_of_two_at_once_the_second_is_refused(finished, project):
    begin_again(project)
    first = start(project)
    try:
        while not list((project.folder / ".snakemake/locks").glob("*")):
            assert first.poll() is None, "it ended before it began"
            time.sleep(0.05)
        # asked to make half-made files again, the second cannot stop at those of the first
        second = project.snakemake("--rerun-incomplete", check=False)
        assert second.returncode != 0
        assert "lock" in (second.stdout + second.stderr).lower()
        assert first.wait(timeout=1200) == 0
    finally:
        kill(first)
    assert project.tables() == finished.tables()
    assert verify(project.folder / "results/test").faults == []


@pytest.mark.slow
def test_touched_files_retrain_nothing(project):
    results = project.folder / "results/test"
    for file in [
        *results.glob("collections/*/*"),
        *results.glob("collections/*/*/*"),
        *results.glob("base_models/*"),
    ]:
        file.touch()
    for file in project.folder.glob("checkpoints/*/*"):
        file.touch()
    assert "train" not in project.rules()
