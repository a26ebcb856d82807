"""The seam to a batch system, and SLURM behind it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chatspace.errors import UnfitEnvironmentError

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60.0
# Else a list of array indexes ends after 64 characters: https://slurm.schedmd.com/sacct.html
_WHOLE_LISTS = {"SLURM_BITSTR_LEN": "0"}
# What SLURM's commands say where they are installed and nothing of SLURM answers.
_UNREACHED = re.compile(
    r"DNS SRV lookup failed|establish a configuration source|unable to contact slurm controller",
    re.IGNORECASE,
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a batch system says at one moment.

    Attributes:
        states: state by element, `1234_7`, of the jobs that were asked for.
        exit_codes: `code:signal` of the elements that ended with neither 0.
        names: name of each of these jobs by id, as far as they are or just were in the queue.
        answered: whether the queue could be asked; if not, an unknown element may still be in it.
    """

    states: dict[str, str] = field(default_factory=dict)
    exit_codes: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    answered: bool = True


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
    """sbatch, squeue and sacct on this machine's PATH.

    Args:
        timeout_s: how long it is waited for an answer to each question about jobs.
    """

    def __init__(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

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
        return self.look(job_ids).states if job_ids else {}

    def look(self, job_ids: Collection[str], names: Collection[str] = ()) -> Snapshot:
        """Asks one squeue and, if there are ids, one sacct.

        Args:
            job_ids: jobs to tell of.
            names: also those of the user's jobs in the queue that have one of these names.
        """
        # squeue refuses ids that have left the queue, so the user's whole queue is asked for; with
        # those that ended lately, which is all that is left of them without accounting.
        question = ["squeue", "--me", "-h", "-t", "all", "-o", "%i|%T|%j"]
        queue = _try_run(question, self._timeout_s)
        found = [
            (element, state, name)
            for element, state, name in _rows(queue or "")
            if _job_of(element) in job_ids or name in names
        ]
        states: dict[str, str] = {}
        exit_codes: dict[str, str] = {}
        if job_ids:
            fields = ["-o", "JobID,State,ExitCode", "-j", ",".join(job_ids)]
            answer = _try_run(["sacct", "-nPX", *fields], self._timeout_s)
            for element, state, code in _rows(answer or ""):
                states.update(dict.fromkeys(_elements(element), state))
                if code not in ("", "0:0"):
                    exit_codes[element] = code
        # The queue goes before accounting, which lags: what it lacks of an array is not active.
        queued = {e: state for element, state, _ in found for e in _elements(element)}
        known = {_job_of(element) for element in queued}
        states = {
            element: state
            for element, state in states.items()
            if state not in ACTIVE_STATES or _job_of(element) not in known
        } | queued
        return Snapshot(
            states=states,
            exit_codes=exit_codes,
            names={_job_of(element): name for element, _, name in found},
            answered=queue is not None,
        )

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancels whole jobs with scancel, which passes over those that have ended.

        Raises:
            UnfitEnvironmentError: scancel is missing or refuses.
        """
        if job_ids:
            _run(["scancel", "--quiet", *job_ids])


def look(scheduler: Scheduler, job_ids: Collection[str], names: Collection[str] = ()) -> Snapshot:
    """Returns what a scheduler says; one that is not SLURM is asked for states alone."""
    if isinstance(scheduler, SlurmScheduler):
        return scheduler.look(job_ids, names)
    return Snapshot(states=scheduler.states(list(job_ids)) if job_ids else {})


def _rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields element, state and a third column of each line; other lines are messages."""
    for line in text.splitlines():
        element, bar, rest = line.strip().partition("|")
        state, _, third = rest.partition("|")
        if bar:  # `CANCELLED by 1000`, `CANCELLED+`
            yield element, state.split()[0].rstrip("+") if state.strip() else "UNKNOWN", third


def _job_of(element: str) -> str:
    return element.partition("_")[0]


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
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> str:
    limit_s = COMMAND_TIMEOUT_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=env,
            timeout=limit_s,
            check=False,
        )
    except (FileNotFoundError, PermissionError):
        raise UnfitEnvironmentError(
            f"No SLURM here: {command[0]} is not on the PATH. Submit from a login node, or use "
            f"`chatspace run`."
        ) from None
    except subprocess.TimeoutExpired:
        raise UnfitEnvironmentError(
            f"SLURM does not answer: {command[0]} took more than {limit_s:.0f} s. Try again later."
        ) from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        words = dict.fromkeys(line.removeprefix(f"{command[0]}: error: ").strip() for line in said)
        if _UNREACHED.search(" ".join(words)):
            raise UnfitEnvironmentError(
                f"SLURM cannot be reached from this machine: {command[0]} says "
                f"{' '.join(words).rstrip('.')}. Run it on a login node of the cluster, or use "
                f"`chatspace run` here."
            )
        raise UnfitEnvironmentError(
            f"{command[0]} refused: {' '.join(words)}. Correct the slurm section of the spec or "
            f"its profile; `sinfo` lists partitions, `sacctmgr show assoc user=$USER` accounts."
        )
    return done.stdout


def _try_run(command: Sequence[str], timeout_s: float) -> str | None:
    """Returns the output of a query, None where it fails: accounting may be off."""
    try:
        return _run(command, env={**os.environ, **_WHOLE_LISTS}, timeout_s=timeout_s)
    except UnfitEnvironmentError as error:
        log.info("query failed command=%s error=%s", command[0], error)
        return None
