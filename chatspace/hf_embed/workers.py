"""Threads that run forward passes; daemons, so that one that is stuck does not keep the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Any

import torch


class Workers:
    """A fixed number of threads that take work in the order in which it came.

    Args:
        n_workers: how many.
        threads_each: CPU threads that PyTorch may use in each; it is a setting of a thread.
        around: makes what a thread is inside of as long as it lives; called once for each.
    """

    def __init__(
        self,
        n_workers: int,
        threads_each: int,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads_each = threads_each
        names = [f"encoder-{number}" for number in range(n_workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(around(),), name=name, daemon=True)
            for name in names
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Has the next free thread call a function."""
        future: Future[Any] = Future()
        self._work.put((future, lambda: function(*args)))
        return future

    def close(self, wait_s: float = 0.0) -> None:
        """Cancels what no thread has begun; the threads end after what they have in hand.

        Args:
            wait_s: how long to wait for that. A process that exits while a thread is inside of
                PyTorch may be aborted, and then has not the exit code that it chose.
        """
        while True:
            try:
                waiting = self._work.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        end_by = time.perf_counter() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end_by - time.perf_counter()))

    def _run(self, inside: AbstractContextManager[object]) -> None:
        torch.set_num_threads(self._threads_each)
        with inside:
            self._work_off()

    def _work_off(self) -> None:
        while (taken := self._work.get()) is not None:
            future, call = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # whoever waits for the result raises it
                future.set_exception(error)
            del taken, future, call  # else they live until the next work comes
