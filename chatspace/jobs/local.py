"""The local executor: the array tasks of a run as processes of this machine, a few at a time."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from chatspace.errors import ChatspaceError, ExitCode, InterruptedRun, UserError
from chatspace.jobs.attempt import usable_threads
from chatspace.jobs.causes import cause_of_exit
from chatspace.jobs.events import EventLog, read_events
from chatspace.jobs.progress import LiveProgress
from chatspace.jobs.signals import INT_GRACE_S
from chatspace.layout import Layout, path_component
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.shards.store import utc_now

POLL_S = 0.2
# A worker gets this long after Ctrl-C to finish or drop its shard before it is killed, and this
# long after a second one to drop it.
STOP_TIMEOUT_S = 30.0
DROP_TIMEOUT_S = 5.0


class SliceFailed(ChatspaceError):
    """A worker ended with an error that is neither the user's nor an interruption."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    position: int
    split: SplitPlan
    slice: Slice
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    log_path: Path
    log_start: int  # what stands before it is of earlier executions
    gpu: str | None


class _Failure(NamedTuple):
    position: int
    label: str
    code: int
    log_path: Path
    log_start: int


def run_local(
    plan: Plan, *, workers: int | None = None, progress: LiveProgress | None = None
) -> None:
    """Runs every slice of a plan on this machine and returns when all are done.

    Each slice is a process of its own, exactly what an array task would run, with its output in
    `runs/{run_id}/logs/`, below that of its earlier executions. The container of the spec is not
    used here.

    Args:
        plan: the run, already written to disk.
        workers: slices at the same time [one for each GPU, one on a CPU].
        progress: shows the slices in the order of `slices_of(plan)`.

    Raises:
        UserError: a slice found the user's input wrong; no further slice was started.
        InterruptedRun: Ctrl-C or SIGTERM; running it again resumes.
        SliceFailed: slices failed; the others were run.
    """
    gpus = _gpu_ids()
    queue = list(enumerate(slices_of(plan)))
    n_workers = min(workers or max(1, len(gpus)), len(queue))
    pool = _Pool(plan, progress, gpus, threads_each=max(1, usable_threads() // n_workers))
    interrupts = _Interrupts()
    try:
        while queue or pool.running:
            while queue and len(pool.running) < n_workers and not pool.stop_starting:
                position, (split, slice_) = queue.pop(0)
                with interrupts.held():
                    pool.start(position, split, slice_)
            if pool.stop_starting:
                queue.clear()
            time.sleep(POLL_S)
            pool.poll()
    except KeyboardInterrupt:
        pool.interrupt_patiently()
        raise InterruptedRun(
            f"Interrupted: {plan.run_id}. Run it again to resume; finished shards are kept."
        ) from None
    finally:
        interrupts.hold()
        pool.close()
        interrupts.restore()
    pool.raise_failures()


def slices_of(plan: Plan) -> list[tuple[SplitPlan, Slice]]:
    """Returns all slices of all splits, in order."""
    return [(split, slice_) for split in plan.splits for slice_ in split.slices]


def slice_labels(plan: Plan) -> list[tuple[str, int]]:
    """Returns name and input rows of each slice, for a progress display."""
    return [
        (f"{split.name} {slice_.index}", sum(span.n_rows for span in split.spans(slice_)))
        for split, slice_ in slices_of(plan)
    ]


def rows_done(plan: Plan, whole: Mapping[str, Collection[int]]) -> dict[int, int]:
    """Returns the rows of each slice in whole shards, by position in `slices_of`.

    Args:
        plan: the run.
        whole: indexes of the whole shards of each split.
    """
    return {
        position: sum(s.n_rows for s in split.spans(slice_) if s.index in whole[split.name])
        for position, (split, slice_) in enumerate(slices_of(plan))
    }


def task_command(
    plan: Plan, split: SplitPlan, slice_: Slice, *, python: Sequence[str] = ()
) -> list[str]:
    """Returns the command of one array task, as a batch script would call it."""
    plan_path = Layout(Path(plan.workspace)).run(plan.run_id).plan
    words = ["task", "--plan", str(plan_path), "--split", split.name, "--slice", str(slice_.index)]
    return [
        *(python or (sys.executable,)),
        "-m",
        "chatspace",
        *words,
        "--of",
        str(len(split.slices)),
    ]


class _Interrupts:
    """Makes SIGTERM and SIGINT raise KeyboardInterrupt, later where that would lose a process."""

    def __init__(self) -> None:
        self._is_held = self._has_come = False
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so below nohup
            numbers.append(signal.SIGINT)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises what comes meanwhile at the end."""
        self.hold()
        yield
        self._is_held = False
        if self._has_come:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Raises nothing from now on."""
        self._is_held = True

    def restore(self) -> None:
        """Gives the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._has_come = True
        if not self._is_held:
            raise KeyboardInterrupt


class _Pool:
    """The worker processes that run at the moment."""

    def __init__(
        self, plan: Plan, progress: LiveProgress | None, gpus: Sequence[str], *, threads_each: int
    ) -> None:
        self.plan, self.progress, self.gpus = plan, progress, gpus
        self.threads_each = threads_each
        self.running: list[_Worker] = []
        self.stop_starting = False
        self._failed: list[_Failure] = []
        self._told_at_end: tuple[int, Any] | None = None  # slice and failure that the error tells
        self._offsets: dict[int, int] = {}
        self._layout = Layout(Path(plan.workspace)).run(plan.run_id)

    def start(self, position: int, split: SplitPlan, slice_: Slice) -> None:
        """Starts one slice; its events are shown from here on."""
        event_log = self._layout.event_log(split.name, slice_.index)
        self._offsets[position] = event_log.stat().st_size if event_log.exists() else 0
        log_path = (
            self._layout.folder / "logs" / f"{path_component(split.name)}-{slice_.index:05d}.log"
        )
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log, log_start = _begin_log(log_path, f"{split.name} slice {slice_.index}")
        env = {**os.environ, "CHATSPACE_THREADS": str(self.threads_each)}
        env.update(self.plan.cluster["env"])
        gpu = self._free_gpu()
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        process = subprocess.Popen(
            task_command(self.plan, split, slice_),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )
        self.running.append(
            _Worker(
                position=position,
                split=split,
                slice=slice_,
                process=process,
                log=log,
                log_path=log_path,
                log_start=log_start,
                gpu=gpu,
            )
        )

    def poll(self) -> None:
        """Shows new events and takes finished workers out."""
        for worker in list(self.running):
            code = worker.process.poll()
            self._show_events(worker)
            if code is not None:
                self._finish(worker, code)
        if self.progress is not None:
            self.progress.tick()

    def interrupt_patiently(self) -> None:
        """Lets the workers finish their shards or drop them; a second Ctrl-C has them dropped."""
        try:
            if self.progress is not None:
                self.progress.note(
                    f"stopping: shards that end within {INT_GRACE_S:.0f} s are kept; "
                    "Ctrl-C again stops at once"
                )
            self._interrupt(STOP_TIMEOUT_S)
        except KeyboardInterrupt:
            self._interrupt(DROP_TIMEOUT_S)

    def _interrupt(self, timeout_s: float) -> None:
        """Passes SIGINT on and waits until the workers have ended."""
        for worker in self.running:
            worker.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + timeout_s
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_S)
            self.poll()

    def close(self) -> None:
        """Leaves no process behind."""
        for worker in self.running:
            worker.process.kill()
            worker.process.wait(timeout=10)
            worker.log.close()

    def raise_failures(self) -> None:
        """Raises the error of the first failed slice, if any."""
        if not self._failed:
            return
        told = self._told_at_end[0] if self._told_at_end else None
        first = min(self._failed, key=lambda failure: failure.position != told)
        label, code, log_path = first.label, first.code, first.log_path
        last = _last_line(log_path, first.log_start).removeprefix("chatspace: ")
        more = len(self._failed) - 1
        also = f" ({more} more slice{'s' if more > 1 else ''} failed)" if more else ""
        if code == ExitCode.USER_INPUT:
            raise UserError(f"{last}{also}")
        failure = SliceFailed(
            f"Slice failed: {label} exit code {code}: {last} Log: {log_path}{also}"
        )
        if code in (ExitCode.ENVIRONMENT, ExitCode.INTERRUPTED):
            failure.exit_code = ExitCode(code)
        raise failure

    def _free_gpu(self) -> str | None:
        """Returns the GPU with the fewest workers, None on a machine without one."""
        load = {gpu: sum(worker.gpu == gpu for worker in self.running) for gpu in self.gpus}
        return min(load, key=lambda gpu: load[gpu], default=None)

    def _show_events(self, worker: _Worker) -> None:
        path = self._layout.event_log(worker.split.name, worker.slice.index)
        events, self._offsets[worker.position] = read_events(path, self._offsets[worker.position])
        if self.progress is not None:
            for event in events:
                self.progress.update(worker.position, self._shown(worker.position, event))

    def _shown(self, position: int, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns an event without what the error at the end will tell."""
        if event.get("event") != "failed":
            return event
        error = event.get("error")
        if self._told_at_end is None:
            self._told_at_end = position, error
        return {**event, "error": ""} if error == self._told_at_end[1] else event

    def _finish(self, worker: _Worker, code: int) -> None:
        self.running.remove(worker)
        worker.log.close()
        if code == ExitCode.DONE:
            return
        if code < 0:  # killed: it could not say so itself
            path = self._layout.event_log(worker.split.name, worker.slice.index)
            error, cause = f"killed by {signal.Signals(-code).name}", cause_of_exit(128 - code)
            with EventLog(path) as events:
                events.write("failed", error=error, cause=cause)
        label = f"{worker.split.name} {worker.slice.index}"
        failure = _Failure(worker.position, label, code, worker.log_path, worker.log_start)
        self._failed.append(failure)
        # Wrong input would fail every other slice in the same way.
        self.stop_starting = self.stop_starting or code == ExitCode.USER_INPUT


def _begin_log(path: Path, title: str) -> tuple[IO[bytes], int]:
    """Returns a task's log below what earlier executions wrote, and where this one's words begin.

    It is added to and never cut short: a task whose parent was killed may still write to it.
    """
    log = path.open("ab")
    log.write(f"chatspace: {utc_now()} {title} begins on {platform.node()}\n".encode())
    log.flush()
    return log, log.tell()


def _last_line(path: Path, start: int) -> str:
    """Returns the last line of a log after its first `start` bytes."""
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing."


def _gpu_ids() -> list[str]:
    """Returns the ids of the NVIDIA GPUs that may be used, empty where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
    )
    return [str(i) for i, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")]
