from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager

import pytest

from chatspace.hf_embed.workers import Workers


def test_workers_return_results_and_raise_errors() -> None:
    workers = Workers(2, 1)
    good, bad = workers.submit(divmod, 7, 2), workers.submit(divmod, 7, 0)
    assert good.result(timeout=5) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        bad.result(timeout=5)
    workers.close()


def test_workers_closed_finish_what_they_have_and_cancel_the_rest() -> None:
    workers, begun, go_on = Workers(1, 1), threading.Event(), threading.Event()

    def hold() -> str:
        begun.set()
        go_on.wait(5)
        return "finished"

    held, waiting = workers.submit(hold), workers.submit(divmod, 1, 1)
    assert begun.wait(5)
    workers.close()
    go_on.set()
    assert held.result(timeout=5) == "finished"
    with pytest.raises(CancelledError):
        waiting.result(timeout=5)


def test_workers_closed_are_waited_for_as_long_as_is_said() -> None:
    workers = Workers(2, 1)
    parts = [workers.submit(time.sleep, 0.3) for _ in range(2)]
    while not all(part.running() for part in parts):
        time.sleep(0.01)
    workers.close(0.01)
    assert not all(part.done() for part in parts)
    workers.close(10)
    assert all(part.done() for part in parts)
    assert not [thread for thread in workers._threads if thread.is_alive()]


def test_each_thread_is_inside_of_surroundings_of_its_own() -> None:
    made: list[int] = []
    inside, meet = threading.local(), threading.Barrier(3, timeout=5)

    @contextmanager
    def enter(number: int) -> Iterator[None]:
        inside.number = number
        yield
        left.append(number)

    def surroundings() -> AbstractContextManager[None]:
        made.append(len(made))
        return enter(made[-1])

    def who() -> int:
        meet.wait()  # so that each thread takes one
        return inside.number

    left: list[int] = []
    workers = Workers(3, 1, surroundings)
    found = [workers.submit(who) for _ in range(3)]
    assert sorted(part.result(timeout=5) for part in found) == made == [0, 1, 2]
    workers.close(5)
    assert sorted(left) == made


def test_workers_that_are_stuck_do_not_keep_the_process() -> None:
    code = (
        "import sys, time; from chatspace.hf_embed.workers import Workers;"
        "Workers(1, 1).submit(time.sleep, 600); sys.exit(75)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 75


def test_process_that_exits_during_a_forward_pass_keeps_its_exit_code() -> None:
    code = (
        "import sys, time, torch; from chatspace.hf_embed.workers import Workers\n"
        "a, workers = torch.randn(1000, 1000), Workers(2, 1)\n"
        "def work():\n"
        "    end = time.monotonic() + 0.7\n"
        "    while time.monotonic() < end: torch.mm(a, a)\n"
        "parts = [workers.submit(work) for _ in range(2)]\n"
        "while not all(part.running() for part in parts): time.sleep(0.01)\n"
        "workers.close(30); sys.exit(75)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert done.returncode == 75
