"""Signals that tell a task to stop: the shard in hand is finished if time allows, else dropped.

    when the signal comes          what happens                                exit code
    imports, reading the plan      the process ends at once                    75
    before the first row           `InterruptedRun` is raised, once            75
    rows flow                      a time is set; the stages read it           75, or 0 if done
    the command has ended          nothing                                     what it was

Any number of signals may come, in any order: SLURM's own and the batch script's copy of it, or
submitit's. Not covered: the first hundredths of a second, when Python itself is starting.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from chatspace.errors import ExitCode, InterruptedRun

if TYPE_CHECKING:  # this module is imported before anything that takes time
    from chatspace.plan.work import StopRequest

# SLURM kills what is left KillWait seconds after SIGTERM; its default is 30.
TERM_GRACE_S = 20.0
INT_GRACE_S = 5.0
EXIT_MARGIN_S = 10.0

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class _Process:
    """What has happened to this process, whoever handles its signals."""

    signalled = False
    ending = False


class SignalStop:
    """Turns SIGUSR1 (walltime is near), SIGTERM (preempted, cancelled) and SIGINT into a stop.

    SIGUSR2 is what submitit has SLURM send before the walltime, to the task too; SIGTERM from
    submitit's own handler follows it.

    The handler only sets a time. Before the first row flows there is nothing to finish: the first
    signal then raises, and those after it let the task end in peace.

    Args:
        stop: the request to set.
        grace_s: seconds between SIGUSR1 and the walltime.
    """

    def __init__(self, stop: StopRequest, grace_s: float) -> None:
        self._stop = stop
        self._grace_s = {
            signal.SIGUSR1: max(0.0, grace_s - EXIT_MARGIN_S),
            signal.SIGUSR2: min(TERM_GRACE_S, grace_s),
            signal.SIGTERM: min(TERM_GRACE_S, grace_s),
            signal.SIGINT: min(INT_GRACE_S, grace_s),
        }
        self._raised = False
        self.rows_flow = False

    def install(self) -> None:
        """Handles the signals from now on; only from the main thread."""
        for number in self._grace_s:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _Process.signalled = True
        again = number == signal.SIGINT and self._stop.requested
        self._stop.request(0.0 if again else self._grace_s[signal.Signals(number)])
        _say(f"signal={signal.Signals(number).name} stopping")
        if not (self.rows_flow or self._raised or _Process.ending):
            self._raised = True
            raise InterruptedRun(f"Stopped by {signal.Signals(number).name} before the first row.")


def exit_when_signalled() -> None:
    """Lets a signal end the process at once, as interrupted, until a `SignalStop` is installed."""
    for number in _SIGNALS:
        signal.signal(number, _exit_at_once)


def run_to_the_end(command: Callable[[], None]) -> None:
    """Runs the command line of a task; from its end on, signals change nothing any more.

    A task that was told to stop ends as interrupted whatever the stop broke on its way: libraries
    turn an exception that comes out of the blue into errors of their own.
    """
    try:
        command()
    except BaseException as error:
        _Process.ending = True  # before any call, for the handler runs only between calls
        _ignore_signals()
        if not _Process.signalled or (isinstance(error, SystemExit) and not error.code):
            raise
        if not isinstance(error, SystemExit):  # which has said its line already
            reason = (str(error).splitlines() or [""])[0]
            _say(f"chatspace: stopped by a signal; {type(error).__name__}: {reason}")
        sys.exit(ExitCode.INTERRUPTED)
    _ignore_signals()


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    _say(f"signal={signal.Signals(number).name} stopped before the start")
    os._exit(ExitCode.INTERRUPTED)


def _ignore_signals() -> None:
    # Python gives handlers of its own back to the system while it shuts down, ignored signals not.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(line: str) -> None:
    try:  # a log call may be what the signal interrupted; a bare write is safe
        os.write(2, f"{line}\n".encode())
    except OSError:  # nobody reads it any more
        return
