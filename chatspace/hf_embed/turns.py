"""Who may be in a forward pass: any number of workers at once, or one that has the device alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets workers in together, or one by one where a pass needs all the memory there is.

    A thread must leave before it enters again: nobody waits for others while others wait for it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_inside = 0
        self._n_alone = 0  # inside or waiting

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits until nobody is inside alone, or wants to be."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_alone == 0)
            self._n_inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until nobody is inside, and lets nobody in meanwhile."""
        with self._changed:
            self._n_alone += 1
            self._changed.wait_for(lambda: self._n_inside == 0)
            self._n_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_alone -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._n_inside -= 1
            self._changed.notify_all()
