from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

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


def test_workers_that_are_stuck_do_not_keep_the_process() -> None:
    code = (
        "import sys, time; from chatspace.hf_embed.workers import Workers;"
        "Workers(1, 1).submit(time.sleep, 600); sys.exit(75)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 75
