"""The state of each task of a run: shards, event logs and SLURM weighed together.

Shards decide over logs, a queue over logs that have no end, and logs over what SLURM calls FAILED.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatspace.jobs.causes import cause_of_exit, cause_of_state
from chatspace.jobs.processes import is_alive
from chatspace.jobs.scheduler import ACTIVE_STATES, Snapshot
from chatspace.watch.completeness import Extent
from chatspace.watch.tails import Tail
from chatspace.watch.tasks import SLURM_ATTEMPT, Array, Task

# In the order in which they are told.
STATES = (
    "running",
    "pending",
    "requeued",
    "finished",
    "failed",
    "gone",
    "interrupted",
    "cancelled",
    "replaced",
    "planned",
)
ACTIVE_TASKS = frozenset(["running", "pending", "requeued"])
WAITING_STATES = frozenset(
    ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"]
)
# Without SLURM's word, a task that said something within this time is taken to be running.
FRESH_S = 600.0
RATE_HOLDS_S = 300.0
Verdict = tuple[str, str | None, str]  # state, cause, error
_LOCAL_ATTEMPT = re.compile(r"(.+)-(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """How a task is.

    Attributes:
        state: one of `STATES`. `requeued` waits in the queue to go on; `interrupted` does not;
            `cancelled` was taken out of the queue; `gone` ended without a trace; `replaced` left
            shards that are tasks of a repair now; `planned` was never submitted.
        cause: key of `CAUSES` where it failed, is gone or was cancelled.
        error: one line of it.
        attempt: its latest execution.
        element: its SLURM id, `1234_7`.
        log: file of its output where its event log tells it.
        n_requeues: how often it was put back into the queue.
        stage: what it is at while it runs, in the words of its kind.
    """

    task: Task
    state: str
    cause: str | None = None
    error: str = ""
    attempt: str | None = None
    element: str | None = None
    log: str | None = None
    n_requeues: int = 0
    stage: str | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None


def judge_tasks(
    tasks: Sequence[Task],
    tails: Mapping[str, Tail],
    arrays: Sequence[Array],
    slurm: Snapshot,
    *,
    now_s: float | None = None,
) -> list[TaskStatus]:
    """Returns how each task is, in the same order.

    Args:
        tasks: from `expected_tasks`.
        tails: from `read_tails`.
        arrays: from `find_arrays`.
        slurm: what SLURM says of them.
        now_s: Unix time [now].
    """
    now_s = time.time() if now_s is None else now_s
    by_owner: dict[tuple[str, int | None], list[Array]] = {}
    for array in arrays:
        by_owner.setdefault((array.split, array.repair), []).append(array)
    alive = {array.job_id: _runs_here(array.job_id) for array in arrays if array.is_local}
    judge = _Judge(_with_quick_arrays(slurm, arrays), alive, now_s)
    found = [
        judge.status(task, tails.get(task.log_name), by_owner.get((task.split, task.repair), ()))
        for task in tasks
    ]
    if any(status.state == "running" and status.element is None for status in found):
        # `chatspace run` is at it, and takes one slice after another.
        found = [replace(s, state="pending") if s.state == "planned" else s for s in found]
    return found


def _with_quick_arrays(slurm: Snapshot, arrays: Sequence[Array]) -> Snapshot:
    """Returns what SLURM says, also where accounting calls a quick array of one by its bare id."""
    states, exit_codes = dict(slurm.states), dict(slurm.exit_codes)
    for array in arrays:
        for known in (states, exit_codes):
            if array.count == 1 and array.job_id in known:
                known.setdefault(f"{array.job_id}_0", known[array.job_id])
    return replace(slurm, states=states, exit_codes=exit_codes)


def with_replaced(found: Sequence[TaskStatus], extents: Sequence[Extent]) -> list[TaskStatus]:
    """Returns the states with `replaced` for what ended and is left to a later repair."""
    repairs: dict[tuple[str, int], int] = {}
    for status in found:
        number = status.task.repair
        if number is not None:  # ascending, so that the latest repair stays
            repairs.update(((status.task.split, shard), number) for shard in status.task.shards)
    if not repairs:
        return list(found)
    present = {extent.split.name: set(extent.present) for extent in extents}

    def is_left_to_repair(task: Task) -> bool:
        missing = (shard for shard in task.shards if shard not in present[task.split])
        return all(repairs.get((task.split, shard), -1) > (task.repair or 0) for shard in missing)

    return [
        replace(status, state="replaced", cause=None, error="")
        if status.state not in (*ACTIVE_TASKS, "finished") and is_left_to_repair(status.task)
        else status
        for status in found
    ]


class _Judge:
    """Weighs what is known of one task after another."""

    def __init__(self, slurm: Snapshot, alive: Mapping[str, bool], now_s: float) -> None:
        self._slurm, self._alive, self._now_s = slurm, alive, now_s

    def status(self, task: Task, tail: Tail | None, arrays: Sequence[Array]) -> TaskStatus:
        covering = [array for array in arrays if self._covers(array, task)]
        elements = [_element(array, task) for array in covering if not array.is_local]
        element = self._latest(elements)
        match = SLURM_ATTEMPT.match(tail.attempt or "") if tail else None
        own = f"{match[1]}_{match[2]}" if match else None
        if tail is not None and self._state_of(element) not in ACTIVE_STATES:
            element = own  # the story is that of the execution that was last heard of
        slurm_state = self._state_of(element)
        if task.is_done:
            state, cause, error = "finished", None, ""
        elif slurm_state in ACTIVE_STATES and not _is_ending(slurm_state, tail, element == own):
            is_again = tail is not None and element == own
            waiting = "requeued" if is_again else "pending"
            state = waiting if slurm_state in WAITING_STATES else "running"
            cause, error = None, ""
        elif tail is not None and tail.ending is not None:
            state, cause, error = self._ended(tail.ending, slurm_state, own)
        elif tail is not None:
            state, cause, error = self._without_end(tail, slurm_state, own)
        else:
            state, cause, error = self._never_ran(covering, element, slurm_state)
        is_fresh = tail is not None and self._now_s - tail.seen_s < RATE_HOLDS_S
        timed = tail if state == "running" and is_fresh else None
        return TaskStatus(
            task=task,
            state=state,
            cause=cause,
            error=error,
            attempt=tail.attempt if tail else None,
            element=element or next(reversed(elements), None),
            log=tail.log if tail else None,
            n_requeues=(int(match[3]) if match else 0) + (state == "requeued"),
            stage=timed.stage if timed else None,
            rows_per_s=timed.rows_per_s if timed else None,
            tokens_per_s=timed.tokens_per_s if timed else None,
        )

    def _state_of(self, element: str | None) -> str | None:
        return self._slurm.states.get(element) if element else None

    def _covers(self, array: Array, task: Task) -> bool:
        if array.count is None:
            return _element(array, task) in self._slurm.states
        return 0 <= task.index - array.offset < array.count

    def _latest(self, elements: Iterable[str]) -> str | None:
        """Returns the element to go by: one in the queue, else the newest that SLURM knows."""
        known = [element for element in elements if element in self._slurm.states]
        active = [e for e in known if self._slurm.states[e] in ACTIVE_STATES]
        return next(reversed(active or known), None)

    def _ended(
        self, ending: Mapping[str, Any], slurm_state: str | None, element: str | None
    ) -> Verdict:
        """Judges a task that said how it ended, or whose batch script did."""
        match ending["event"]:
            case "finished":
                return "finished", None, ""  # what it lacks, another task has in hand
            case "interrupted":
                if slurm_state == "CANCELLED":
                    return "cancelled", "cancelled", "cancelled while it ran"
                return "interrupted", None, ""
            case "failed":
                cause = str(ending.get("cause") or "unknown")
                return "failed", cause, str(ending.get("error", "no message"))
        if slurm_state is not None and cause_of_state(slurm_state) is not None:
            return self._by_slurm(slurm_state, element)
        code = ending.get("exit_code")
        code = code if isinstance(code, int) else 1
        cause = cause_of_exit(code, ending.get("oom_kills", 0))
        return "failed", cause, f"the task's process ended with exit code {code}"

    def _without_end(self, tail: Tail, slurm_state: str | None, element: str | None) -> Verdict:
        """Judges a task that ran and said nothing of an end."""
        if slurm_state is not None and slurm_state != "COMPLETED":
            return self._by_slurm(slurm_state, element)
        local = None if element else _LOCAL_ATTEMPT.match(tail.attempt or "")
        if local and local[1] == platform.node():
            if is_alive(int(local[2])):
                return "running", None, ""
        elif self._now_s - tail.seen_s < FRESH_S and not (element and self._slurm.answered):
            return "running", None, ""
        if element and not self._slurm.answered:
            return "gone", "killed", "silent for more than 10 minutes, and SLURM does not answer"
        knows = "SLURM says COMPLETED" if slurm_state else "nobody knows of it any more"
        return "gone", "killed", f"ended without a word; {knows}"

    def _never_ran(
        self, arrays: Sequence[Array], element: str | None, slurm_state: str | None
    ) -> Verdict:
        """Judges a task that wrote no event."""
        if slurm_state == "COMPLETED":
            return "gone", "unknown", "SLURM says COMPLETED, but the task wrote nothing"
        if slurm_state is not None:
            return self._by_slurm(slurm_state, element)
        local = [array for array in arrays if array.is_local]
        if any(self._alive[array.job_id] for array in local):
            return "pending", None, ""
        if len(local) == len(arrays):
            return "planned", None, ""
        if not self._slurm.answered:
            return "pending", None, ""
        return "cancelled", "cancelled", "left the queue before it ran"

    def _by_slurm(self, slurm_state: str, element: str | None) -> Verdict:
        """Judges by a final state of SLURM alone."""
        if slurm_state == "CANCELLED":
            return "cancelled", "cancelled", "cancelled in SLURM"
        if slurm_state == "PREEMPTED":
            return "interrupted", None, ""
        code, _, signal = self._slurm.exit_codes.get(element or "", "").partition(":")
        error, cause = f"SLURM says {slurm_state}", cause_of_state(slurm_state)
        if signal not in ("", "0"):
            error += f", killed by signal {signal}"
            cause = cause or cause_of_exit(128 + int(signal))
        elif code not in ("", "0"):
            error += f" with exit code {code}"
            cause = cause or cause_of_exit(int(code))
        return "failed", cause or "unknown", error


def _is_ending(slurm_state: str | None, tail: Tail | None, is_own: bool) -> bool:
    """Whether SLURM is clearing up after a task that has told its end."""
    return slurm_state == "COMPLETING" and is_own and tail is not None and tail.ending is not None


def _element(array: Array, task: Task) -> str:
    return f"{array.job_id}_{task.index - array.offset}"


def _runs_here(job_id: str) -> bool:
    host, _, pid = job_id.rpartition(":")
    return host == platform.node() and pid.isdigit() and is_alive(int(pid))
