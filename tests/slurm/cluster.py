"""Talk to the test cluster of ``hpc/test-cluster`` and the image of ``hpc/test-container``."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HPC = Path(__file__).resolve().parents[2] / "hpc"
CLUSTER = HPC / "test-cluster" / "cluster"
CONTAINER = HPC / "test-container" / "container"
NEWER_SLURM = Path(
    os.environ.get("CHATSPACE_TEST_NEWER_SLURM")
    or Path(tempfile.gettempdir()) / "chatspace-newer-slurm"
)
"""Where ``hpc/install-test-system`` puts the SLURM of a newer Debian release."""

COMMAND_TIMEOUT_S = 30
# How long sacct may lag behind squeue; more than 3 s were seen on a busy machine.
ACCOUNTING_LAG_S = 10.0
UNFINISHED = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED"}
)


class JobsStillRunning(AssertionError):
    """The jobs did not end in time; the message carries what squeue says of them."""


def cluster_settings(version: str, folder: Path | None = None) -> dict[str, str]:
    """Return the variables that make ``cluster`` one of this SLURM version.

    Args:
        version: ``debian``, the installed one, or ``newer``.
        folder: The cluster's state; that of the shared cluster of the version if absent.
    """
    if version == "debian":
        return {} if folder is None else {"CHATSPACE_TEST_CLUSTER": str(folder)}
    folder = folder or Path(tempfile.gettempdir()) / "chatspace-test-cluster-newer"
    return {"CHATSPACE_TEST_CLUSTER": str(folder), "SLURM_PREFIX": str(NEWER_SLURM)}


def cluster_env(settings: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Return the environment in which sbatch and apptainer work, or None if no cluster runs.

    ``CHATSPACE_TEST_SIF`` is in it only if that image has been built.

    Args:
        settings: What ``cluster_settings()`` returned; the default cluster if absent.
    """
    script = (
        '"$1" status >&2 && settings=$("$1" env) && image=$("$2" env) '
        '&& eval "$settings" && eval "$image" && exec env -0'
    )
    answer = subprocess.run(
        ["bash", "-c", script, "cluster_env", str(CLUSTER), str(CONTAINER)],
        env={**os.environ, **(settings or {})},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if answer.returncode != 0:
        return None
    env = dict(line.split("=", 1) for line in answer.stdout.split("\0") if "=" in line)
    if not Path(env["CHATSPACE_TEST_SIF"]).is_file():
        del env["CHATSPACE_TEST_SIF"]
    return env


def sbatch(script: Path, cwd: Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Submit ``script`` from ``cwd`` and return the job id.

    Args:
        script: The batch script.
        cwd: The folder in which sbatch is called, so where relative log paths begin.
        args: Further options of sbatch; they win over the script's own.
        env: What ``cluster_env()`` returned; asked for if absent.

    Raises:
        AssertionError: sbatch refused; the message is its own.
    """
    command = ["sbatch", "--parsable", *args, str(script)]
    answer = _call(command, _found(env), cwd=cwd)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr.strip()}"
    return answer.stdout.strip().split(";")[0]


def wait_for_jobs(
    job_ids: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Wait until all jobs have ended, with one sacct per second.

    Array elements that were cancelled before they started are not in the result: SLURM forgets
    some and lumps the others together. Compare with the indices that you submitted.

    Args:
        job_ids: What ``sbatch`` returned: whole arrays, not elements.
        timeout_s: The longest wait, in seconds.
        env: What ``cluster_env()`` returned; asked for if absent.

    Returns:
        The final state of each job, keyed ``"12"``, or ``"12_3"`` for an array element.

    Raises:
        JobsStillRunning: The time is out.
    """
    env = _found(env)
    begun = time.monotonic()
    while True:
        states = job_states(job_ids, env)
        waited_s = time.monotonic() - begun
        absent = set(job_ids) - {key.split("_")[0] for key in states}
        settled = UNFINISHED.isdisjoint(states.values()) and (
            not absent or waited_s > ACCOUNTING_LAG_S
        )
        # sacct may show the end of an attempt whose next one is queued, or has just gone by.
        if settled and not queue_of(job_ids, env):
            states = job_states(job_ids, env)
            if UNFINISHED.isdisjoint(states.values()):
                return {key: state for key, state in states.items() if "[" not in key}
        if waited_s > timeout_s:
            raise JobsStillRunning(
                f"not ended after {timeout_s:g} s; sacct: {states}; squeue:\n"
                f"{queue_of(job_ids, env)}"
            )
        time.sleep(1.0)


def job_states(job_ids: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """Return what accounting knows now; elements that wait share one key such as ``"12_[4-9]"``."""
    command = ["sacct", "-P", "-X", "-n", "-o", "JobID,State", "-j", ",".join(job_ids)]
    answer = _call(command, env)
    assert answer.returncode == 0, answer.stderr
    rows = (line.split("|") for line in answer.stdout.splitlines() if "|" in line)
    # "CANCELLED by 1000" is CANCELLED.
    return {job_id: state.split()[0] for job_id, state in rows}


def queue_of(job_ids: Sequence[str], env: Mapping[str, str]) -> str:
    """Return squeue's lines for the jobs: index, state, reason, node; empty once all have ended."""
    command = ["squeue", "-h", "-r", "-o", "%i %T %r %N", "-j", ",".join(job_ids)]
    # It fails for a single job that it has forgotten, and prints nothing then.
    return _call(command, env).stdout.strip()


def _found(env: Mapping[str, str] | None) -> Mapping[str, str]:
    found = cluster_env() if env is None else env
    assert found is not None, f"no test cluster runs. Run: {CLUSTER} up"
    return found


def _call(
    command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=dict(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
