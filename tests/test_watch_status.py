from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from chatspace.jobs.causes import CAUSES
from chatspace.jobs.repair import Repair, write_repair
from chatspace.jobs.scheduler import Snapshot
from chatspace.jobs.submissions import Submission, _record, record_submission
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.watch.status import RunStatus, run_status, see, status_of
from chatspace.watch.status_view import render_overview, render_status
from tests.plans import plan_of, split_plan
from tests.runs import (
    FakeScheduler,
    layout_of,
    log_events,
    progress,
    publish,
    put_shards,
    started,
)
from tests.shards import STRANGER, commit, store_at


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """10 shards of 100 rows in 3 slices of train, 3 shards in 1 slice of test."""
    splits = (split_plan("train"), split_plan("test", rows=250, count=1))
    plan = plan_of(tmp_path, splits, slurm={"gpus_per_task": 2})
    save_plan(plan, layout_of(plan).plan)
    return plan


def submit(
    plan: Plan, job_id: str = "12", split: str = "train", count: int = 3, executor: str = "sbatch"
) -> None:
    record_submission(plan, job_id=job_id, executor=executor, split=split, offset=0, count=count)


def look(plan: Plan, **states: str) -> RunStatus:
    """Returns the status where SLURM answers with states of elements, written `j12_0`."""
    return run_status(
        plan, scheduler=FakeScheduler({e.removeprefix("j"): s for e, s in states.items()})
    )


def only_group(status: RunStatus) -> tuple[str, int, str, str]:
    (group,) = status.failure_groups
    return group.cause, group.count, group.task, group.error


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine that looks like a task."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "chatspace"]
    process = subprocess.Popen(command)
    yield process
    process.kill()
    process.wait()


def test_run_status_before_the_first_task(plan: Plan) -> None:
    status = run_status(plan)
    assert status.state == "incomplete"
    assert (status.jobs, status.tasks, status.failures) == ({}, {"planned": 4}, {})
    assert [(s.shards_done, s.rows_done, s.slices_done, s.manifest) for s in status.splits] == [
        (0, 0, 0, None),
        (0, 0, 0, None),
    ]
    assert [(s.shards, s.rows, s.slices) for s in status.splits] == [(10, 1000, 3), (3, 250, 1)]


def test_run_status_counts_rows_of_the_shards_on_disk(plan: Plan) -> None:
    train, test = plan.splits
    put_shards(plan, train, range(train.slices[0].shard_stop))
    put_shards(plan, train, [9, 10, 77])  # the last two are not of the plan
    put_shards(plan, test, [2])
    first, second = run_status(plan).splits
    done = train.slices[0].shard_stop + 1
    assert (first.shards_done, first.rows_done, first.slices_done) == (done, done * 100, 1)
    assert (second.shards_done, second.rows_done, second.slices_done) == (1, 50, 0)


def test_run_status_states_from_shards_to_manifest(plan: Plan) -> None:
    for split in plan.splits:
        put_shards(plan, split, range(split.n_shards))
    assert run_status(plan).state == "all shards written, not gathered"
    publish(plan, plan.splits[0])
    publish(plan, plan.splits[1], plan_sha256="f" * 64)
    assert run_status(plan).state == "all shards written, not gathered"
    publish(plan, plan.splits[1])
    status = run_status(plan)
    assert status.state == "complete"
    assert status.splits[0].manifest == str(Path(plan.workspace) / plan.splits[0].manifest)


def test_run_status_of_a_run_whose_folder_another_run_has_taken_is_not_done(plan: Plan) -> None:
    for split in plan.splits:
        put_shards(plan, split, range(split.n_shards))
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    (folder / "shard-00000.parquet").unlink()
    commit(store_at(folder, STRANGER), 0)
    status = run_status(plan)
    assert status.state == f"its folder holds shards of run {STRANGER.run_id} split train"
    assert [split.shards_done for split in status.splits] == [0, 3]
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(render_overview([status]))
    assert "displaced" in screen.export_text()


def test_run_status_tasks_are_those_of_the_plan_whatever_slurm_has_forgotten(plan: Plan) -> None:
    submit(plan)
    log_events(plan, "train", 0, started("12_0.r0"))
    status = look(plan, j12_0="RUNNING")
    assert status.tasks == {"running": 1, "cancelled": 2, "planned": 1}
    assert only_group(status) == ("cancelled", 2, "train 1", "left the queue before it ran")
    assert status.failures == {}
    assert (status.state, status.is_active, status.gpus_in_use) == ("running", True, 2)


@pytest.mark.parametrize(
    ("slurm_state", "state", "cause"),
    [
        ("RUNNING", "running", None),
        ("PENDING", "requeued", None),
        ("OUT_OF_MEMORY", "failed", "host_memory"),
        ("NODE_FAIL", "failed", "node"),
        ("TIMEOUT", "failed", "walltime"),
        ("CANCELLED", "cancelled", "cancelled"),
        ("COMPLETED", "gone", "killed"),
        ("", "gone", "killed"),
    ],
)
def test_run_status_log_without_an_end_is_what_slurm_says(
    plan: Plan, slurm_state: str, state: str, cause: str | None
) -> None:
    submit(plan)
    log_events(plan, "train", 1, started("12_1.r2"), progress("12_1.r2", 3.0, 10))
    known = {"j12_0": "PENDING", "j12_2": "PENDING"}
    known |= {"j12_1": slurm_state} if slurm_state else {}
    status = look(plan, **known)
    assert status.tasks[state] == 1
    groups = {group.task: group.cause for group in status.failure_groups}
    assert groups.get("train 1") == cause
    assert status.n_requeues == 2 + (state == "requeued")


def test_run_status_killed_by_signal_9_is_told_by_accounting(plan: Plan) -> None:
    submit(plan)
    log_events(plan, "train", 0, started("12_0.r0"))
    slurm = Snapshot(states={"12_0": "FAILED"}, exit_codes={"12_0": "0:9"})
    status = status_of(see(plan), slurm)
    assert status.failures == {"train 0": "SLURM says FAILED, killed by signal 9"}
    assert status.failure_groups[-1].cause == "killed"
    assert status.failure_groups[-1].next_step == CAUSES["killed"]


def test_run_status_without_slurm_a_fresh_log_runs_and_an_old_one_is_gone(plan: Plan) -> None:
    submit(plan)
    log_events(plan, "train", 0, started("12_0.r0"), age_s=60)
    log_events(plan, "train", 1, started("12_1.r0"), age_s=3600)
    status = status_of(see(plan), Snapshot(answered=False))
    assert status.tasks == {"running": 1, "pending": 1, "gone": 1, "planned": 1}
    assert status.slurm == "silent"
    assert "does not answer" in status.failures["train 1"]


def test_run_status_local_task_runs_while_its_process_does(
    plan: Plan, worker: subprocess.Popen[bytes]
) -> None:
    log_events(plan, "train", 0, started(f"{platform.node()}-{worker.pid}"), age_s=7200)
    assert run_status(plan).tasks == {"running": 1, "pending": 3}
    worker.kill()
    worker.wait()
    status = run_status(plan)
    assert status.tasks == {"gone": 1, "planned": 3}
    assert only_group(status)[:3] == ("killed", 1, "train 0")


def test_run_status_failed_event_is_a_better_story_than_the_end_below_it(plan: Plan) -> None:
    submit(plan)
    failed = {"event": "failed", "attempt": "12_0.r0", "error": "ValueError: x", "cause": "bug"}
    ended = {"event": "ended", "attempt": "12_0.r0", "exit_code": 1}
    killed = {"event": "ended", "attempt": "12_1.r0", "exit_code": 139}
    never = {"event": "ended", "attempt": "12_2.r0", "exit_code": 4}
    log_events(plan, "train", 0, started("12_0.r0"), failed, ended)
    log_events(plan, "train", 1, started("12_1.r0"), killed)
    log_events(plan, "train", 2, never)
    status = look(plan, **{f"j12_{i}": "FAILED" for i in range(3)})
    assert {group.cause: group.error for group in status.failure_groups} == {
        "bug": "ValueError: x",
        "crash": "the task's process ended with exit code 139",
        "environment": "the task's process ended with exit code 4",
    }
    assert [group.cause for group in status.failure_groups] == [
        cause for cause in CAUSES if cause in ("bug", "crash", "environment")
    ]


def test_run_status_end_that_slurm_explains_is_explained(plan: Plan) -> None:
    submit(plan)
    log_events(plan, "train", 0, started("12_0.r0"), {"event": "ended", "exit_code": 137})
    log_events(plan, "train", 1, started("12_1.r0"), {"event": "ended", "exit_code": 143})
    status = look(plan, j12_0="OUT_OF_MEMORY", j12_1="CANCELLED", j12_2="PENDING")
    assert status.tasks == {"pending": 1, "failed": 1, "cancelled": 1, "planned": 1}
    assert [group.cause for group in status.failure_groups] == ["host_memory", "cancelled"]


def test_run_status_later_success_clears_the_failure(plan: Plan) -> None:
    train = plan.splits[0]
    failed = {"event": "failed", "error": "x", "cause": "bug"}
    log_events(plan, "train", 0, started("12_0.r0"), failed)
    assert run_status(plan, scheduler=FakeScheduler({})).failures == {"train 0": "x"}
    put_shards(plan, train, range(train.slices[0].shard_stop))
    status = run_status(plan, scheduler=FakeScheduler({}))
    assert (status.failures, status.failure_groups) == ({}, ())
    assert status.tasks["finished"] == 1


def test_run_status_groups_by_cause_with_the_log_of_an_example(plan: Plan, tmp_path: Path) -> None:
    submit(plan)
    log = tmp_path / "elsewhere" / "job.out"
    log.parent.mkdir()
    log.write_text("Traceback\n")
    for index in range(3):
        event = {"event": "failed", "error": f"error {index}", "cause": "gpu_memory"}
        log_events(plan, "train", index, started(f"12_{index}.r0", log=str(log)), event)
    (group,) = look(plan).failure_groups
    assert asdict(group) == {
        "cause": "gpu_memory",
        "count": 3,
        "task": "train 0",
        "error": "error 0",
        "log": str(log),
        "next_step": CAUSES["gpu_memory"],
    }


def test_run_status_rate_and_eta_are_of_what_runs(plan: Plan) -> None:
    submit(plan)
    for index in range(2):
        attempt = f"12_{index}.r0"
        steps = [progress(attempt, 10.0 + t, 5 * t) for t in range(11)]
        loading = progress(attempt, 1.0, 0, stage="loading model")
        log_events(plan, "train", index, started(attempt), loading, *steps)
    failed = {"event": "failed", "error": "x"}
    log_events(plan, "train", 2, started("12_2.r0"), failed)
    put_shards(plan, plan.splits[0], [0])
    status = look(plan, j12_0="RUNNING", j12_1="RUNNING", j12_2="FAILED")
    assert (status.rows_per_s, status.tokens_per_s) == (10.0, 1000.0)
    rows_ahead = plan.splits[0].slices[1].shard_stop * 100 - 100
    assert status.eta_s == pytest.approx(rows_ahead / 10)


def test_run_status_says_what_running_tasks_wait_for(plan: Plan) -> None:
    submit(plan)
    for index, stage in enumerate(("embedding", "waiting for batches")):
        attempt = f"12_{index}.r0"
        steps = [progress(attempt, float(t), t, stage=stage) for t in range(3)]
        log_events(plan, "train", index, started(attempt), *steps)
    status = look(plan, j12_0="RUNNING", j12_1="RUNNING")
    assert status.stages == {"embedding": 1, "waiting for batches": 1}
    assert "1 embedding, 1 waiting for batches" in shown(status)
    assert "embedding" not in shown(look(plan, j12_0="RUNNING"))


def shown(status: RunStatus) -> str:
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(render_status(status))
    return screen.export_text()


def test_run_status_says_no_rate_that_most_running_tasks_do_not_have(plan: Plan) -> None:
    submit(plan)
    steps = [progress("12_0.r0", float(t), t) for t in range(10)]
    log_events(plan, "train", 0, started("12_0.r0"), *steps)
    status = look(plan, j12_0="RUNNING", j12_1="RUNNING", j12_2="RUNNING")
    assert (status.rows_per_s, status.tokens_per_s, status.eta_s) == (None, None, None)


def test_run_status_speed_of_a_task_that_fell_silent_is_not_its_speed_now(plan: Plan) -> None:
    submit(plan)
    steps = [progress("12_0.r0", float(t), t) for t in range(10)]
    log_events(plan, "train", 0, started("12_0.r0"), *steps, age_s=400)
    status = look(plan, j12_0="RUNNING")
    assert (status.state, status.rows_per_s, status.eta_s) == ("running", None, None)


def test_run_status_lanes_of_a_task_are_one_task(plan: Plan) -> None:
    submit(plan)
    for lane in ("", ".lane1"):
        steps = [progress(f"12_0.r1{lane}", float(t), 2 * t) for t in range(10)]
        log_events(plan, "train", f"00000{lane}", started(f"12_0.r1{lane}"), *steps)
    status = look(plan, **{f"j12_{i}": "RUNNING" for i in range(1)})
    assert status.tasks["running"] == 1
    assert status.rows_per_s == 4.0
    failed = {"event": "failed", "attempt": "12_0.r1.lane1", "error": "lost", "cause": "node"}
    log_events(plan, "train", "00000.lane1", started("12_0.r1.lane1"), failed)
    assert look(plan, j12_0="FAILED").failures == {"train 0": "lost"}


def test_run_status_repair_takes_over_what_failed(plan: Plan) -> None:
    submit(plan)
    log_events(plan, "train", 0, started("12_0.r0"), {"event": "failed", "error": "x"})
    write_repair(
        plan,
        Repair(
            workspace=plan.workspace,
            plan_sha256=plan.plan_sha256,
            split="train",
            tasks=((0, 1), (2, 3)),
            cluster={**plan.cluster, "gpus_per_task": 1},
        ),
    )
    _record(
        plan,
        Submission(
            job_id="20",
            executor="sbatch",
            submitted_at="",
            split="train",
            offset=0,
            count=2,
            script="",
            repair=1,
        ),
    )
    log_events(plan, "train", "repair001-00000", started("20_0.r0"))
    status = look(plan, j12_1="RUNNING", j12_2="RUNNING", j20_0="RUNNING", j20_1="PENDING")
    assert status.tasks == {"running": 3, "pending": 1, "replaced": 1, "planned": 1}
    assert status.failures == {}
    assert status.gpus_in_use == 2 + 2 + 1
    put_shards(plan, plan.splits[0], range(4))
    assert look(plan, j12_1="RUNNING").tasks == {
        "running": 1,
        "finished": 3,
        "cancelled": 1,
        "planned": 1,
    }


def test_run_status_array_submitted_by_hand_is_found_by_its_event_logs(plan: Plan) -> None:
    log_events(plan, "train", 0, started("31_0.r0"))
    scheduler = FakeScheduler({"31_0": "RUNNING", "31_[1-2]": "?", "31_1": "PENDING"})
    assert run_status(plan, scheduler=scheduler).tasks == {"running": 1, "pending": 1, "planned": 2}
    assert scheduler.asked == [["31"]]


def test_run_status_array_submitted_by_hand_is_found_by_its_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    slurm = Snapshot(
        states={"31_0": "PENDING", "31_1": "PENDING", "32": "PENDING"},
        names={"31": plan.run_id, "32": f"{plan.run_id}-gather", "33": "another"},
    )
    status = status_of(see(plan), slurm)
    assert status.tasks == {"pending": 2, "planned": 1}
    assert (status.state, status.gather) == ("pending", "waiting")


def test_run_status_quick_array_of_one_may_go_by_its_bare_id(plan: Plan) -> None:
    submit(plan, "14", split="test", count=1)
    assert look(plan, j14="NODE_FAIL").failures == {"test 0": "SLURM says NODE_FAIL"}


@pytest.mark.parametrize(
    ("state", "gather"),
    [
        ("PENDING", "waiting"),
        ("RUNNING", "running"),
        ("FAILED", "failed"),
        ("CANCELLED", "cancelled"),
        ("", "not yet"),
    ],
)
def test_run_status_gather_job(plan: Plan, state: str, gather: str) -> None:
    record_submission(plan, job_id="15", executor="sbatch", split=None, offset=0, count=1)  # type: ignore[arg-type]
    status = look(plan, **({"j15": state} if state else {}))
    assert status.gather == gather
    assert status.is_active == (gather in ("waiting", "running"))


@pytest.mark.parametrize("text", ["", "\n", "{torn", "[1]\n", "\x00\x00"])
def test_run_status_log_without_events_is_a_task_that_did_not_begin(plan: Plan, text: str) -> None:
    log_events(plan, "train", 0, text)
    assert run_status(plan).tasks == {"planned": 4}


def test_run_status_asks_the_scheduler_once_for_all_jobs(plan: Plan) -> None:
    for job_id, executor in (("11", "sbatch"), ("12", "submitit"), ("13", "local")):
        submit(plan, job_id, executor=executor)
    scheduler = FakeScheduler({"11_0": "RUNNING", "11_1": "RUNNING", "12_0": "PENDING"})
    status = run_status(plan, scheduler=scheduler)
    assert scheduler.asked == [["11", "12"]]
    assert status.jobs == {"RUNNING": 2, "PENDING": 1}
    assert json.loads(json.dumps(status.to_json())) == json.loads(json.dumps(asdict(status)))


def test_run_status_nothing_submitted_asks_nobody(plan: Plan) -> None:
    scheduler = FakeScheduler({})
    status = run_status(plan, scheduler=scheduler)
    assert (status.jobs, status.slurm) == ({}, "not asked")
    assert scheduler.asked == []


def test_run_status_ten_thousand_slices(tmp_path: Path) -> None:
    split = split_plan(rows=1_000_000, rows_per_shard=50, count=10_000)
    plan = plan_of(tmp_path, (split,))
    for index in range(0, 10_000, 100):
        log_events(plan, "train", index, {"event": "finished"}, "")
    put_shards(plan, split, range(0, 20_000, 2))
    status = run_status(plan)
    assert status.splits[0].rows_done == 500_000
    assert status.tasks == {"finished": 100, "planned": 9_900}
