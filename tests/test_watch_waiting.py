"""Waiting for a run and showing how far it is: bounded, whatever SLURM does."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import chatspace
from chatspace.errors import IncompleteError
from chatspace.jobs.submissions import record_submission
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.watch.live_status import TerminalStatus, is_notebook
from chatspace.watch.status import RunStatus
from chatspace.watch.waiting import GLANCE_S, wait_until_complete
from tests.plans import plan_of
from tests.test_watch_status_html import status_of


class FakeScheduler:
    def __init__(self, states: dict[str, str]) -> None:
        self._states = states

    def check(self, script: str) -> None:
        raise AssertionError("waiting submits nothing")

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        raise AssertionError("waiting submits nothing")

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        return self._states

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise AssertionError("waiting cancels nothing")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One slice that was submitted as job 7."""
    plan = plan_of(tmp_path)
    save_plan(plan, Layout(tmp_path).run(plan.run_id).plan)
    split = plan.splits[0]
    count = len(split.slices)
    record_submission(plan, job_id="7", executor="sbatch", split="train", offset=0, count=count)
    return plan


def slurm_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str) -> None:
    """Puts a squeue with this script, and a sacct that fails, in the place of what is here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {"squeue": squeue, "sacct": "exit 1"}.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_wait_while_jobs_are_queued_ends_at_its_limit(plan: Plan) -> None:
    seen: list[RunStatus] = []
    queued = FakeScheduler({"7_0": "PENDING", "7_1": "PENDING", "7_2": "PENDING"})
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="is pending after"):
        wait_until_complete(plan, timeout_min=0.02, scheduler=queued, show=seen.append)
    assert 1.0 < time.monotonic() - started < 10
    assert [status.state for status in seen] == ["pending"] * len(seen)
    assert seen


def test_wait_when_nothing_is_left_in_the_queue_says_so(plan: Plan) -> None:
    ended = FakeScheduler({"7_0": "FAILED", "7_1": "COMPLETED", "7_2": "CANCELLED"})
    with pytest.raises(IncompleteError, match=r"Nothing is running any more.*1 FAILED.*resubmit"):
        wait_until_complete(plan, timeout_min=1, scheduler=ended)


def test_wait_does_not_take_silence_of_slurm_for_the_end(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_that(tmp_path, monkeypatch, "echo 'squeue: error: connection refused' >&2; exit 1")
    with pytest.raises(TimeoutError):
        wait_until_complete(plan, timeout_min=0.05)


def test_wait_is_bounded_although_squeue_hangs(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_that(tmp_path, monkeypatch, "exec sleep 60")
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        wait_until_complete(plan, timeout_min=0.05)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("squeue", ["exec sleep 60", "exit 1"])
def test_html_of_a_run_shows_what_the_disk_says_when_slurm_does_not_answer(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str
) -> None:
    slurm_that(tmp_path, monkeypatch, squeue)
    started = time.monotonic()
    html = chatspace.Run(plan)._repr_html_()
    listed = chatspace.runs(plan.workspace)
    assert time.monotonic() - started < 2 * GLANCE_S + 5
    assert "SLURM does not answer" in html
    assert "0 of 1,000 rows" in html
    assert plan.run_id in repr(listed)


def test_terminal_status_without_a_terminal_prints_a_line_when_the_state_changes() -> None:
    out = io.StringIO()
    with TerminalStatus(Console(file=out, width=40)) as live:
        live.show(status_of(state="pending", rows_done=0))
        live.show(status_of(state="running", rows_done=1))
        live.show(status_of(state="running", rows_done=2))
        live.show(status_of(state="complete", rows_done=100))
    states = [line.split(" · ")[0] for line in out.getvalue().splitlines()]
    assert states == [f"docs-01234567: {state}" for state in ("pending", "running", "complete")]


def test_terminal_status_on_a_terminal_is_one_line_that_fits() -> None:
    out = io.StringIO()
    console = Console(
        file=out, width=40, force_terminal=True, color_system=None, legacy_windows=False
    )
    with TerminalStatus(console) as live:
        live.show(status_of(rows_done=1))
        live.show(replace(status_of(rows_done=2), state="complete"))
    shown = out.getvalue()
    assert shown.count("\n") == 1
    assert shown.index("docs-01234567: running") < shown.index("docs-01234567: complete")


def test_tests_run_in_no_notebook() -> None:
    assert not is_notebook()
