"""What the stages of a pipeline share: bounded channels, one first error, an end to all waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from chatspace.hf_embed.metrics import StageClock

Item = TypeVar("Item")

POLL_S = 0.1
STALL_S = 1800.0


class ClosedError(Exception):
    """The pipeline ends: raised inside its stages, never outside."""


class Flow:
    """The common state of a pipeline's stages.

    Args:
        stall_s: if nothing moves between any two stages for so long, the waiting ones give up. It
            must be longer than the slowest step: reading a shard, a forward pass, a commit.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stall_s = stall_s
        self._moved_at = time.perf_counter()

    def fail(self, error: BaseException) -> None:
        """Ends the pipeline with `error`; the first one counts."""
        with self._lock:
            if self.error is None and not isinstance(error, ClosedError):
                self.error = error
        self._closed.set()

    def close(self) -> None:
        """Ends the pipeline without an error."""
        self._closed.set()

    def check(self) -> None:
        """Raises `ClosedError` if the pipeline has ended."""
        if self._closed.is_set():
            raise ClosedError

    def moved(self) -> None:
        """Says that some stage got on."""
        self._moved_at = time.perf_counter()

    def wait(self, what: str) -> None:
        """Called between two polls of a wait.

        Raises:
            ClosedError: the pipeline has ended.
            TimeoutError: nothing has moved for `stall_s`.
        """
        self.check()
        if time.perf_counter() - self._moved_at > self._stall_s:
            raise TimeoutError(
                f"Stalled: {what}; no stage moved for {self._stall_s:g} s. "
                f"Look at the node and its file systems, then run the task again."
            )

    def join(self, thread: threading.Thread, clock: StageClock) -> None:
        """Waits for a stage to end, as `wait` says."""
        with clock.idle():
            while thread.is_alive():
                thread.join(POLL_S)
                if thread.is_alive():
                    self.wait(f"waiting for the {thread.name} to end")


class Channel(Generic[Item]):
    """A bounded queue between two stages of a flow."""

    def __init__(self, flow: Flow, name: str, size: int) -> None:
        self._flow, self._name = flow, name
        self._queue: queue.Queue[Item] = queue.Queue(maxsize=size)

    @property
    def is_empty(self) -> bool:
        """Whether the next `get` would wait."""
        return self._queue.empty()

    def put(self, item: Item, clock: StageClock) -> None:
        """Hands an item on; waits while the channel is full."""
        with clock.idle():
            while True:
                self._flow.check()
                try:
                    self._queue.put(item, timeout=POLL_S)
                except queue.Full:
                    self._flow.wait(f"waiting to hand on {self._name}")
                else:
                    self._flow.moved()
                    return

    def get(self, clock: StageClock, *, give_up: Callable[[], bool] = lambda: False) -> Item | None:
        """Returns the next item, waiting for it; None if `give_up` says so before there is one."""
        with clock.idle():
            while not give_up():
                self._flow.check()
                try:
                    item = self._queue.get(timeout=POLL_S)
                except queue.Empty:
                    self._flow.wait(f"waiting for {self._name}")
                else:
                    self._flow.moved()
                    return item
        return None
