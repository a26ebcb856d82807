"""What `chatspace status` and `chatspace logs` say of runs on a real SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatspace.api import open_run
from chatspace.run import Run
from tests.slurm.cluster import sbatch, wait_for_jobs
from tests.slurm.conftest import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(420)]
JOBS_TIMEOUT_S = 300
PATIENCE_S = 150

MakeProject = Callable[..., Project]


def the_run(user: Project) -> Run:
    (plan,) = (user.folder / "ws" / "runs").glob("*/plan.json")
    return open_run(plan)


def submit(user: Project) -> tuple[str, str]:
    """Submits the spec and returns the ids of the array and of the gather job."""
    said = user.chatspace("submit", "spec.yaml", "--no-doctor")
    array, gather = (line.split()[1].rstrip(":") for line in said.splitlines() if "job " in line)
    return array, gather


def status_of(user: Project, **env: str) -> dict[str, Any]:
    user = Project(user.folder, {**user.env, **env}, user.model)
    status: dict[str, Any] = json.loads(
        user.chatspace("status", str(the_run(user).folder), "--json")
    )
    return status


def wait_for(user: Project, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while not condition(status := status_of(user)):
        assert time.monotonic() < deadline, (status, user.logs())
        time.sleep(0.5)
    return status


def without_accounting(folder: Path, env: dict[str, str]) -> str:
    """Returns a PATH on which sacct fails, as where accounting is off."""
    folder.mkdir()
    (folder / "sacct").write_text("#!/bin/sh\necho accounting storage is disabled >&2\nexit 1\n")
    (folder / "sacct").chmod(0o755)
    return f"{folder}:{env['PATH']}"


def test_status_tells_a_cancelled_pending_element_with_and_without_accounting(
    project: MakeProject, slurm: dict[str, str], tmp_path: Path
) -> None:
    user = project(rows=400)
    user.write_spec(slices={"count": 5}, slurm={"array_parallelism": 1})
    array, gather = submit(user)
    subprocess.run(["scancel", f"{array}_4"], env=slurm, check=True, timeout=30)
    blind = {"PATH": without_accounting(tmp_path / "bin", user.env)}
    for env in ({}, blind):
        status = status_of(user, **env)
        assert status["tasks"]["cancelled"] == 1, status
        assert sum(status["tasks"].values()) == 5
        assert (status["gather"], status["is_active"]) == ("waiting", True)
        (group,) = status["failure_groups"]
        assert (group["cause"], group["task"]) == ("cancelled", "train 4")
    wait_for_jobs([array, gather], JOBS_TIMEOUT_S, slurm)
    for env in ({}, blind):
        status = status_of(user, **env)
        assert status["tasks"] == {"finished": 4, "cancelled": 1}
        assert (status["state"], status["gather"]) == ("incomplete", "failed")
        assert not status["is_active"]
    said = user.chatspace("status", "--workspace", str(user.folder / "ws"), "--watch")
    assert said.count(status["run_id"]) == 2  # two looks: nothing is active any more
    listed = user.chatspace("logs", str(the_run(user).folder))
    assert f"{array}_0.out" in listed
    assert "train 4  cancelled    no log" in listed


def test_status_of_a_killed_worker_names_cause_and_log_until_a_repair_clears_it(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=6000)
    user.write_spec(slices={"count": 2}, output={"rows_per_shard": 50})
    array, gather = submit(user)
    run = the_run(user)
    wait_for(user, lambda status: status["rows_done"] > 0 and status["tasks"]["running"] == 2)
    events = run.folder / "events" / "train-00001.jsonl"
    started = json.loads(events.read_text().splitlines()[0])
    os.kill(started["pid"], signal.SIGKILL)
    states = wait_for_jobs([array, gather], JOBS_TIMEOUT_S, slurm)
    assert states[f"{array}_1"] == "FAILED", (states, user.logs())
    status = status_of(user)
    assert status["tasks"] == {"finished": 1, "failed": 1}
    (group,) = status["failure_groups"]
    log = user.folder / "logs" / f"{run.run_id}-{array}_1.out"
    assert (group["cause"], group["task"], group["log"]) == ("killed", "train 1", str(log))
    shown = user.chatspace("logs", str(run.folder), "--failed")
    assert shown.splitlines()[0] == f"==> train 1: failed: {log.relative_to(user.folder)} <=="
    assert f"{array}_0" not in shown
    repair = sbatch(run.folder / "embed.slurm", user.folder, "--array=1", env=slurm)
    wait_for_jobs([repair], JOBS_TIMEOUT_S, slurm)
    status = status_of(user)
    assert (status["state"], status["failure_groups"]) == ("complete", []), user.logs()


def test_status_array_submitted_by_hand_is_pending_before_any_task_began(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=80)
    user.write_spec(slices={"count": 2})
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, "--hold", env=slurm)
    status = status_of(user)
    assert (status["state"], status["tasks"]) == ("pending", {"pending": 2})
    subprocess.run(["scontrol", "release", job], env=slurm, check=True, timeout=30)
    followed = wait_for(user, lambda status: status["rows_done"] == 80)
    assert followed["tasks"] == {"finished": 2}


def test_status_requeued_task_is_counted_and_logs_follow_it_to_its_end(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=3000)
    user.write_spec(slices={"count": 1}, output={"rows_per_shard": 50})
    array, gather = submit(user)
    wait_for(user, lambda status: status["rows_done"] > 0)
    subprocess.run(["scontrol", "requeue", f"{array}_0"], env=slurm, check=True, timeout=30)
    seen = wait_for(user, lambda status: status["n_requeues"] == 1)
    assert seen["tasks"] in ({"requeued": 1}, {"running": 1}, {"finished": 1})
    wait_for(user, lambda status: "requeued" not in status["tasks"])
    followed = user.chatspace("logs", str(the_run(user).folder), f"{array}_0", "--follow")
    assert "attempt=" in followed
    states = wait_for_jobs([array, gather], JOBS_TIMEOUT_S, slurm)
    assert states == {f"{array}_0": "COMPLETED", gather: "COMPLETED"}, user.logs()
    assert status_of(user)["n_requeues"] == 1
