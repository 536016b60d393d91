"""Start Snakemake in a session of its own, and kill it with all of its jobs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from project import Project


def start(project: Project, *arguments: str) -> subprocess.Popen:
    """Start Snakemake in a session of its own, so that all of its jobs can be found."""
    return subprocess.Popen(
        project.command("--rerun-incomplete", *arguments),
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes_of_session(leader: int) -> list[int]:
    """Return the ids of all processes of a session, whatever their process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        if int(after_name[3]) == leader:
            found.append(int(stat.parent.name))
    return found


def kill_session(process: subprocess.Popen) -> None:
    """Send SIGKILL to every process of the session that `process` leads."""
    while left := [
        pid for pid in processes_of_session(process.pid) if pid != process.pid or process.poll() is None
    ]:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
