from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace.errors import ExitCode
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from tests.plans import plan_of
from tests.runs import layout_of, log_events, publish, put_shards, started

Command = Callable[..., subprocess.CompletedProcess[str]]
ENV = {**os.environ, "PATH": "/nonexistent", "COLUMNS": "80"}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A run of 3 slices without anything done, in a workspace that is the current folder."""
    plan = plan_of(tmp_path, slurm={"log_dir": str(tmp_path / "logs")})
    save_plan(plan, layout_of(plan).plan)
    return plan


@pytest.fixture
def chatspace(tmp_path: Path) -> Command:
    """Runs a command in the workspace, without SLURM on the PATH."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "chatspace", *words, "--workspace", "."]
        return subprocess.run(
            command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60
        )

    return run


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chatspace", *words, "--workspace", "."]
    return subprocess.Popen(
        command, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def complete(plan: Plan) -> None:
    (split,) = plan.splits
    put_shards(plan, split, range(split.n_shards))
    publish(plan, split)


def fail_task(plan: Plan, index: int, text: str) -> None:
    log = Path(plan.cluster["log_dir"]) / f"{plan.run_id}-12_{index}.out"
    log.parent.mkdir(exist_ok=True)
    log.write_text(text)
    failed = {"event": "failed", "error": "ValueError: x", "cause": "bug"}
    log_events(plan, "train", index, started(f"12_{index}.r0"), failed)


def test_status_without_a_run_is_a_line_for_each(plan: Plan, chatspace: Command) -> None:
    done = chatspace("status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == [plan.run_id, "incomplete", "0/1,000"]
    content = json.loads(chatspace("status", "--json").stdout)
    assert [run["run_id"] for run in content["runs"]] == [plan.run_id]


def test_status_of_an_empty_or_absent_workspace_says_so(tmp_path: Path, chatspace: Command) -> None:
    assert chatspace("status").stdout.startswith("no runs in ")
    command = [sys.executable, "-m", "chatspace", "status", "--workspace", str(tmp_path / "nope")]
    absent = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60)
    assert absent.returncode == ExitCode.USER_INPUT
    assert "nope does not exist" in absent.stderr


def test_status_json_is_one_document_with_stable_keys(plan: Plan, chatspace: Command) -> None:
    content = json.loads(chatspace("status", plan.run_id, "--json").stdout)
    assert list(content) == [
        "run_id", "kind", "model", "folder", "created_at", "state", "is_active", "rows",
        "rows_done", "splits", "tasks", "jobs", "failures", "failure_groups", "stages",
        "rows_per_s", "tokens_per_s", "eta_s", "n_requeues", "gpus_in_use", "gather", "slurm",
    ]  # fmt: skip
    refused = chatspace("status", plan.run_id, "--json", "--watch")
    assert refused.returncode == ExitCode.USER_INPUT
    assert len(refused.stderr.splitlines()) == 1


def test_status_watch_of_a_complete_run_ends_at_once(plan: Plan, chatspace: Command) -> None:
    complete(plan)
    done = chatspace("status", plan.run_id, "--watch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{plan.run_id}: complete") == 1


def test_status_watch_ends_when_nothing_is_active(plan: Plan, chatspace: Command) -> None:
    log_events(plan, "train", 0, started("host-1"), {"event": "failed", "error": "x"})
    done = chatspace("status", plan.run_id, "--watch", "--every", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{plan.run_id}: incomplete, with failed slices") == 2


def test_status_watch_goes_on_while_a_task_runs_until_ctrl_c(plan: Plan, tmp_path: Path) -> None:
    log_events(plan, "train", 0, started("elsewhere-1"))  # fresh, and on another host
    process = start(tmp_path, "status", plan.run_id, "--watch", "--every", "1")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"{plan.run_id}: running"
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_status_watch_sees_the_run_become_complete(plan: Plan, tmp_path: Path) -> None:
    log_events(plan, "train", 0, started("elsewhere-1"))
    process = start(tmp_path, "status", plan.run_id, "--watch", "--every", "1")
    assert process.stdout is not None
    process.stdout.readline()
    complete(plan)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert f"{plan.run_id}: complete" in output


def test_logs_without_a_task_lists_all_with_their_last_line(plan: Plan, chatspace: Command) -> None:
    fail_task(plan, 1, "first\nlast words\n")
    assert chatspace("logs", plan.run_id).stdout.splitlines() == [
        "train 0  planned      no log",
        f"train 1  failed       logs/{plan.run_id}-12_1.out",
        "    last words",
        "train 2  planned      no log",
    ]


def test_logs_of_a_task_is_the_log_under_a_heading(plan: Plan, chatspace: Command) -> None:
    fail_task(plan, 1, "".join(f"line {i}\n" for i in range(100)))
    heading = f"==> train 1: failed: logs/{plan.run_id}-12_1.out <=="
    for name in ("1", "train/1", "12_1"):
        lines = chatspace("logs", plan.run_id, name).stdout.splitlines()
        assert lines == [heading, *(f"line {i}" for i in range(100))]
    ends = chatspace("logs", plan.run_id, "1", "--lines", "2").stdout
    assert ends.splitlines() == [heading, "line 98", "line 99"]
    assert "no log" in chatspace("logs", plan.run_id, "0").stdout


def test_logs_failed_shows_the_ends_of_those_alone(plan: Plan, chatspace: Command) -> None:
    assert chatspace("logs", plan.run_id, "--failed").stdout == "no failed tasks\n"
    fail_task(plan, 2, "".join(f"line {i}\n" for i in range(100)))
    lines = chatspace("logs", plan.run_id, "--failed").stdout.splitlines()
    assert lines[0].startswith("==> train 2: failed: ")
    assert lines[1:] == [f"line {i}" for i in range(60, 100)]


def test_logs_follow_wants_one_task_that_has_a_log(plan: Plan, chatspace: Command) -> None:
    several = chatspace("logs", plan.run_id, "--follow")
    assert several.returncode == ExitCode.USER_INPUT
    assert "--follow shows one" in several.stderr
    none = chatspace("logs", plan.run_id, "0", "--follow")
    assert none.returncode == ExitCode.USER_INPUT
    assert "No log yet: train 0 is planned" in none.stderr


def test_logs_follow_ends_with_the_task(plan: Plan, tmp_path: Path) -> None:
    log = tmp_path / "logs" / f"{plan.run_id}-12_0.out"
    log.parent.mkdir()
    log.write_text("one\n")
    log_events(plan, "train", 0, started("elsewhere-1", log=str(log)))
    process = start(tmp_path, "logs", plan.run_id, "0", "--follow")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("==> train 0: running: ")
    assert process.stdout.readline() == "one\n"
    with log.open("a") as file:
        file.write("two\n")
    assert process.stdout.readline() == "two\n"
    log_events(plan, "train", 0, started("elsewhere-1", log=str(log)), {"event": "finished"})
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
