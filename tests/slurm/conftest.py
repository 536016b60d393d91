"""A real SLURM of one node and two GPUs, started by hand: no systemd, no root, nothing in /etc is touched.

Its GPUs are two character devices, so that SLURM hands out CUDA_VISIBLE_DEVICES and makes a third job wait.
It remembers ended jobs: what ran when is read off `scontrol show job` afterwards.
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
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # daemons live where not every user's PATH looks
USER = pwd.getpwuid(os.getuid()).pw_name
GPUS = 2

# The node claims more CPUs and memory than are there (config_overrides): GPUs are what jobs shall wait for.
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

# The plugin looks at its jobs every 40 s, then less and less often; here they take seconds.
SNAKEMAKE = """
import asyncio
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

async def half_a_second(self):
    await asyncio.sleep(0.5)

RemoteExecutor.sleep = half_a_second
main()
"""
# The profile as it stands, but for the accounting that this SLURM lacks, for short jobs, and for few cores.
ARGUMENTS = [
    *("--profile", "workflow/profiles/slurm", "--configfile", "config/test.yaml"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--set-threads", "train=1", "score=1", "cost=1"),
]


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` tells of one."""

    id: str
    run: str  # the same for all jobs of one Snakemake
    rule: str
    state: str
    partition: str
    gpus: int
    megabytes: int
    limit: str  # of its time, [days-]hours:minutes:seconds
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
    """A Snakemake at work."""

    process: subprocess.Popen
    printed_to: Path

    def end(self) -> int:
        """Wait for it; its exit status."""
        return self.process.wait(timeout=900)

    def finish(self) -> str:
        """Wait for its success; what it printed."""
        assert self.end() == 0, self.printed()
        return self.printed()

    def printed(self) -> str:
        return self.printed_to.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Slurm:
    environment: dict[str, str]  # of those who talk to it
    gpus: int = GPUS

    def tell(self, *command: str) -> str:
        """What one of SLURM's commands answers."""
        return subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout

    def jobs(self, *states: str, rule: str | None = None) -> list[Job]:
        """Jobs, also ended ones, in any of the states (none: in all) and of a rule (None: of all)."""
        lines = self.tell("scontrol", "show", "job", "--oneliner").splitlines()
        jobs = [Job.read(line) for line in lines if line.startswith("JobId=")]
        return [job for job in jobs if (not states or job.state in states) and rule in (None, job.rule)]

    def clear(self) -> None:
        """Cancel what is left, and wait till it is gone."""
        self.tell("scancel", "--user", USER)
        self.wait(lambda: not self.jobs("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"))

    @staticmethod
    def wait(ready: Callable[[], object], seconds: float = 300) -> None:
        """Till `ready` returns something true."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:.0f} s")
            time.sleep(0.1)

    @contextmanager
    def snakemake(self, project: Project, *arguments: str) -> Iterator[Run]:
        """A Snakemake that submits to this SLURM, and lives no longer than the block."""
        printed_to = project.folder / "printed.txt"
        with printed_to.open("w", encoding="utf-8") as printed:
            process = subprocess.Popen(
                [sys.executable, "-c", SNAKEMAKE, *ARGUMENTS, *arguments],
                cwd=project.folder,
                env=self.environment | {"PYTHONPATH": str(project.folder)},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Run(process, printed_to)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: {INSTALL}")
    with ExitStack() as stack:
        # in /tmp itself: the path of a unix socket has no more than 108 characters
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        folder.chmod(0o711)  # munged wants its socket within everyone's reach
        slurm = Slurm(_lay_out(folder))
        conf = slurm.environment["SLURM_CONF"]
        own = [f"--{file}-file={folder}/munge.{file}" for file in ("key", "pid", "log", "seed")]
        try:
            stack.enter_context(_daemon("munged", "-F", f"--socket={folder}/munge.socket", *own))
            slurm.wait((folder / "munge.socket").exists, 10)
            stack.enter_context(_daemon("slurmctld", "-D", "-c", "-i", "-f", conf))
            stack.enter_context(_daemon("slurmd", "-D", "-f", conf, "-N", "n1"))
            slurm.wait(lambda: _node(slurm) == "idle", 30)
        except TimeoutError as error:
            logs = "".join(f"\n{log}:\n{log.read_text()}" for log in folder.glob("*.log"))
            raise RuntimeError(f"SLURM did not start {error}{logs}") from error
        yield slurm
        slurm.clear()


def _lay_out(folder: Path) -> dict[str, str]:
    """Write all that the daemons read. Returns the environment of those who talk to them."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, user=USER, ports=_free_ports(2), gpus=GPUS))
    (folder / "gres.conf").write_text(GRES)
    # Inside a job, the plugin drops SLURM_CONF before it calls srun; a cluster has its configuration in /etc.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
    return inherited | {"SLURM_CONF": str(conf), "PATH": f"{folder}/bin:{PATH}"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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


def _node(slurm: Slurm) -> str | None:
    """State of the node; None while the daemons don't answer yet."""
    try:
        return slurm.tell("sinfo", "-h", "-N", "-n", "n1", "-o", "%T").split()[0]
    except subprocess.CalledProcessError:
        return None


@dataclass(frozen=True)
class Undisturbed:
    project: Project
    jobs: list[Job]


@pytest.fixture(scope="session")
def undisturbed(slurm, tmp_path_factory) -> Undisturbed:
    """A grid of four cells that has run on SLURM, and its jobs; look, don't touch."""
    folder = tmp_path_factory.mktemp("slurm") / "project"
    folder.mkdir()
    project = copy_project(folder)
    project.edit_config(_four_cells)
    before = slurm.jobs()
    with slurm.snakemake(project) as run:
        run.finish()
    return Undisturbed(project, [job for job in slurm.jobs() if job not in before])


def _four_cells(config: dict) -> None:
    config |= {"start_layers": [2], "seeds": [1, 2]}
    # long enough to be caught at work, after a checkpoint
    config["train"] |= {"steps": 60, "log_steps": 20, "checkpoint_steps": 5}


@pytest.fixture
def project(slurm, undisturbed, tmp_path) -> Iterator[Project]:
    """A copy of it to change at will. Its jobs end with the test."""
    shutil.copytree(undisturbed.project.folder, tmp_path / "project", copy_function=shutil.copy2)
    yield Project(tmp_path / "project")
    slurm.clear()
