"""Whatever signals a task gets, and whenever: it ends with 75, or 0, and without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatspace.errors import ExitCode
from chatspace.jobs.local import slices_of, task_command
from chatspace.jobs.setup import set_up
from chatspace.jobs.signals import SignalStop
from chatspace.plan.work import StopRequest
from tests.conftest import SpecMaker

USR1, USR2, TERM, INT = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT
SEVERAL = ((TERM, TERM), (USR1, TERM, TERM), (TERM, USR1, INT), (INT, INT, TERM), (USR2, TERM))

# A command that stands for `chatspace task`; `at` is printed where a signal may be sent.
PROLOGUE = """
import ctypes, signal, sys, time, weakref
from chatspace.errors import ModelError
from chatspace.jobs.signals import SignalStop, exit_when_signalled, run_to_the_end
from chatspace.plan.work import StopRequest

def at(place):
    print(place, flush=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        time.sleep(0.005)

class Thing: pass
thing = Thing()
weakref.finalize(thing, at, "exit")
exit_when_signalled()
stop = StopRequest()
handled = SignalStop(stop, grace_s=120.0, before_leaving=lambda reason: print("noted:", reason))
"""
EPILOGUE = "\nrun_to_the_end(command)\n"
NOTHING = "def command(): handled.install()"
NEVER_FINISHED = "def command(): handled.install(); at('loading'); time.sleep(60)"
SWALLOWED = """
def command():
    handled.install()
    try: at('loading')
    except Exception as error: raise RuntimeError('Failed to import') from error
"""
NOTED_SLOWLY = """
def command():
    handled._before_leaving = lambda reason: at('noting')
    handled.install()
    signal.raise_signal(signal.SIGTERM)
"""
NOT_NOTED = """
def command():
    handled._before_leaving = lambda reason: 1 / 0
    handled.install(); at('loading')
"""
WITHIN_C = """
def command():
    handled.install()
    ctypes.CFUNCTYPE(None)(lambda: at('loading'))()
"""
USER_ERROR = """
def command():
    handled.install()
    try: raise ModelError('no model')
    except ModelError: at('failing'); sys.exit(2)
"""


def ends(code: str, place: str, signals: Sequence[signal.Signals]) -> tuple[int, str]:
    """Runs a command, sends it signals at a place, and returns its exit code and output."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code + EPILOGUE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == place:
            break
    send(process, signals)
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


def send(process: subprocess.Popen[str], signals: Sequence[signal.Signals]) -> None:
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)


@pytest.mark.parametrize("signals", SEVERAL)
@pytest.mark.parametrize("code", [NEVER_FINISHED, SWALLOWED])
def test_signals_before_the_first_row_end_with_75(
    code: str, signals: tuple[signal.Signals, ...]
) -> None:
    returned, output = ends(code, "loading", signals)
    assert returned == ExitCode.INTERRUPTED
    assert "Traceback" not in output


@pytest.mark.parametrize("signals", SEVERAL)
def test_signals_at_exit_change_nothing(signals: tuple[signal.Signals, ...]) -> None:
    returned, output = ends(NOTHING, "exit", signals)
    assert returned == ExitCode.DONE
    assert "Traceback" not in output
    returned, output = ends(NEVER_FINISHED + "; assert 0", "loading", (TERM,))
    assert returned == ExitCode.INTERRUPTED


@pytest.mark.parametrize("signals", SEVERAL)
def test_signals_while_an_error_is_told_end_with_75(signals: tuple[signal.Signals, ...]) -> None:
    returned, output = ends(USER_ERROR, "failing", signals)
    assert returned == ExitCode.INTERRUPTED
    assert "Traceback" not in output


def test_errors_without_a_signal_keep_their_codes() -> None:
    assert ends(USER_ERROR, "exit", ())[0] == ExitCode.USER_INPUT
    returned, output = ends("def command(): handled.install(); 1 / 0", "exit", (TERM,))
    assert returned == ExitCode.BUG
    assert "ZeroDivisionError" in output


def test_signals_before_the_first_row_are_noted_once() -> None:
    _, output = ends(NEVER_FINISHED, "loading", (TERM, TERM, USR1))
    assert output.count("noted: Stopped by SIGTERM before the first row.") == 1


def test_signals_that_come_while_one_is_noted_do_nothing() -> None:
    returned, output = ends(NOTED_SLOWLY, "noting", (USR1, TERM, INT))
    assert returned == ExitCode.INTERRUPTED
    assert output.count("before the first row") == 1


def test_a_note_that_fails_keeps_the_exit_code() -> None:
    assert ends(NOT_NOTED, "loading", (TERM,))[0] == ExitCode.INTERRUPTED


def test_signals_within_a_callback_of_c_code_end_with_75() -> None:
    returned, output = ends(WITHIN_C, "loading", (TERM,))
    assert returned == ExitCode.INTERRUPTED
    assert "ignored" not in output  # as Python says of an exception that C code cannot take


def test_signal_stop_leaves_a_task_whose_rows_flow_alone() -> None:
    stop = StopRequest()
    handled = SignalStop(stop, grace_s=120.0, before_leaving=pytest.fail)
    handled.rows_flow = True
    for number in (TERM, USR1, USR2, INT):
        handled._handle(number, None)
    assert stop.remaining_s <= 0


@pytest.mark.slow
def test_task_signalled_at_any_moment_ends_with_75_or_0(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    plan = set_up(make_spec()).plan
    ((split, slice_),) = slices_of(plan)
    codes = []
    for step in range(12):
        log = tmp_path / f"log{step}"
        with log.open("w") as file:
            process = subprocess.Popen(
                task_command(plan, split, slice_), stdout=file, stderr=file, text=True
            )
            time.sleep(0.12 + 0.3 * step)  # Python itself is up by then
            send(process, SEVERAL[step % len(SEVERAL)])
            codes.append(process.wait(timeout=60))
        assert "Traceback" not in log.read_text(), (step, log.read_text())
        assert codes[-1] in (ExitCode.INTERRUPTED, ExitCode.DONE), (step, log.read_text())
    assert ExitCode.INTERRUPTED in codes
