"""A real SLURM of one node and two GPUs, started by hand: no systemd, no root, nothing in /etc is touched.

Its GPUs are two character devices, so that SLURM hands out CUDA_VISIBLE_DEVICES and makes a third job wait.
It keeps finished jobs in memory: what ran when is read off `scontrol show job` afterwards.
"""

from __future__ import annotations

import os
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
from workflow.conftest import House, copy_house

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian puts daemons, and not every PATH looks
GPUS = 2

# More memory and CPUs than this machine has (config_overrides), so that GPUs are what jobs wait for.
CONF = """
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
PartitionName=cpu Nodes=n1 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=n1 MaxTime=INFINITE State=UP
"""
GRES = """
NodeName=n1 Name=gpu File=/dev/null
NodeName=n1 Name=gpu File=/dev/zero
"""

# The plugin looks at its jobs every 40 s and less and less often: with jobs of seconds, a test would only wait.
SNAKEMAKE = """
import asyncio
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

async def half_a_second(self):
    await asyncio.sleep(0.5)

RemoteExecutor.sleep = half_a_second
from snakemake.cli import main
main()
"""
# The profile as it is, but for what this SLURM lacks (accounting) and the tests' two cores.
PROFILE = [
    *("--profile", "workflow/profiles/slurm", "--configfile", "config/test.yaml"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--set-threads", "train=1", "score=1", "--latency-wait", "5"),
]


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` tells of one."""

    id: str
    run: str
    rule: str
    state: str
    reason: str
    partition: str
    gpus: int
    memory: str
    start: float | None
    end: float | None

    @classmethod
    def read(cls, line: str) -> Job:
        facts = dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", line))
        tres = dict(re.findall(r"([\w/]+)=([^,]+)", facts["TRES"]))
        return cls(
            id=facts["JobId"],
            run=facts["JobName"],
            rule=facts["Comment"].removeprefix("rule_").partition("_wildcards_")[0],
            state=facts["JobState"],
            reason=facts["Reason"],
            partition=facts["Partition"],
            gpus=int(tres.get("gres/gpu", 0)),
            memory=tres["mem"],
            start=_seconds(facts["StartTime"]),
            end=_seconds(facts["EndTime"]),
        )


def _seconds(time: str) -> float | None:
    return None if time == "Unknown" else datetime.fromisoformat(time).timestamp()


@dataclass(frozen=True)
class Slurm:
    environment: dict[str, str]

    def tell(self, *command: str) -> str:
        """What a command of SLURM's client prints."""
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def jobs(self, *states: str, rule: str | None = None) -> list[Job]:
        """Jobs in any of the states, or in all; of a rule, or of all."""
        lines = self.tell("scontrol", "show", "job", "--oneliner").splitlines()
        jobs = [Job.read(line) for line in lines if line.startswith("JobId=")]
        return [j for j in jobs if (not states or j.state in states) and rule in (None, j.rule)]

    def wait_for(self, *states: str, rule: str) -> Job:
        return wait(lambda: next(iter(self.jobs(*states, rule=rule)), None))

    def wait_until_idle(self) -> None:
        wait(lambda: not self.jobs("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"))

    @contextmanager
    def snakemake(self, house: House, *arguments: str) -> Iterator[subprocess.Popen]:
        """Snakemake on this SLURM while the block lasts; it is killed where it outlives it."""
        command = [sys.executable, "-c", SNAKEMAKE, *PROFILE, *arguments]
        environment = self.environment | {"PYTHONPATH": str(house.folder)}
        with open(house.folder / "printed.txt", "w", encoding="utf-8") as printed:
            process = subprocess.Popen(
                command, cwd=house.folder, env=environment, stdout=printed, stderr=subprocess.STDOUT
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def run(self, house: House, *arguments: str, during: Callable[[], None] = lambda: None) -> str:
        """Run Snakemake to its end, and something beside it; return what it printed."""
        with self.snakemake(house, *arguments) as process:
            during()
            code = process.wait(timeout=240)
        printed = (house.folder / "printed.txt").read_text(encoding="utf-8")
        assert code == 0, printed
        return printed


def wait(ready: Callable[[], object], seconds: float = 120):
    """Return what `ready` returns, once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds:.0f} s")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Two GPUs behind a SLURM, for the session."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this machine: {INSTALL}")
    with ExitStack() as stack:
        # a short path: those of unix sockets end at 108 characters
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        folder.chmod(0o711)  # munged wants its socket within everyone's reach
        environment = _lay_out(folder)
        slurm = Slurm(environment)
        key, socket_ = folder / "munge.key", folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        munged = [
            *("munged", "--foreground", "--key-file", str(key), "--socket", str(socket_)),
            *("--pid-file", str(folder / "munged.pid"), "--log-file", str(folder / "munged.log")),
            *("--seed-file", str(folder / "munged.seed")),
        ]
        conf = environment["SLURM_CONF"]
        stack.enter_context(_daemon(munged, environment))
        wait(socket_.exists, 10)
        stack.enter_context(_daemon(["slurmctld", "-D", "-c", "-i", "-f", conf], environment))
        stack.enter_context(_daemon(["slurmd", "-D", "-f", conf, "-N", "n1"], environment))
        wait(lambda: _state(slurm) == "idle", 30)
        try:
            yield slurm
        finally:
            slurm.tell("scancel", "--state=PENDING")
            slurm.tell("scancel", "--user", environment["SLURM_TEST_USER"])
            slurm.wait_until_idle()


def _lay_out(folder: Path) -> dict[str, str]:
    """Configuration files, and the environment of everything that talks to this SLURM."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    facts = {"host": socket.gethostname().partition(".")[0], "user": user, "ports": _free_ports(2)}
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, gpus=GPUS, **facts), encoding="utf-8")
    (folder / "gres.conf").write_text(GRES, encoding="utf-8")
    # A job's own srun forgets SLURM_CONF, which no cluster with an /etc/slurm needs.
    srun = folder / "bin/srun"
    srun.write_text(
        f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun", path=SEARCH)} "$@"\n', encoding="utf-8"
    )
    srun.chmod(0o755)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    return mine | {"SLURM_CONF": str(conf), "PATH": f"{folder}/bin:{SEARCH}", "SLURM_TEST_USER": user}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [shutil.which(command[0], path=SEARCH), *command[1:]],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _state(slurm: Slurm) -> str | None:
    try:
        return slurm.tell("sinfo", "-h", "-N", "-o", "%T").split()[0]
    except (subprocess.CalledProcessError, IndexError):
        return None  # still starting


@pytest.fixture(scope="session")
def undisturbed(slurm, tmp_path_factory) -> House:
    """A grid of four cells, run once on SLURM; look, don't touch."""
    house = copy_house(_made(tmp_path_factory.mktemp("slurm") / "house"))
    house.edit_config(lambda config: config.update(start_layers=[2], seeds=[1, 2]))
    slurm.run(house)
    return house


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
