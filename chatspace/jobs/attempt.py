"""Which execution this is: SLURM ids, host, GPU and container of the running process."""

from __future__ import annotations

import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.errors import InputError

SLURM_VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "node": "SLURMD_NODENAME",
    "partition": "SLURM_JOB_PARTITION",
    "account": "SLURM_JOB_ACCOUNT",
    "cluster": "SLURM_CLUSTER_NAME",
}
CONTAINER_VARIABLES = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


@dataclass(frozen=True, slots=True)
class Lane:
    """One process of an array task that has several, each with a GPU of its own.

    Attributes:
        index: which of them.
        count: how many there are, on all nodes of the task.
        local: which of those on this node.
    """

    index: int
    count: int
    local: int

    @property
    def suffix(self) -> str:
        """What distinguishes this lane's attempt, manifest and event log; lane 0 has nothing."""
        return f".lane{self.index}" if self.index else ""

    def own_gpu(self, *, is_bound: bool) -> str | None:
        """Returns which of the GPUs that the task sees is this lane's, None if SLURM has bound it.

        Where nothing says what the task sees, it is taken to have its node's GPUs to itself.

        Raises:
            InputError: the task sees fewer GPUs than it has processes on this node.
        """
        if is_bound:
            return None
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        if given is None:
            return str(self.local)
        seen = [name for name in given.split(",") if name]
        if self.local >= len(seen):
            raise InputError(
                f"Too few GPUs: process {self.local} of this node, CUDA_VISIBLE_DEVICES={given}. "
                f"Ask for as many as there are processes: slurm.gpus_per_task."
            )
        return seen[self.local]


def find_lane(count: int) -> Lane:
    """Returns which process of an array task this is, from what srun sets."""
    env = os.environ
    return Lane(
        index=int(env.get("SLURM_PROCID", "0")) if count > 1 else 0,
        count=count,
        local=int(env.get("SLURM_LOCALID", "0")) if count > 1 else 0,
    )


def attempt_name(lane: Lane | None = None) -> str:
    """Returns job, array index and restart count (`1234_7.r0`); off SLURM host and process id."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return f"{platform.node()}-{os.getpid()}"
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    return f"{job}.r{env.get('SLURM_RESTART_COUNT', '0')}{lane.suffix if lane else ''}"


def job_log() -> str | None:
    """Returns the file that this process's output goes to, None where it is no file."""
    try:
        mode = os.fstat(1).st_mode
        return str(Path("/proc/self/fd/1").readlink()) if stat.S_ISREG(mode) else None
    except OSError:
        return None


def attempt_facts(lane: Lane | None = None) -> dict[str, Any]:
    """Returns where this process runs, for the task manifest."""
    env = os.environ
    slurm = {key: env[name] for key, name in SLURM_VARIABLES.items() if name in env}
    return {
        "attempt": attempt_name(lane),
        "host": platform.node(),
        "pid": os.getpid(),
        "slurm": slurm,
        "cuda_visible_devices": env.get("CUDA_VISIBLE_DEVICES"),
        "container": next((env[name] for name in CONTAINER_VARIABLES if name in env), None),
    }


def usable_threads() -> int:
    """Returns the CPU threads this process may use: its cpuset, and no more than SLURM gave."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    given = os.environ.get("CHATSPACE_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    return max(1, min(cores, int(given))) if given and given.isdigit() else cores
