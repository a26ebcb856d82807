"""Signals that tell a task to stop: the shard in hand is finished if time allows, else dropped."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType

from chatspace.errors import InterruptedRun
from chatspace.plan.work import StopRequest

log = logging.getLogger(__name__)

# SLURM kills what is left KillWait seconds after SIGTERM; its default is 30.
TERM_GRACE_S = 20.0
INT_GRACE_S = 5.0
EXIT_MARGIN_S = 10.0


class SignalStop:
    """Turns SIGUSR1 (walltime is near), SIGTERM (preempted, cancelled) and SIGINT into a stop.

    SIGUSR2 is what submitit has SLURM send before the walltime, to the task too; SIGTERM from
    submitit's own handler follows it.

    The handler only sets a time, so that SLURM's signal and the batch script's copy of it may both
    arrive, in any order and at any moment. Before the first row flows there is nothing to finish,
    and the task ends at once.

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
        self.rows_flow = False

    def install(self) -> None:
        """Handles the signals from now on; only from the main thread."""
        for number in self._grace_s:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self._stop.requested
        self._stop.request(0.0 if again else self._grace_s[signal.Signals(number)])
        # A log call may be what the signal interrupted; a bare write is safe.
        os.write(2, f"signal={signal.Signals(number).name} stopping\n".encode())
        if not self.rows_flow:
            raise InterruptedRun(f"Stopped by {signal.Signals(number).name} before the first row.")
