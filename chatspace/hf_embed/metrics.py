"""What a slice measures of itself: seconds of each stage, and the counters that it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from chatspace.plan.work import Progress, StageTimes

REPORT_EVERY_S = 0.5


@dataclass(slots=True, kw_only=True)
class StageClock:
    """Adds up the busy and idle seconds of one stage; used by that stage's thread alone."""

    times: StageTimes = field(default_factory=StageTimes)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts what happens inside as work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times.busy_s += time.perf_counter() - start

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Counts what happens inside as waiting for another stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times.idle_s += time.perf_counter() - start


@dataclass(slots=True, kw_only=True)
class Counters:
    """How far a slice is; written by the encoder's thread, read by the reporter's."""

    stage: str = "loading model"
    rows: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0

    def progress(self) -> Progress:
        """Returns the counters as they stand."""
        return Progress(
            rows=self.rows,
            n_tokens=self.n_tokens,
            n_padded_tokens=self.n_padded_tokens,
            stage=self.stage,
        )


class Reporter:
    """Reports the counters twice a second from a thread of its own, and once more at the end.

    A long forward pass must not look like a hung task, so the encoder's own thread does not report.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        counters: Counters,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._report, self._counters, self._on_error = report, counters, on_error
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join(timeout=10 * REPORT_EVERY_S)
        if error is None:
            self._report(self._counters.progress())

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._report(self._counters.progress())
                self._end.wait(REPORT_EVERY_S)
        except BaseException as error:  # it must reach the slice, whatever it is
            self._on_error(error)
