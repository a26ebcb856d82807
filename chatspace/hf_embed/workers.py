"""Threads that run forward passes; daemons, so that one that is stuck does not keep the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import torch


class Workers:
    """A fixed number of threads that take work in the order in which it came.

    Args:
        n_workers: how many.
        threads_each: CPU threads that PyTorch may use in each; it is a setting of a thread.
    """

    def __init__(self, n_workers: int, threads_each: int) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads_each = threads_each
        self._n_workers = n_workers
        for number in range(n_workers):
            threading.Thread(target=self._run, name=f"encoder-{number}", daemon=True).start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Has the next free thread call a function."""
        future: Future[Any] = Future()
        self._work.put((future, lambda: function(*args)))
        return future

    def close(self) -> None:
        """Cancels what no thread has begun; the threads end after what they have in hand."""
        while True:
            try:
                waiting = self._work.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        for _ in range(self._n_workers):
            self._work.put(None)

    def _run(self) -> None:
        torch.set_num_threads(self._threads_each)
        while (taken := self._work.get()) is not None:
            future, call = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # whoever waits for the result raises it
                future.set_exception(error)
            del taken, future, call  # else they live until the next work comes
