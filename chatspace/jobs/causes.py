"""Why a task failed: told apart by its error, else by its exit code, else by SLURM's state."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from chatspace.errors import (
    ExitCode,
    OutputError,
    RowTooLargeError,
    UnfitEnvironmentError,
    UserError,
)

# What to do about each cause; the order is the one in which they are listed.
CAUSES = {
    "input": "Correct the spec or the data; the same task would fail again.",
    "output": "Make the output folder writable, or free space, then resubmit.",
    "gpu_memory": "Lower encode.tokens_per_batch or model.max_tokens, or use a larger GPU.",
    "host_memory": "Raise slurm.mem_gb, or lower encode.prefetch_shards or output.rows_per_shard.",
    "walltime": "Raise slurm.time or slurm.grace_s; a resubmitted task goes on where it stopped.",
    "node": "Resubmit: it avoids nodes on which tasks failed twice.",
    "environment": "Run `chatspace doctor --node` on the spec: image, binds or driver are amiss.",
    "cancelled": "Resubmit when you want the rest.",
    "killed": "Read the end of its log; if it was the kernel's memory killer, raise slurm.mem_gb.",
    "crash": "Read the end of its log; a native library crashed.",
    "bug": "Read the end of its log and report it.",
    "unknown": "Read the end of its log.",
}

# Errors of the machine below the file, not of the file: another node may read and write it.
_NODE_ERRNOS = frozenset(
    [errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ETIMEDOUT]
)
_GPU_FAULTS = ("cuda error", "cuda driver", "cudnn error", "cublas error", "nvml", "ecc error")
_KERNEL_BUGS = ("device-side assert", "illegal memory access", "misaligned address")
_SIGNAL_CAUSES = {6: "crash", 7: "crash", 8: "crash", 9: "killed", 11: "crash", 15: "cancelled"}
_STATE_CAUSES = {
    "OUT_OF_MEMORY": "host_memory",
    "TIMEOUT": "walltime",
    "DEADLINE": "walltime",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "LAUNCH_FAILED": "node",
    "CANCELLED": "cancelled",
    "PREEMPTED": "cancelled",
}
_KILLED = 128 + 9
CONTAINER_FAILED = 255  # what singularity and apptainer exit with where they cannot start


def cause_of(error: BaseException) -> str:
    """Returns the cause of an error that ended a task, a key of `CAUSES`."""
    for link in _chain(error):
        if (cause := _machine_cause(link)) is not None:
            return cause
    if isinstance(error, UnfitEnvironmentError):
        return "environment"
    if isinstance(error, UserError):
        return "output" if isinstance(error, OutputError) else "input"
    return "bug"


def _machine_cause(error: BaseException) -> str | None:
    """Returns the cause of an error that the machine made, None for any other."""
    # torch's own is known by its name, for torch is not imported here.
    if isinstance(error, RowTooLargeError) or type(error).__name__ == "OutOfMemoryError":
        return "gpu_memory"
    if isinstance(error, MemoryError):
        return "host_memory"
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    of_node = isinstance(error, OSError) and error.errno in _NODE_ERRNOS
    of_gpu = any(w in text for w in _GPU_FAULTS) and not any(w in text for w in _KERNEL_BUGS)
    return "node" if of_node or of_gpu else None


def cause_of_exit(exit_code: int, oom_kills: int = 0) -> str:
    """Returns the cause that an exit code of the task's process tells of, a key of `CAUSES`.

    Args:
        exit_code: what the batch script noted.
        oom_kills: processes of the job that the kernel killed because its memory was used up.
    """
    if exit_code == _KILLED and oom_kills:
        return "host_memory"
    if exit_code > 128 and exit_code != CONTAINER_FAILED:
        return _SIGNAL_CAUSES.get(exit_code - 128, "killed")
    known = {
        int(ExitCode.BUG): "bug",
        int(ExitCode.USER_INPUT): "input",
        int(ExitCode.ENVIRONMENT): "environment",
        CONTAINER_FAILED: "environment",
    }
    return known.get(exit_code, "unknown")


def cause_of_state(state: str) -> str | None:
    """Returns the cause that a final state of SLURM tells of, None where it tells of none."""
    return _STATE_CAUSES.get(state)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
