"""The figures of a run that are predicted before it and found after it, in the same terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run takes.

    Attributes:
        rows: input rows.
        tokens_per_s: real tokens of one process, while rows flow.
        startup_s: of a task, until they do.
        mean_task_s: of all tasks that are counted.
        slowest_task: split and slice of the task that takes longest.
        device_hours: GPU-hours; hours of tasks where there is no GPU.
        mem_gb: host memory of a task on one node, at its peak, GiB.
    """

    tasks: int
    rows: int
    n_tokens: int
    tokens_per_row: float
    tokens_per_s: float
    rows_per_s: float
    startup_s: float
    mean_task_s: float
    slowest_task_s: float
    slowest_task: str
    device_hours: float
    output_bytes: int
    mem_gb: float

    @property
    def straggling(self) -> float:
        """How much longer the slowest task takes than the mean: 1 is even."""
        return self.slowest_task_s / self.mean_task_s if self.mean_task_s else 1.0


def rates(n_tokens: float, rows: int, work_s: float) -> dict[str, Any]:
    """Returns the figures of so many tokens and rows in so many seconds of work; 0 for none."""
    return {
        "tokens_per_row": n_tokens / rows if rows else 0.0,
        "tokens_per_s": n_tokens / work_s if work_s else 0.0,
        "rows_per_s": rows / work_s if work_s else 0.0,
    }


def task_times(task_s: Mapping[str, float]) -> dict[str, Any]:
    """Returns the figures of tasks whose seconds are known by their names, one at least."""
    slowest = max(task_s, key=lambda task: task_s[task])
    return {
        "mean_task_s": sum(task_s.values()) / len(task_s),
        "slowest_task_s": task_s[slowest],
        "slowest_task": slowest,
    }
