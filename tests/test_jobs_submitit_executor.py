import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from chatspace.errors import InterruptedRun
from chatspace.jobs.local import SliceFailed
from chatspace.jobs.signals import SignalStop
from chatspace.jobs.submitit_executor import SliceCall, _parameters, _runtime
from chatspace.plan.work import StopRequest
from tests.plans import plan_of


def test_parameters_slurm_gets_what_the_job_script_says() -> None:
    plan = plan_of(slurm={"account": "physics", "gpu_type": "h200", "extra": {"wckey": "mine"}})
    plan.cluster["modules"], plan.cluster["setup"] = ["cuda/12 x"], ["conda activate a"]
    found = _parameters(plan, "slurm")
    assert found["slurm_account"] == "physics"
    assert found["slurm_gres"] == "gpu:h200:1"
    assert found["slurm_setup"] == ["module load 'cuda/12 x'", "conda activate a"]
    assert found["slurm_additional_parameters"] == {"requeue": True, "wckey": "mine"}
    assert _parameters(plan, "local") == {"name": plan.run_id, "timeout_min": 120}


@pytest.mark.parametrize(
    ("directive", "key", "amount"),
    [("gres", "slurm_gres", "gpu:h200:4"), ("gpus-per-task", "slurm_gpus_per_task", "h200:1")],
)
def test_parameters_several_gpus_are_a_process_for_each(
    directive: str, key: str, amount: str
) -> None:
    plan = plan_of(slurm={"gpu_type": "h200", "gpus_per_task": 4, "nodes": 2})
    plan.cluster["gpu_directive"] = directive
    found = _parameters(plan, "slurm")
    assert (found["nodes"], found["tasks_per_node"], found[key]) == (2, 4, amount)


@pytest.mark.parametrize(
    ("commands", "runtime"),
    [
        ((), "apptainer"),
        (("singularity",), "singularity"),
        (("singularity", "apptainer"), "apptainer"),
    ],
)
def test_runtime_auto_is_the_one_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: tuple[str, ...], runtime: str
) -> None:
    for name in commands:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _runtime(plan_of()) == runtime


def call_of(code: str) -> SliceCall:
    return SliceCall([sys.executable, "-c", code], {"ANSWER": "42"})


def test_slice_call_exit_codes_become_errors() -> None:
    call_of("import os; assert os.environ['ANSWER'] == '42'")()
    with pytest.raises(InterruptedRun):
        call_of("raise SystemExit(75)")()
    with pytest.raises(SliceFailed, match="exit code 3"):
        call_of("raise SystemExit(3)")()


def test_checkpoint_in_a_handler_stops_the_task_that_is_waited_for() -> None:
    """submitit calls it from a signal handler, in the middle of the wait for the task."""
    call = call_of("import time; time.sleep(60)")
    took: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        started = time.monotonic()
        again = call.checkpoint()
        took.append(time.monotonic() - started)
        assert again.function.command == call.command

    before = signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        call()  # the child was reaped by the handler, so that its exit code is not known here
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert took[0] < 10
    with pytest.raises(ProcessLookupError):
        assert call._child is not None
        os.kill(call._child.pid, 0)


def test_signal_stop_takes_submitit_s_signal_too() -> None:
    stop = StopRequest()
    handled = SignalStop(stop, grace_s=120.0, before_leaving=pytest.fail)
    handled.rows_flow = True
    kept = {number: signal.getsignal(number) for number in handled._grace_s}
    try:
        handled.install()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.requested
        assert 0 < stop.remaining_s <= 20
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.remaining_s <= 0
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
