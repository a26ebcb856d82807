import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from chatspace.jobs.status import render_status, run_status
from chatspace.jobs.submissions import record_submission
from chatspace.layout import Layout
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.store import save_plan
from tests.plans import plan_of, split_plan


class FakeScheduler:
    def __init__(self, states: dict[str, str]) -> None:
        self.asked: list[list[str]] = []
        self._states = states

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        raise AssertionError("status submits nothing")

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(job_ids))
        return self._states


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """10 shards of 100 rows in 3 slices of train, 3 shards in 1 slice of test."""
    splits = (split_plan("train"), split_plan("test", rows=250, count=1))
    plan = plan_of(tmp_path, splits)
    save_plan(plan, Layout(tmp_path).run(plan.run_id).plan)
    return plan


def put_shards(plan: Plan, split: SplitPlan, indexes: Sequence[int]) -> None:
    folder = Path(plan.workspace) / split.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for index in indexes:
        (folder / split.span(index).file_name).touch()


def log_events(plan: Plan, split: str, index: int, *events: dict[str, object] | str) -> None:
    path = Layout(Path(plan.workspace)).run(plan.run_id).event_log(split, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    path.write_text("\n".join(lines))


def publish(plan: Plan, split: SplitPlan, plan_sha256: str | None = None) -> None:
    path = Path(plan.workspace) / split.manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"plan_sha256": plan_sha256 or plan.plan_sha256}))


def text_of(plan: Plan) -> str:
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(render_status(run_status(plan)))
    return capture.get()


def test_run_status_before_the_first_task(plan: Plan) -> None:
    status = run_status(plan)
    assert status.state == "incomplete"
    assert (status.jobs, status.tasks, status.failures) == ({}, {}, {})
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


def test_run_status_last_event_of_each_slice_counts(plan: Plan) -> None:
    failed = {"event": "failed", "error": "InputError: no such file"}
    log_events(plan, "train", 0, failed, {"event": "started"}, {"event": "finished"}, "")
    log_events(plan, "train", 1, {"event": "started"}, failed, '{"event": "prog')
    log_events(plan, "train", 2, {"event": "started"}, {"event": "interrupted"}, "")
    log_events(plan, "test", 0, {"event": "started"}, {"event": "progress", "rows": 3}, "")
    status = run_status(plan)
    assert status.tasks == {"finished": 1, "failed": 1, "interrupted": 1, "started": 1}
    assert status.failures == {"train 1": "InputError: no such file"}
    assert status.state == "incomplete, with failed slices"
    assert "failed: train 1: InputError: no such file" in text_of(plan)


def test_run_status_long_log_is_read_from_its_end(plan: Plan) -> None:
    progress = {"event": "progress", "note": "x" * 500}
    log_events(plan, "train", 0, *[progress] * 100, {"event": "failed"}, "")
    assert run_status(plan).failures == {"train 0": "no message"}


@pytest.mark.parametrize("text", ["", "\n", "{torn", "[1]\n", "\x00\x00"])
def test_run_status_log_without_events_is_no_task(plan: Plan, text: str) -> None:
    log_events(plan, "train", 0, text)
    assert run_status(plan).tasks == {}


def test_run_status_asks_the_scheduler_once_for_all_jobs(plan: Plan) -> None:
    for job_id, executor in (("11", "sbatch"), ("12", "submitit"), ("13", "local")):
        record_submission(plan, job_id=job_id, executor=executor, split="train", offset=0, count=3)
    scheduler = FakeScheduler({"11_0": "RUNNING", "11_1": "RUNNING", "12_0": "PENDING"})
    status = run_status(plan, scheduler=scheduler)
    assert scheduler.asked == [["11", "12"]]
    assert status.jobs == {"RUNNING": 2, "PENDING": 1}
    assert json.loads(json.dumps(status.to_json())) == json.loads(json.dumps(asdict(status)))


def test_run_status_nothing_submitted_asks_nobody(plan: Plan) -> None:
    scheduler = FakeScheduler({})
    assert run_status(plan, scheduler=scheduler).jobs == {}
    assert scheduler.asked == []


def test_render_status_shows_each_split(plan: Plan) -> None:
    put_shards(plan, plan.splits[0], [0])
    lines = text_of(plan).splitlines()
    assert lines[0] == f"{plan.run_id}: incomplete"
    assert [line.split() for line in lines[1:4]] == [
        ["split", "shards", "rows", "slices", "gathered"],
        ["train", "1/10", "100/1,000", "0/3", "no"],
        ["test", "0/3", "0/250", "0/1", "no"],
    ]


def test_run_status_ten_thousand_slices(tmp_path: Path) -> None:
    split = split_plan(rows=1_000_000, rows_per_shard=50, count=10_000)
    plan = plan_of(tmp_path, (split,))
    for index in range(0, 10_000, 100):
        log_events(plan, "train", index, {"event": "finished"}, "")
    put_shards(plan, split, range(0, 20_000, 2))
    status = run_status(plan)
    assert status.splits[0].rows_done == 500_000
    assert status.tasks == {"finished": 100}
