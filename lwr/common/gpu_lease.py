"""Start a step where it shall run: on GPUs of its own, in as many processes as asked.

Snakemake counts GPUs but doesn't say which: two local jobs of one GPU each would both take the first.
A lock file per device does, held by the step itself for as long as it lives.
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

LOCKS = Path(tempfile.gettempdir()) / f"lwr-gpus-{os.getuid()}"


def launch_step(step: list[str], gpus: int, processes: int) -> None:
    """Become `lwr STEP`, or `accelerate launch` of it where it is several processes. Does not return.

    gpus: devices to lease first; without any on this machine, or under SLURM, which hands them out itself,
    nothing is leased. Waits while others hold too many.
    """
    devices = [] if "SLURM_JOB_ID" in os.environ else visible_gpus()
    if devices and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(lease_gpus(devices, gpus))
    command = [sys.executable, "-m", "lwr.cli", *step]
    if processes > 1:
        # More nodes, or a machine that needs telling: LWR_ACCELERATE='--num_machines 2 --machine_rank …'
        extra = shlex.split(os.environ.get("LWR_ACCELERATE", ""))
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            "--multi_gpu",  # the launcher of several processes; on a CPU they are gloo's all the same
            *("--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", *extra, "-m", "lwr.cli", *step),
        ]
    sys.stdout.flush()
    os.execv(command[0], command)


def visible_gpus() -> list[str]:
    """Ids of the devices this process may use; none where there is no NVIDIA driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()


def lease_gpus(devices: list[str], count: int) -> list[str]:
    """Lock `count` of the devices for the life of this process and of what it becomes.

    All or none at a time, so that two who wait for two don't hold one each. Raises ValueError where there are
    fewer devices than asked for.
    """
    if count > len(devices):
        raise ValueError(
            f"{count} GPUs asked for, but this machine offers {len(devices)}: {','.join(devices)}"
        )
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    waiting = False
    while True:
        held = dict(filter(None, map(_try_lock, devices)))
        if len(held) >= count:
            chosen = list(held)[:count]
            for device, lock in held.items():
                if device in chosen:
                    os.set_inheritable(lock, True)  # exec keeps it; the end of the process, however, frees it
                else:
                    os.close(lock)
            return chosen
        for lock in held.values():
            os.close(lock)
        if not waiting:
            log(f"waiting for {count} of the GPUs {','.join(devices)}: others hold them")
        waiting = True
        time.sleep(1)


def _try_lock(device: str) -> tuple[str, int] | None:
    lock = os.open(LOCKS / f"gpu-{device}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return device, lock
