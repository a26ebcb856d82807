"""Signals that tell a task to stop: the shard in hand is finished if time allows, else dropped.

    when the signal comes          what happens                                exit code
    imports, reading the plan      the process ends at once                    75
    before the first row           it is noted, then the process ends          75
    rows flow                      a time is set; the stages read it           75, or 0 if done
    the command has ended          nothing                                     what it was

Any number of signals may come, in any order: SLURM's own and the batch script's copy of it, or
submitit's. Nothing is raised out of a handler: it may run inside a C++ library that is just being
loaded, which would abort. Not covered: the first hundredths of a second, when Python is starting.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from chatspace.errors import ExitCode

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

    While rows flow the handler only sets a time. Before that there is nothing to finish: the first
    signal ends the process, and those that come meanwhile do nothing.

    Args:
        stop: the request to set.
        grace_s: seconds between SIGUSR1 and the walltime.
        before_leaving: takes down why the process ends, in one line, before it does so without
            unwinding. Any call of the main thread may be halfway done: it must take no lock that
            the main thread may hold.
    """

    def __init__(
        self, stop: StopRequest, grace_s: float, before_leaving: Callable[[str], None]
    ) -> None:
        self._stop = stop
        self._before_leaving = before_leaving
        self._grace_s = {
            signal.SIGUSR1: max(0.0, grace_s - EXIT_MARGIN_S),
            signal.SIGUSR2: min(TERM_GRACE_S, grace_s),
            signal.SIGTERM: min(TERM_GRACE_S, grace_s),
            signal.SIGINT: min(INT_GRACE_S, grace_s),
        }
        self._leaving = False
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
        if not (self.rows_flow or self._leaving or _Process.ending):
            self._leaving = True
            self._leave(f"Stopped by {signal.Signals(number).name} before the first row.")

    def _leave(self, reason: str) -> NoReturn:
        with suppress(Exception):  # a note is worth no other exit code
            self._before_leaving(reason)
        _say(f"chatspace: {reason}")
        os._exit(ExitCode.INTERRUPTED)


def exit_when_signalled() -> None:
    """Lets a signal end the process at once, as interrupted, until a `SignalStop` is installed."""
    for number in _SIGNALS:
        signal.signal(number, _exit_at_once)


def run_to_the_end(command: Callable[[], None]) -> None:
    """Runs the command line of a task; from its end on, signals change nothing any more.

    A task that was told to stop ends as interrupted whatever the stop broke on its way.
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
