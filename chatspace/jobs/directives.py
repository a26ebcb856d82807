"""The `#SBATCH` lines of a script, from the resolved SLURM settings of a plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from chatspace.errors import SpecError
from chatspace.plan.model import Plan

# What chatspace sets itself: `slurm.extra` cannot.
RENDERED_DIRECTIVES = frozenset(
    [
        "array",
        "job-name",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "output",
        "error",
        "open-mode",
        "requeue",
        "no-requeue",
        "signal",
        "wrap",
    ]
)

# Of `slurm.extra`, what asks for GPUs or whole nodes: the gather job reads manifests.
LARGE_DIRECTIVES = frozenset(
    [
        "cpus-per-gpu",
        "exclusive",
        "gpu-bind",
        "gpu-freq",
        "gpus",
        "gpus-per-node",
        "gpus-per-task",
        "gres",
        "gres-flags",
        "mem-per-gpu",
    ]
)


def lanes_of(cluster: Mapping[str, Any]) -> int:
    """Returns how many processes an array task has: one for each GPU on each of its nodes."""
    return int(cluster.get("nodes", 1)) * max(1, int(cluster["gpus_per_task"]))


def directive_lines(directives: Mapping[str, Any]) -> list[str]:
    """Returns `#SBATCH` lines; True gives a flag, False and None give nothing, 0 stays."""
    lines = []
    for key, value in directives.items():
        if value is None or value is False:
            continue
        text = "" if value is True else f"={quote(f'slurm.{key}', str(value))}"
        lines.append(f"#SBATCH --{key}{text}")
    return lines


def quote(field: str, value: str) -> str:
    """Returns `value` quoted for the shell and for sbatch's own parsing.

    Raises:
        SpecError: the value has a line break or another control character.
    """
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise SpecError(
            f"Value cannot stand in a batch script: {field}={value!r}; control characters and line "
            f"breaks are not allowed. Choose another value."
        )
    return shlex.quote(value)


def resource_directives(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where and how large an array task is."""
    return {
        "partition": cluster["partition"],
        "account": cluster["account"],
        "qos": cluster["qos"],
        "constraint": cluster["constraint"],
        "time": cluster["time"],
        **_process_directives(cluster),
        "cpus-per-task": cluster["cpus_per_task"],
        "mem": f"{cluster['mem_gb']}G" if cluster["mem_gb"] else None,
    }


def _process_directives(cluster: Mapping[str, Any]) -> dict[str, int]:
    nodes, lanes = cluster.get("nodes", 1), lanes_of(cluster)
    return {"nodes": nodes, "ntasks" if lanes == 1 else "ntasks-per-node": lanes // nodes}


def gpu_directives(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Returns how the GPUs of an array task are asked for."""
    count, style = cluster["gpus_per_task"], cluster["gpu_directive"]
    if not count or style == "none":
        return {}
    if style == "gpus-per-task":  # SLURM's task is one process, and each has one GPU
        count = 1
    amount = f"{cluster['gpu_type']}:{count}" if cluster["gpu_type"] else str(count)
    return {"gres": f"gpu:{amount}"} if style == "gres" else {"gpus-per-task": amount}


def mail_directives(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Returns who is told of the end."""
    return {"mail-user": cluster["mail"], "mail-type": "END,FAIL"} if cluster["mail"] else {}


def extra_directives(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the directives that spec and profile name themselves.

    Raises:
        SpecError: one that chatspace sets.
    """
    for key in cluster["extra"]:
        if key in RENDERED_DIRECTIVES:
            raise SpecError(
                f"Directive is set by chatspace itself: slurm.extra.{key}; it cannot be replaced. "
                f"Remove it."
            )
    return dict(cluster["extra"])


def log_path(cluster: Mapping[str, Any], plan: Plan, number: str) -> str:
    """Returns the file of a job's output; `number` is sbatch's pattern for its id."""
    # sbatch replaces %-patterns in the folder too, unless they are doubled.
    folder = cluster["log_dir"].replace("%", "%%")
    return f"{folder}/{plan.run_id}-{number}.out"
