"""The seam to a batch system, and SLURM behind it."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from chatspace.errors import UnfitEnvironmentError

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60.0
ACTIVE_STATES = frozenset(
    [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
    ]
)


class Scheduler(Protocol):
    """What chatspace asks of a batch system."""

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        """Submits a script, to start after the jobs `after` have ended, and returns its job id."""
        ...

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Returns the state of each element `job_array` of the jobs, as far as it is known."""
        ...


class SlurmScheduler:
    """sbatch, squeue and sacct on this machine's PATH."""

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        """Submits a script with sbatch.

        Raises:
            UnfitEnvironmentError: sbatch is missing or refuses the script; the message is sbatch's own.
        """
        dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        # Without this a job waits for ever once its dependency can no longer be met.
        kill = ["--kill-on-invalid-dep=yes"] if after else []
        text = _run(["sbatch", "--parsable", *dependency, *kill, script.name], cwd=script.parent)
        return text.strip().splitlines()[-1].split(";")[0]

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Returns element states from one squeue and, where accounting is on, one sacct.

        A pending element that was cancelled is in neither, so callers keep their own list of what they
        expect.
        """
        if not job_ids:
            return {}
        jobs = ",".join(job_ids)
        states = _parse_states(_try_run(["sacct", "-nPX", "-o", "JobID,State", "-j", jobs]))
        # squeue refuses ids that have left the queue, so the user's whole queue is asked for.
        queue = _parse_states(_try_run(["squeue", "--me", "-h", "-r", "-o", "%i|%T"]))
        wanted = set(job_ids)
        states.update({k: v for k, v in queue.items() if k.split("_")[0] in wanted})
        return states


def _parse_states(text: str) -> dict[str, str]:
    """Returns states by element; `123_[4-7%2]` stands for pending elements that were not split off."""
    states: dict[str, str] = {}
    for line in text.splitlines():
        element, _, state = line.partition("|")
        word = state.split()[0] if state else "UNKNOWN"
        for name in _elements(element):
            states[name] = word
    return states


def _elements(element: str) -> list[str]:
    job, _, rest = element.partition("_[")
    if not rest:
        return [element]
    names = []
    for part in rest.split("]")[0].split("%")[0].split(","):
        first, _, last = part.split(":")[0].partition("-")
        names += [f"{job}_{i}" for i in range(int(first), int(last or first) + 1)]
    return names


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise UnfitEnvironmentError(
            f"No SLURM here: {command[0]} is not on the PATH. Submit from a login node, or use "
            f"`chatspace run`."
        ) from None
    except subprocess.TimeoutExpired:
        raise UnfitEnvironmentError(
            f"SLURM does not answer: {command[0]} took more than {COMMAND_TIMEOUT_S:.0f} s. "
            f"Try again later."
        ) from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise UnfitEnvironmentError(f"{command[0]} refused: {' '.join(lines)}")
    return done.stdout


def _try_run(command: Sequence[str]) -> str:
    """Returns the output of a query, empty where it fails: accounting may be off."""
    try:
        return _run(command)
    except UnfitEnvironmentError as error:
        log.info("query failed command=%s error=%s", command[0], error)
        return ""
