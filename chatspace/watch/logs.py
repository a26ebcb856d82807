"""Job logs: where the output of each task lies, whoever ran it, and the ends of them.

{log_dir}/{run_id}-1234_7.out                     SLURM; the restarts of an element share one
runs/{run_id}/logs/train-00007.log                the local executor
runs/{run_id}/submitit/1234_7_0_log.{out,err}     submitit

The log of a job that was submitted with another `--output` is found where its event log names it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chatspace.errors import InputError
from chatspace.jobs.submissions import read_submissions
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.watch.task_states import TaskStatus

BLOCK_BYTES = 64 << 10
FOLLOW_POLL_S = 0.5
FOLLOW_ASK_S = 10.0
_SLURM_ID = re.compile(r"(\d+)_(\d+)$")
_REPAIR_TASK = re.compile(r"(?:(.+)/)?repair(\d+)/(\d+)$")


def newest_logs(plan: Plan, status: TaskStatus, element: str | None = None) -> list[Path]:
    """Returns the files of a task's latest execution: one, or two where errors have their own.

    Args:
        plan: the run.
        status: the task.
        element: another SLURM id of it, for the log of that one.
    """
    found = [paths for paths in _candidates(plan, status, element) if paths]
    return max(found, key=lambda paths: paths[0].stat().st_mtime, default=[])


def newest_log(plan: Plan, status: TaskStatus) -> Path | None:
    """Returns the file that tells why a task failed, None if there is none."""
    return next(iter(newest_logs(plan, status)), None)


def _candidates(plan: Plan, status: TaskStatus, element: str | None) -> Iterator[list[Path]]:
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    task = status.task
    slurm_id = element or status.element
    if slurm_id is not None:
        yield _existing(Path(task.log_dir) / f"{plan.run_id}-{slurm_id}.out")
        yield _submitit(run.folder, slurm_id)
    if element is not None:
        return
    if status.log is not None:
        yield _existing(Path(status.log))
    yield _existing(run.folder / "logs" / f"{task.log_name}.log")
    if slurm_id is None:
        for submission in read_submissions(plan):
            is_of_task = (submission.split, submission.offset) == (task.split, task.index)
            if submission.executor == "local" and submission.count == 1 and is_of_task:
                yield _submitit(run.folder, submission.job_id.rpartition(":")[2])


def _submitit(run: Path, job_id: str) -> list[Path]:
    # What fails says so on stderr.
    return _existing(*(run / "submitit" / f"{job_id}_0_log.{kind}" for kind in ("err", "out")))


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.is_file()]


def find_task(
    plan: Plan, statuses: Sequence[TaskStatus], text: str
) -> tuple[TaskStatus, str | None]:
    """Returns the task that a person names, and the SLURM id where that is its name.

    Args:
        plan: the run.
        statuses: all its tasks.
        text: `3`, `train/3`, `repair1/3` or a SLURM id, `1234_7`.

    Raises:
        InputError: there is no such task; the message says which there are.
    """
    if slurm_id := _SLURM_ID.match(text):
        found = [s for s in statuses if text == s.element or _is_attempt(s, text)]
        found += _on_record(plan, statuses, slurm_id[1], int(slurm_id[2]))
    elif repair := _REPAIR_TASK.match(text):
        number, index = int(repair[2]), int(repair[3])
        found = [s for s in statuses if (s.task.repair, s.task.index) == (number, index)]
    else:
        split, slash, index_text = text.rpartition("/")
        slices = [s for s in statuses if s.task.repair is None]
        found = [
            s
            for s in slices
            if str(s.task.index) == index_text and (s.task.split == split or not slash)
        ]
        if len({s.task.split for s in found}) > 1:
            names = ", ".join(f"{s.task.split}/{index_text}" for s in found)
            raise InputError(f"Which split: task={text}; there are {names}. Name one of them.")
    if not found:
        names = ", ".join(
            f"{split.name}/0 to {split.name}/{len(split.slices) - 1}" for split in plan.splits
        )
        raise InputError(
            f"Unknown task: {text}; {plan.run_id} has {names}. Name one, or a SLURM id such as "
            f"1234_7."
        )
    return found[0], text if slurm_id else None


def _is_attempt(status: TaskStatus, slurm_id: str) -> bool:
    return (status.attempt or "").startswith(f"{slurm_id}.")


def _on_record(
    plan: Plan, statuses: Sequence[TaskStatus], job_id: str, element: int
) -> list[TaskStatus]:
    """Returns the task that an element of a recorded job was, also of an older one."""
    return [
        status
        for submission in read_submissions(plan)
        if submission.job_id == job_id
        for status in statuses
        if (status.task.split, status.task.repair) == (submission.split, submission.repair)
        and status.task.index == submission.offset + element
    ]


def log_lines(
    plan: Plan,
    status: TaskStatus,
    element: str | None = None,
    *,
    lines: int | None,
    shown: Callable[[Path], str] = str,
) -> Iterator[str]:
    """Yields the log of a task, each file below a line that names it.

    Args:
        plan: the run.
        status: the task.
        element: another SLURM id of it, for the log of that one.
        lines: how many of the last lines of each file; None for all.
        shown: how paths are written.
    """
    head = f"{status.task.label}: {status.state}"
    paths = newest_logs(plan, status, element)
    for path in paths:
        yield f"==> {head}: {shown(path)} <=="
        if lines is None:
            yield path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
        else:
            yield from last_lines(path, lines)
    if not paths:
        yield f"==> {head}: no log <=="


def last_lines(path: Path, n: int) -> list[str]:
    """Returns the last `n` lines of a file; only its end is read."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, 2)
            data = b""
            while position > 0 and data.count(b"\n") <= n:
                start = max(0, position - BLOCK_BYTES)
                file.seek(start)
                data = file.read(position - start) + data
                position = start
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]
    return data.decode(errors="replace").splitlines()[-n:]


def follow(
    path: Path,
    is_active: Callable[[], bool],
    write: Callable[[str], object],
    *,
    from_byte: int = 0,
    poll_s: float = FOLLOW_POLL_S,
    ask_s: float = FOLLOW_ASK_S,
) -> None:
    """Writes what is added to a file, until its task has ended.

    Args:
        path: a job log; one that another execution begins anew is followed from its start.
        is_active: asked now and then whether more is to come.
        write: takes text.
        from_byte: what stands before it has been shown.
        poll_s: seconds between two looks at the file.
        ask_s: seconds between two questions.
    """
    offset, next_question = from_byte, time.monotonic()
    while True:
        may_end = time.monotonic() >= next_question and not is_active()
        if time.monotonic() >= next_question:
            next_question = time.monotonic() + ask_s
        offset = _write_new(path, offset, write)  # after the question: nothing of the end is lost
        if may_end:
            return
        time.sleep(poll_s)


def _write_new(path: Path, offset: int, write: Callable[[str], object]) -> int:
    with path.open("rb") as file:
        offset = 0 if file.seek(0, 2) < offset else offset
        file.seek(offset)
        data = file.read()
    if data:
        write(data.decode(errors="replace"))
    return offset + len(data)
