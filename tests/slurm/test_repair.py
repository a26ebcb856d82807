"""Resubmit, cancel and tasks of several processes, on a real SLURM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from chatspace.api import open_run
from chatspace.jobs.events import read_events
from chatspace.jobs.gather import verify_run
from tests.slurm.cluster import sbatch, wait_for_jobs
from tests.slurm.conftest import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(420)]
JOBS_TIMEOUT_S = 300
MakeProject = Callable[..., Project]


def the_run(project: Project) -> Any:
    (plan,) = (project.folder / "ws" / "runs").glob("*/plan.json")
    return open_run(plan)


def job_ids(said: str) -> list[str]:
    return [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]


def attempts(run: Any) -> list[dict[str, Any]]:
    return [a for a in run.manifest()["tasks"] if a["state"] == "finished"]


def test_resubmit_regroups_what_is_missing_and_leaves_alone_what_is_active(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=400)
    user.write_spec(slices={"count": 5}, slurm={"array_parallelism": 1})
    array, gather = job_ids(user.chatspace("submit", "spec.yaml", "--no-doctor"))
    run = the_run(user)
    subprocess.run(["scancel", f"{array}_[2-4]", gather], env=slurm, check=True, timeout=30)
    said = user.chatspace("resubmit", str(run.folder), "--max-tasks", "2")
    assert "missing shards are with tasks that are queued or running" in said
    repair, second_gather = job_ids(said)
    assert ": split train, 2 tasks, repair 1" in said
    states = wait_for_jobs([array, repair, second_gather], JOBS_TIMEOUT_S, slurm)
    wanted = {f"{array}_0", f"{array}_1", f"{repair}_0", f"{repair}_1", second_gather}
    assert {job for job, state in states.items() if state == "COMPLETED"} == wanted, user.logs()
    assert verify_run(run.plan) == {"train": 10}
    by_job = {a["slurm"]["array_job_id"] for a in attempts(run)}
    assert by_job == {array, repair}
    written = [shard["attempt"].split("_")[0] for shard in run.manifest()["shards"]]
    assert written == [array] * 4 + [repair] * 6
    assert not list((run.folder / "claims").rglob("shard-*"))
    nothing = user.chatspace("resubmit", str(run.folder))
    assert "every shard is there" in nothing


def test_resubmit_beside_running_tasks_shares_the_work_and_does_no_shard_twice(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=6000)
    user.write_spec(slices={"count": 1}, output={"rows_per_shard": 100})
    array, _ = job_ids(user.chatspace("submit", "spec.yaml", "--no-doctor"))
    run = the_run(user)
    said = user.chatspace("resubmit", str(run.folder), "--share", "--max-tasks", "3", "--no-doctor")
    repair, gather = job_ids(said)
    states = wait_for_jobs([array, repair, gather], JOBS_TIMEOUT_S, slurm)
    assert set(states.values()) == {"COMPLETED"}, (states, user.logs())
    assert verify_run(run.plan) == {"train": 60}
    done = [
        json.loads(line)["shard_index"]
        for log in (run.folder / "events").glob("*.jsonl")
        for line in log.read_text().splitlines()
        if json.loads(line)["event"] == "shard"
    ]
    assert sorted(done) == list(range(60))
    authors = {shard["attempt"].split("_")[0] for shard in run.manifest()["shards"]}
    assert authors == {array, repair}


def test_cancel_ends_every_job_of_the_run_and_resubmit_does_the_rest(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=200)
    user.write_spec(slices={"count": 4}, slurm={"array_parallelism": 1})
    jobs = job_ids(user.chatspace("submit", "spec.yaml", "--no-doctor"))
    run = the_run(user)
    said = user.chatspace("cancel", str(run.folder))
    assert all(job in said for job in jobs)
    wait_for_jobs(jobs, JOBS_TIMEOUT_S, slurm)
    assert "nothing is queued" in user.chatspace("cancel", str(run.folder))
    again = job_ids(user.chatspace("resubmit", str(run.folder), "--time", "5"))
    states = wait_for_jobs(again, JOBS_TIMEOUT_S, slurm)
    assert set(states.values()) == {"COMPLETED"}, user.logs()
    assert run.manifest()["rows_embedded"] == 200
    assert "#SBATCH --time=5\n" in (run.folder / "repairs/001/embed.slurm").read_text()


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (2, 2)])
def test_task_with_several_gpus_binds_each_process_to_its_own(
    project: MakeProject, slurm: dict[str, str], nodes: int, gpus: int
) -> None:
    user = project(rows=960)
    gpu_type = {"gpu_type": "h200", "profile": "generic", "partition": "gpu"}
    user.write_spec(
        slices={"count": 1},
        slurm={**gpu_type, "gpus_per_task": gpus, "nodes": nodes},
        model={"device": "cpu"},
    )
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    assert set(wait_for_jobs([job], JOBS_TIMEOUT_S, slurm).values()) == {"COMPLETED"}, user.logs()
    run = the_run(user)
    assert verify_run(run.plan) == {"train": 24}
    # The first event of each process, also of one that came when everything was done.
    first = [read_events(log)[0][0] for log in (run.folder / "events").glob("*.jsonl")]
    bound = [(event["slurm"]["node"], event["cuda_visible_devices"]) for event in first]
    assert len(bound) == len(set(bound)) == nodes * gpus
    assert {gpu for _, gpu in bound} == {str(i) for i in range(gpus)}
    assert len({node for node, _ in bound}) == nodes


def test_task_with_several_processes_that_is_signalled_is_requeued_and_finishes(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=8000)
    user.write_spec(
        slices={"count": 1},
        output={"rows_per_shard": 100},
        slurm={"profile": "generic", "partition": "gpu", "gpu_type": "h200", "gpus_per_task": 2},
        model={"device": "cpu"},
    )
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    run = the_run(user)
    wait_until(lambda: run.status().splits[0].shards_done >= 2, user)
    signal = ["scancel", "--batch", "--signal=USR1", f"{job}_0"]
    subprocess.run(signal, env=slurm, check=True, timeout=30)
    states = wait_for_jobs([job], JOBS_TIMEOUT_S, slurm)
    assert set(states.values()) == {"COMPLETED"}, (states, user.logs())
    assert verify_run(run.plan) == {"train": 80}
    restarts = {a["slurm"].get("restart_count", "0") for a in run.manifest()["tasks"]}
    assert restarts == {"0", "1"}, user.logs()


def wait_until(condition: Callable[[], bool], user: Project, timeout_s: float = 120) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, user.logs()
        time.sleep(0.3)
