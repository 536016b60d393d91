"""A SLURM of one node and two GPUs, started without systemd or root and without files in /etc.

Its GPUs are two character devices: SLURM sets CUDA_VISIBLE_DEVICES and makes a third job wait. It remembers ended jobs,
so that `scontrol show job` lists when each ran.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from project import Project, copy_project

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # the daemons' folders are not on every user's PATH
USER = pwd.getpwuid(os.getuid()).pw_name
GPUS = 2

# The node declares more CPUs and memory than there are (config_overrides), so that jobs wait for GPUs only.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
KillWait=5
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=256000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes=n1 Default=YES State=UP
PartitionName=gpu Nodes=n1 State=UP
"""
GRES = """\
NodeName=n1 Name=gpu File=/dev/null
NodeName=n1 Name=gpu File=/dev/zero
"""

# The plugin polls its jobs every 40 s and then less and less often; these jobs take seconds.
SNAKEMAKE = """
import asyncio
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

async def half_a_second(self):
    await asyncio.sleep(0.5)

RemoteExecutor.sleep = half_a_second
main()
"""
# The profile, changed for a SLURM without accounting, for short jobs, and for few cores.
ARGUMENTS = [
    *("--profile", "workflow/profiles/slurm", "--configfile", "config/test.yaml"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--set-threads", "train=1", "score=1", "cost=1"),
]


@dataclass(frozen=True)
class Job:
    """A job as `scontrol show job` describes it."""

    id: str
    run: str  # equal for all jobs of one Snakemake process
    rule: str
    state: str
    partition: str
    gpus: int
    megabytes: int
    limit: str  # time limit, [days-]hours:minutes:seconds
    start: float
    end: float

    @classmethod
    def read(cls, line: str) -> Job:
        facts = dict(re.findall(r"([\w/]+)=(\S*)", line))
        return cls(
            id=facts["JobId"],
            run=facts["JobName"],
            rule=facts["Comment"].removeprefix("rule_").partition("_wildcards_")[0],
            state=facts["JobState"],
            partition=facts["Partition"],
            gpus=int(facts.get("TresPerJob", "gres:gpu:0").removeprefix("gres:gpu:")),
            megabytes=int(facts["MinMemoryNode"].removesuffix("M")),
            limit=facts["TimeLimit"],
            start=_seconds(facts["StartTime"]),
            end=_seconds(facts["EndTime"]),
        )


def _seconds(time: str) -> float:
    return float("inf") if time == "Unknown" else datetime.fromisoformat(time).timestamp()


@dataclass(frozen=True)
class Run:
    """A Snakemake process and the file with its output."""

    process: subprocess.Popen
    output: Path

    def end(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(timeout=900)

    def finish(self) -> str:
        """Wait for the end, assert success and return the output."""
        assert self.end() == 0, self.printed()
        return self.printed()

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Slurm:
    """The running SLURM."""

    environment: dict[str, str]
    """Environment in which its commands find it."""
    gpus: int = GPUS

    def call(self, *command: str) -> str:
        """Run one of SLURM's commands and return its output."""
        return subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout

    def jobs(self, *states: str, rule: str | None = None) -> list[Job]:
        """Return all jobs, running or ended, that are in one of `states` and of `rule`, where these are given."""
        lines = self.call("scontrol", "show", "job", "--oneliner").splitlines()
        jobs = [Job.read(line) for line in lines if line.startswith("JobId=")]
        return [job for job in jobs if (not states or job.state in states) and rule in (None, job.rule)]

    def clear(self) -> None:
        """Cancel all jobs and wait until they have ended."""
        self.call("scancel", "--user", USER)
        self.wait(lambda: not self.jobs("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"))

    @staticmethod
    def wait(ready: Callable[[], object], seconds: float = 300) -> None:
        """Wait until `ready` returns a true value.

        Raises:
            TimeoutError: after `seconds`.
        """
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:.0f} s")
            time.sleep(0.1)

    @contextmanager
    def snakemake(self, project: Project, *arguments: str) -> Iterator[Run]:
        """Start a Snakemake that submits to this SLURM; kill it at the end of the block."""
        output = project.folder / "printed.txt"
        with output.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", SNAKEMAKE, *ARGUMENTS, *arguments],
                cwd=project.folder,
                env=self.environment | {"PYTHONPATH": str(project.folder)},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Run(process, output)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Start SLURM; stop it after the last test."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"NOT TESTED: {', '.join(missing)} not found; {INSTALL}")
    with ExitStack() as stack:
        # directly in /tmp: the path of a unix socket is limited to 108 characters
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        folder.chmod(0o711)  # munged requires that every user can reach its socket
        slurm = Slurm(_write_configuration(folder))
        conf = slurm.environment["SLURM_CONF"]
        own = [f"--{file}-file={folder}/munge.{file}" for file in ("key", "pid", "log", "seed")]
        try:
            stack.enter_context(_daemon("munged", "-F", f"--socket={folder}/munge.socket", *own))
            slurm.wait((folder / "munge.socket").exists, 10)
            stack.enter_context(_daemon("slurmctld", "-D", "-c", "-i", "-f", conf))
            stack.enter_context(_daemon("slurmd", "-D", "-f", conf, "-N", "n1"))
            slurm.wait(lambda: _node_state(slurm) == "idle", 30)
        except TimeoutError as error:
            logs = "".join(f"\n{log}:\n{log.read_text()}" for log in folder.glob("*.log"))
            raise RuntimeError(f"SLURM did not start {error}{logs}") from error
        yield slurm
        slurm.clear()


def _write_configuration(folder: Path) -> dict[str, str]:
    """Write the files that the daemons read. Return the environment for SLURM's commands."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, user=USER, ports=_free_ports(2), gpus=GPUS))
    (folder / "gres.conf").write_text(GRES)
    # Inside a job, the plugin removes SLURM_CONF before it calls srun; on a cluster srun reads /etc.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
    return inherited | {"SLURM_CONF": str(conf), "PATH": f"{folder}/bin:{PATH}"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


@contextmanager
def _daemon(name: str, *arguments: str) -> Iterator[None]:
    process = subprocess.Popen(
        [shutil.which(name, path=PATH), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _node_state(slurm: Slurm) -> str | None:
    """Return the state of the node, or None while the daemons do not answer yet."""
    try:
        return slurm.call("sinfo", "-h", "-N", "-n", "n1", "-o", "%T").split()[0]
    except subprocess.CalledProcessError:
        return None


@dataclass(frozen=True)
class FinishedGrid:
    """A project whose grid has run on SLURM, and the jobs it ran as."""

    project: Project
    jobs: list[Job]


@pytest.fixture(scope="session")
def finished(slurm, tmp_path_factory) -> FinishedGrid:
    """Run a grid of four cells on SLURM. Tests only read it."""
    folder = tmp_path_factory.mktemp("slurm") / "project"
    folder.mkdir()
    project = copy_project(folder)
    project.edit_config(_four_cells)
    before = slurm.jobs()
    with slurm.snakemake(project) as run:
        run.finish()
    return FinishedGrid(project, [job for job in slurm.jobs() if job not in before])


def _four_cells(config: dict) -> None:
    config |= {"start_layers": [2], "seeds": [1, 2]}
    # long enough to be interrupted after a checkpoint
    config["train"] |= {"steps": 60, "log_steps": 20, "checkpoint_steps": 5}


@pytest.fixture
def project(slurm, finished, tmp_path) -> Iterator[Project]:
    """Copy the finished grid for a test to change; cancel its jobs at the end of the test."""
    shutil.copytree(finished.project.folder, tmp_path / "project", copy_function=shutil.copy2)
    yield Project(tmp_path / "project")
    slurm.clear()
