"""What SLURM's accounting knows of a run's jobs: one sacct, whatever the number of tasks.

A requeued element has one record for each time that it ran, in the order of their starts: the first
is that of the attempt `12_3.r0`. Works with SLURM 22.05 and later; without accounting there are no
records, which is no error.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chatspace.spec.slurm import walltime_s

log = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 60.0
_FIELDS = (
    "JobID", "State", "ElapsedRaw", "TotalCPU", "MaxRSS", "ReqMem", "AllocCPUS", "AllocTRES",
    "NodeList", "Start",
)  # fmt: skip
_UNITS = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One time that an element ran.

    Attributes:
        attempt: its name in task manifests, `12_3.r0`.
        cpu_s: processor time, of all its steps.
        peak_gb: largest memory of one process of it, GiB, None where it is not accounted.
        req_mem: memory asked for, as SLURM writes it.
        gpus: GPUs that it had.
    """

    attempt: str
    state: str
    elapsed_s: float
    cpu_s: float
    peak_gb: float | None
    req_mem: str
    cpus: int
    gpus: int
    nodes: str


class Accounting(Protocol):
    """What a report asks of a batch system."""

    def records(self, job_ids: Sequence[str]) -> list[JobRecord] | None:
        """Returns what is known of whole jobs, None where there is no accounting."""
        ...


class SlurmAccounting:
    """sacct on this machine's PATH."""

    def records(self, job_ids: Sequence[str]) -> list[JobRecord] | None:
        """Asks one sacct."""
        command = ["sacct", "-nPD", "-o", ",".join(_FIELDS), "-j", ",".join(job_ids)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            log.info("no accounting error=%s", error)
            return None
        return parse_records(done.stdout)


def parse_records(text: str) -> list[JobRecord]:
    """Returns the records of sacct's lines, the steps of each added to it.

    Elements that have not started, and what a site's wrapper says, are left out.
    """
    started: dict[str, list[list[dict[str, str]]]] = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) != len(_FIELDS):
            continue
        row = dict(zip(_FIELDS, words, strict=True))
        element, _, step = row["JobID"].partition(".")
        if step:
            if started.get(element):
                started[element][-1].append(row)
        elif "[" not in element and row["Start"] not in ("Unknown", "None", ""):
            started.setdefault(element, []).append([row])
    return [
        _record(f"{element}.r{restart}", rows)
        for element, runs in started.items()
        for restart, rows in enumerate(sorted(runs, key=lambda rows: rows[0]["Start"]))
    ]


def cpu_seconds(text: str) -> float:
    """Returns sacct's TotalCPU in seconds: `00:06.471`, `01:02:03`, `1-02:03:04`."""
    clock, _, fraction = text.partition(".")
    try:
        seconds = float(f"0.{fraction}") if fraction else 0.0
        return seconds + (walltime_s(clock) if clock else 0)
    except ValueError:
        return 0.0


def memory_gb(text: str) -> float | None:
    """Returns a size as SLURM writes it, `573884K`, in GiB, None where there is none."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)[cn]?", text)
    if match is None:
        return None
    return float(match[1]) * _UNITS[match[2]] if match[2] else float(match[1]) / 1024**3


def _record(attempt: str, rows: Sequence[dict[str, str]]) -> JobRecord:
    whole, steps = rows[0], rows[1:]
    peaks = [peak for row in steps if (peak := memory_gb(row["MaxRSS"])) is not None]
    gpus = _GPUS.search(whole["AllocTRES"])
    return JobRecord(
        attempt=attempt,
        state=whole["State"].split()[0].rstrip("+") if whole["State"].strip() else "UNKNOWN",
        elapsed_s=float(whole["ElapsedRaw"] or 0),
        cpu_s=cpu_seconds(whole["TotalCPU"]),
        peak_gb=max(peaks, default=None),
        req_mem=whole["ReqMem"],
        cpus=int(whole["AllocCPUS"] or 0),
        gpus=int(gpus[1]) if gpus else 0,
        nodes=whole["NodeList"],
    )
