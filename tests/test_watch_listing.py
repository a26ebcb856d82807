from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chatspace.jobs.submissions import record_submission
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.watch.listing import list_runs
from chatspace.watch.status import run_status
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

NOW_S = 1_767_326_400.0  # 2026-01-02T04:00:00


def make_run(workspace: Path, name: str, hour: int, *, is_complete: bool = False) -> Plan:
    plan = replace(plan_of(workspace), run_id=name, created_at=f"2026-01-02T{hour:02d}:00:00+00:00")
    (split,) = plan.splits
    split = replace(split, output_dir=f"embeddings/{name}", manifest=f"indexes/{name}.json")
    plan = replace(plan, splits=(split,))
    save_plan(plan, layout_of(plan).plan)
    if is_complete:
        put_shards(plan, split, range(split.n_shards))
        publish(plan, split)
    return plan


def submit(plan: Plan, job_id: str) -> None:
    record_submission(plan, job_id=job_id, executor="sbatch", split="train", offset=0, count=3)


def shown(renderable: object, width: int = 80) -> list[str]:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_list_runs_newest_first_with_one_question_for_all_open_ones(tmp_path: Path) -> None:
    for hour, (name, job_id) in enumerate((("old", "11"), ("done", "12"), ("new", "13"))):
        submit(make_run(tmp_path, name, hour, is_complete=name == "done"), job_id)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "plan.json").write_text("{")
    scheduler = FakeScheduler({"11_0": "RUNNING", "13_0": "PENDING", "13_1": "PENDING"})
    runs = list_runs(tmp_path, scheduler=scheduler)
    assert [(run.run_id, run.state) for run in runs] == [
        ("new", "pending"),
        ("done", "complete"),
        ("old", "running"),
    ]
    assert scheduler.asked == [["11", "13"]]
    assert runs[0].jobs == {"PENDING": 2}


def test_list_runs_of_complete_runs_asks_nobody(tmp_path: Path) -> None:
    submit(make_run(tmp_path, "done", 0, is_complete=True), "11")
    scheduler = FakeScheduler({})
    assert [run.slurm for run in list_runs(tmp_path, scheduler=scheduler)] == ["not asked"]
    assert scheduler.asked == []


def test_list_runs_of_no_workspace_is_empty(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []


def test_render_overview_is_a_line_for_each_run(tmp_path: Path) -> None:
    first = make_run(tmp_path, "docs-0a1b2c3d", 1)
    log_events(first, "train", 0, started("11_0.r0"), {"event": "failed", "error": "x"})
    submit(first, "11")
    make_run(tmp_path, "a-run-with-a-long-name-0a1b2c3d", 2, is_complete=True)
    states = {"11_0": "FAILED", "11_1": "RUNNING", "11_2": "PENDING"}
    runs = list_runs(tmp_path, scheduler=FakeScheduler(states))
    heading, *lines = shown(render_overview(runs, now_s=NOW_S))
    assert heading.split()[:6] == ["run", "state", "rows", "tasks", "R/P/F", "age"]
    assert [line.split()[:5] for line in lines] == [
        ["a-run-with-a-long-name-0a1b2c3d", "complete", "1,000/1,000", "-", "2h"],
        ["docs-0a1b2c3d", "running", "0/1,000", "1/1/1", "3h"],
    ]


@pytest.fixture
def busy(tmp_path: Path) -> Plan:
    """A run of which one task runs, one waits, one failed and one was cancelled."""
    split = split_plan(count=4)
    plan = plan_of(tmp_path, (split,), slurm={"gpus_per_task": 1, "log_dir": str(tmp_path)})
    layout_of(plan).folder.mkdir(parents=True)
    record_submission(plan, job_id="12", executor="sbatch", split="train", offset=0, count=4)
    steps = [progress("12_0.r1", float(t), 20 * t) for t in range(10)]
    log_events(plan, "train", 0, started("12_0.r1"), *steps)
    error = "OutOfMemoryError: CUDA out of memory. " + "Tried to allocate 2 GiB. " * 5
    failed = {"event": "failed", "error": error, "cause": "gpu_memory"}
    log_events(plan, "train", 1, started("12_1.r0"), failed)
    (tmp_path / f"{plan.run_id}-12_1.out").write_text("Traceback\n")
    put_shards(plan, split, [0])
    return plan


def test_render_status_tells_everything_at_80_columns(busy: Plan, tmp_path: Path) -> None:
    states = {"12_0": "RUNNING", "12_1": "FAILED", "12_2": "PENDING"}
    lines = shown(render_status(run_status(busy, scheduler=FakeScheduler(states))))
    assert all(len(line) <= 80 for line in lines)
    words = [line.split() for line in lines]
    assert words[0] == [f"{busy.run_id}:", "running"]
    assert words[2] == ["split", "shards", "rows", "done", "slices", "gathered"]
    assert words[3] == ["train", "1/10", "100/1,000", "10.0%", "0/4", "no"]
    text = "\n".join(lines)
    assert "tasks  1 running, 1 pending, 1 failed, 1 cancelled; requeued once" in text
    assert "rate   20 rows/s, 2,000 tokens/s" in text
    assert "ETA    less than a minute" in text
    assert "GPUs   1 in use" in text
    assert "gpu_memory: train 1" in text
    assert "error  OutOfMemoryError: CUDA out of memory." in text
    assert "next   Lower encode.tokens_per_batch" in text
    path = f"{tmp_path}/{busy.run_id}-12_1.out"
    assert path in "".join(line.strip() for line in lines)


def test_render_status_of_a_planned_run_says_no_more_than_it_knows(tmp_path: Path) -> None:
    lines = shown(render_status(run_status(plan_of(tmp_path))))
    assert lines[-1].split() == ["tasks", "3", "planned"]
    assert not any(word in " ".join(lines) for word in ("rate", "ETA", "GPUs", "gather "))


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 100, "0%"), (1, 10**7, "0.1%"), (10**7 - 1, 10**7, "99.9%"), (10**7, 10**7, "100%")],
)
def test_render_status_all_is_never_said_of_almost_all(
    done: int, total: int, text: str, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, (split_plan(rows=total, rows_per_shard=total, count=1),))
    status = run_status(plan)
    (split,) = status.splits
    status = replace(status, splits=(replace(split, rows_done=done),))
    assert text in shown(render_status(status))[3].split()
