from __future__ import annotations

import errno

import pytest

from chatspace.errors import (
    InputError,
    ModelError,
    OutputError,
    RowTooLargeError,
    UnfitEnvironmentError,
)
from chatspace.jobs.causes import CAUSES, cause_of, cause_of_exit, cause_of_state


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is a RuntimeError too."""


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OutOfMemoryError("CUDA out of memory"), "gpu_memory"),
        (caused(ModelError("Row too long"), OutOfMemoryError("CUDA")), "gpu_memory"),
        (MemoryError(), "host_memory"),
        (OSError(errno.EIO, "Input/output error"), "node"),
        (caused(OutputError("cannot write"), OSError(errno.ESTALE, "Stale")), "node"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node"),
        (RuntimeError("CUDA error: device-side assert triggered"), "bug"),
        (RowTooLargeError("Out of memory: one row of 9000 tokens"), "gpu_memory"),
        (OutputError("Disk full"), "output"),
        (InputError("no column"), "input"),
        (UnfitEnvironmentError("no GPU"), "environment"),
        (RuntimeError("shapes differ"), "bug"),
        (OSError(errno.ENOENT, "No such file"), "bug"),
    ],
)
def test_cause_of_error_is_told_apart(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [(1, "bug"), (2, "input"), (4, "environment"), (137, "killed"), (139, "crash"),
     (143, "cancelled"), (255, "environment"), (3, "unknown")],
)  # fmt: skip
def test_cause_of_exit_code_is_told_apart(exit_code: int, cause: str) -> None:
    assert cause_of_exit(exit_code) == cause


def test_cause_of_exit_code_of_a_kill_is_memory_where_the_kernel_counted_one() -> None:
    assert cause_of_exit(137, oom_kills=1) == "host_memory"
    assert cause_of_exit(1, oom_kills=1) == "bug"


def test_cause_of_state_knows_what_slurm_says_and_every_cause_has_a_next_step() -> None:
    states = ["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "CANCELLED", "FAILED", "COMPLETED"]
    causes = [cause_of_state(state) for state in states]
    assert causes == ["host_memory", "walltime", "node", "cancelled", None, None]
    assert all(cause in CAUSES for cause in causes if cause)
    assert all(step.endswith(".") for step in CAUSES.values())
