"""Which execution this is: SLURM ids, host, GPU and container of the running process."""

from __future__ import annotations

import os
import platform
from typing import Any

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


def attempt_name() -> str:
    """Returns job, array index and restart count (`1234_7.r0`); off SLURM host and process id."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return f"{platform.node()}-{os.getpid()}"
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    return f"{job}.r{env.get('SLURM_RESTART_COUNT', '0')}"


def attempt_facts() -> dict[str, Any]:
    """Returns where this process runs, for the task manifest."""
    env = os.environ
    slurm = {key: env[name] for key, name in SLURM_VARIABLES.items() if name in env}
    return {
        "attempt": attempt_name(),
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
