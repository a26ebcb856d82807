"""The seam to a batch system, and SLURM behind it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from chatspace.errors import UnfitEnvironmentError

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60.0
# Else a list of array indexes ends after 64 characters: https://slurm.schedmd.com/sacct.html
_WHOLE_LISTS = {"SLURM_BITSTR_LEN": "0"}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?$")
ACTIVE_STATES = frozenset(
    [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "RESV_DEL_HOLD",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
    ]
)


class Scheduler(Protocol):
    """What chatspace asks of a batch system."""

    def check(self, script: str) -> None:
        """Raises UnfitEnvironmentError if a script with this text would be refused."""
        ...

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        """Submits a script, to start after the jobs `after` have ended, and returns its job id."""
        ...

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Returns the state of each element `job_array` of the jobs, as far as it is known."""
        ...

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancels jobs; those that have ended are passed over."""
        ...


class SlurmScheduler:
    """sbatch, squeue and sacct on this machine's PATH."""

    def check(self, script: str) -> None:
        """Asks sbatch whether it would take a script, without submitting it.

        Raises:
            UnfitEnvironmentError: sbatch is missing or refuses the script, in its own words.
        """
        with tempfile.TemporaryDirectory(prefix="chatspace-") as folder:
            path = Path(folder) / "script.slurm"
            path.write_text(script, encoding="utf-8")
            _run(["sbatch", "--test-only", path.name], cwd=path.parent)

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        """Submits a script with sbatch.

        Raises:
            UnfitEnvironmentError: sbatch is missing or refuses the script, in its own words.
        """
        dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        # Without this a job waits for ever once its dependency can no longer be met.
        kill = ["--kill-on-invalid-dep=yes"] if after else []
        text = _run(["sbatch", "--parsable", *dependency, *kill, script.name], cwd=script.parent)
        lines = text.split()  # `12` or `12;cluster`, below what a wrapper of the site may say
        job_id = lines[-1].split(";")[0] if lines else ""
        if not job_id.isdecimal():
            raise UnfitEnvironmentError(
                f"sbatch gave no job id: {script}; it said {text.strip()!r}. See `squeue --me`."
            )
        return job_id

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Returns element states from one squeue and, where accounting is on, one sacct.

        A pending element that was cancelled is in neither, so callers keep their own list of what
        they expect.
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

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancels whole jobs with scancel, which passes over those that have ended.

        Raises:
            UnfitEnvironmentError: scancel is missing or refuses.
        """
        if job_ids:
            _run(["scancel", "--quiet", *job_ids])


def _parse_states(text: str) -> dict[str, str]:
    """Returns states by element; `123_[4-7%2]` stands for elements that were not split off yet."""
    states: dict[str, str] = {}
    for line in text.splitlines():
        element, bar, state = line.strip().partition("|")
        if bar:  # anything else is a message
            word = state.split()[0].rstrip("+") if state.strip() else "UNKNOWN"
            states.update(dict.fromkeys(_elements(element), word))
    return states


def _elements(element: str) -> list[str]:
    job, _, rest = element.partition("_[")
    if not rest:
        return [element]
    names = []
    for part in rest.split("]")[0].split("%")[0].split(","):
        match = _RANGE.match(part)
        if match:  # not so `...`, where a list was too long for SLURM
            first, last, step = (int(number) if number else None for number in match.groups())
            assert first is not None
            names += [f"{job}_{i}" for i in range(first, (last or first) + 1, step or 1)]
    return names


def _run(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=env,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (FileNotFoundError, PermissionError):
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
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        words = dict.fromkeys(line.removeprefix(f"{command[0]}: error: ").strip() for line in said)
        raise UnfitEnvironmentError(
            f"{command[0]} refused: {' '.join(words)}. Correct the slurm section of the spec or "
            f"its profile; `sinfo` lists partitions, `sacctmgr show assoc user=$USER` accounts."
        )
    return done.stdout


def _try_run(command: Sequence[str]) -> str:
    """Returns the output of a query, empty where it fails: accounting may be off."""
    try:
        return _run(command, env={**os.environ, **_WHOLE_LISTS})
    except UnfitEnvironmentError as error:
        log.info("query failed command=%s error=%s", command[0], error)
        return ""
