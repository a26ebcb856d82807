"""Sections that say how a run is executed: SLURM directives and the container."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatspace.spec.section import Section, Strings

TIME_PATTERN = r"^(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d)$"

_UNITS_S = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}


def walltime_s(time: str) -> int:
    """Returns a walltime of sbatch in seconds: `90` (minutes), `1:30:00`, `2-12`; 0 is no limit.

    Source: the formats of `--time` in https://slurm.schedmd.com/sbatch.html
    """
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    # Without days, one number is minutes and two are minutes and seconds.
    first = "hours" if dash or len(parts) == 3 else "minutes"
    units = list(_UNITS_S)[list(_UNITS_S).index(first) :]
    clock = sum(_UNITS_S[unit] * part for unit, part in zip(units, parts, strict=False))
    return clock + (int(days) * _UNITS_S["days"] if dash else 0)


def walltime_min(time: str) -> int:
    """Returns a walltime of sbatch in minutes, rounded up."""
    return -(-walltime_s(time) // 60)


class SlurmSection(Section):
    """Directives of the array job; what is not set here comes from the cluster profile."""

    profile: str | None = None
    """Cluster profile: a name in `hpc/profiles/` or a YAML file ["generic"]."""
    partition: str | None = None
    """Partition that jobs go to."""
    account: str | None = None
    """Account that jobs are charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features that jobs need, such as `h200`."""
    time: str | None = Field(None, pattern=TIME_PATTERN)
    """Walltime of one array task, in any form that sbatch takes."""
    mem_gb: int | None = Field(None, gt=0)
    """Host memory of one array task on each of its nodes, GiB."""
    cpus_per_task: int | None = Field(None, gt=0)
    """CPU cores of one process; an array task has one process for each of its GPUs."""
    gpus_per_task: int | None = Field(None, ge=0)
    """GPUs of one array task on each of its nodes; with several, srun starts a process for each,
    and the processes share the shards of the task."""
    nodes: int = Field(1, gt=0)
    """Nodes of one array task."""
    gpu_type: str | None = None
    """GPU type in the GPU directive, as the cluster spells it."""
    array_parallelism: int | None = Field(None, gt=0)
    """Array tasks that may run at the same time (the `%N` of `--array`)."""
    mail: str | None = None
    """Address that gets mail when the array ends or fails."""
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other sbatch directive; `true` gives a flag without a value."""
    log_dir: str = "logs"
    """Folder of the job logs, relative to where the job was set up."""
    grace_s: int = Field(120, ge=0)
    """Seconds before the walltime at which a task is told to finish its shard and stop [120, or a
    quarter of a walltime below 8 minutes]."""
    max_requeues: int = Field(20, ge=0)
    """How often an interrupted array task is put back into the queue."""
    exclude_failed_nodes: bool = True
    """Whether `chatspace resubmit` avoids nodes on which tasks of the run failed twice."""


class ContainerSection(Section):
    """The image that array tasks run in; without an image they run on the host."""

    image: str | None = None
    """Singularity/Apptainer image file."""
    runtime: Literal["auto", "apptainer", "singularity"] | None = None
    """Container command ["auto": apptainer, else singularity]."""
    nv: bool | Literal["auto"] | None = None
    """Pass the NVIDIA driver in ["auto": when the task asks for GPUs]."""
    binds: Strings | None = None
    """Bind mounts, `source[:target[:ro]]`; the workspace and local inputs are bound anyway."""
    venv: str | None = None
    """Virtual environment that is activated, inside the image where there is one."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the task."""
