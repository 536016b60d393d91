"""Start a step on GPUs that no other local step uses, in one or several processes.

Snakemake counts GPUs but does not assign them: two local jobs of one GPU each would both run on the first device. A
step therefore locks a file per device. The lock lasts as long as the process, however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lwr.common.progress import log

LOCK_FOLDER = Path(tempfile.gettempdir()) / f"lwr-gpus-{os.getuid()}"


def launch_step(step: list[str], gpus: int, processes: int) -> None:
    """Replace this process by `lwr STEP` on leased GPUs; does not return.

    Args:
        step: Arguments of the command `lwr`.
        gpus: The number of devices to lease. This waits while other steps hold them. Nothing is leased on a machine
            without GPUs, or under SLURM, which assigns devices itself.
        processes: The number of processes that run the step; more than one are started by `accelerate launch`.
    """
    devices = [] if "SLURM_JOB_ID" in os.environ else visible_gpus()
    if devices and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease_gpus(devices, gpus))
    command = _accelerate_command(step, processes) if processes > 1 else _python_command("lwr.cli", *step)
    sys.stdout.flush()
    os.execv(command[0], command)


def _python_command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _accelerate_command(step: list[str], processes: int) -> list[str]:
    """Return the command that runs a step in several processes.

    The processes share the threads of OMP_NUM_THREADS. The environment variable LWR_ACCELERATE adds options, as for
    several nodes: `--num_machines 2 --machine_rank 0`.
    """
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", 1)) // processes)
    options = [
        "--multi_gpu",  # the launcher of several processes; without GPUs they communicate by gloo
        *("--num_processes", str(processes)),
        *("--num_machines", "1"),
        *("--num_cpu_threads_per_process", str(threads)),
        *("--mixed_precision", "no"),
        *("--dynamo_backend", "no"),
        *shlex.split(os.environ.get("LWR_ACCELERATE", "")),
    ]
    return _python_command("accelerate.commands.launch", *options, "-m", "lwr.cli", *step)


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use; none without an NVIDIA driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()


def lease_gpus(devices: list[str], count: int) -> list[str]:
    """Lock `count` of `devices` until this process ends, and wait while too few are free.

    All are locked at once or none, so that two steps of two GPUs each never hold one each and wait for the other.

    Returns:
        The ids of the locked devices.

    Raises:
        ValueError: `devices` has fewer than `count`.
    """
    if count > len(devices):
        raise ValueError(
            f"{count} GPUs asked for, but this machine offers {len(devices)}: {','.join(devices)}"
        )
    LOCK_FOLDER.mkdir(mode=0o700, exist_ok=True)
    is_waiting = False
    while True:
        locks = {device: lock for device in devices if (lock := _try_lock(device)) is not None}
        chosen = list(locks)[:count]
        if len(chosen) == count:
            for device, lock in locks.items():
                if device in chosen:
                    os.set_inheritable(lock, True)  # kept by exec, freed when the process ends
                else:
                    os.close(lock)
            return chosen
        for lock in locks.values():
            os.close(lock)
        if not is_waiting:
            log(f"waiting for {count} of the GPUs {','.join(devices)}: other steps hold them")
            is_waiting = True
        time.sleep(1)


def _try_lock(device: str) -> int | None:
    """Lock a device; return the open file that holds the lock, or None if another process holds it."""
    lock = os.open(LOCK_FOLDER / f"gpu-{device}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
