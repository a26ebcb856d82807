import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatspace.errors import OutputError, UnfitEnvironmentError
from chatspace.jobs.render import array_jobs
from chatspace.jobs.setup import SetUp
from chatspace.jobs.submissions import (
    read_submissions,
    record_submission,
    slurm_ids,
    submit_all,
)
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from tests.plans import plan_of, split_plan


class FakeScheduler:
    """Gives ids from 101 on; refuses the script of number `refuse`."""

    def __init__(self, states: dict[str, str] | None = None, refuse: int | None = None) -> None:
        self.submitted: list[tuple[str, tuple[str, ...]]] = []
        self.asked: list[list[str]] = []
        self._states = states or {}
        self._refuse = refuse

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        if len(self.submitted) == self._refuse:
            raise UnfitEnvironmentError("sbatch refused: QOSMaxSubmitJobPerUserLimit.")
        self.submitted.append((script.name, tuple(after)))
        return str(100 + len(self.submitted))

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(job_ids))
        return {k: v for k, v in self._states.items() if k.split("_")[0] in job_ids}


@pytest.fixture
def done(tmp_path: Path) -> SetUp:
    """Two splits, one of them in two windows."""
    splits = (split_plan("train", count=5), split_plan("test", count=2))
    plan = plan_of(tmp_path, splits)
    plan.cluster["max_array_size"] = 3
    folder = Layout(tmp_path).run(plan.run_id).folder
    folder.mkdir(parents=True)
    jobs = tuple(array_jobs(plan))
    return SetUp(
        plan=plan,
        jobs=jobs,
        scripts=tuple(folder / job.script for job in jobs),
        gather=folder / "gather.slurm",
        notes=(),
    )


def record_of(plan: Plan) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).submissions


def test_submit_all_arrays_in_order_then_gather_after_all(done: SetUp) -> None:
    scheduler = FakeScheduler()
    submitted = submit_all(done, scheduler)
    assert scheduler.submitted == [
        ("embed-train-window1.slurm", ()),
        ("embed-train-window2.slurm", ()),
        ("embed-test.slurm", ()),
        ("gather.slurm", ("101", "102", "103")),
    ]
    assert [(s.job_id, s.split, s.offset, s.count) for s in submitted] == [
        ("101", "train", 0, 3),
        ("102", "train", 3, 2),
        ("103", "test", 0, 2),
        ("104", None, 0, 1),
    ]
    assert read_submissions(done.plan) == submitted
    assert slurm_ids(submitted) == ["101", "102", "103", "104"]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED"])
def test_submit_all_active_jobs_are_refused_by_id(done: SetUp, state: str) -> None:
    submit_all(done, FakeScheduler())
    scheduler = FakeScheduler({"101_0": "COMPLETED", "102_4": state, "104": "CANCELLED"})
    with pytest.raises(UnfitEnvironmentError, match=r"scancel 102`.*--again"):
        submit_all(done, scheduler)
    assert scheduler.submitted == []
    assert scheduler.asked == [["101", "102", "103", "104"]]
    assert len(submit_all(done, scheduler, again=True)) == 4


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"])
def test_submit_all_ended_jobs_are_no_hindrance(done: SetUp, state: str) -> None:
    submit_all(done, FakeScheduler())
    assert len(submit_all(done, FakeScheduler({"101_0": state}))) == 4
    assert len(read_submissions(done.plan)) == 8


def test_submit_all_refused_midway_says_what_is_in_the_queue(done: SetUp) -> None:
    with pytest.raises(UnfitEnvironmentError) as caught:
        submit_all(done, FakeScheduler(refuse=2))
    assert "QOSMaxSubmitJobPerUserLimit" in str(caught.value)
    assert "scancel 101 102" in str(caught.value)
    assert [s.job_id for s in read_submissions(done.plan)] == ["101", "102"]


def test_submit_all_refused_at_once_is_the_scheduler_s_message(done: SetUp) -> None:
    with pytest.raises(UnfitEnvironmentError, match=r"^sbatch refused: QOSMax[A-Za-z]+\.$"):
        submit_all(done, FakeScheduler(refuse=0))
    assert read_submissions(done.plan) == []


def test_submit_all_record_that_cannot_be_written_submits_nothing(done: SetUp) -> None:
    record_of(done.plan).mkdir()
    scheduler = FakeScheduler()
    with pytest.raises(OutputError, match=r"Cannot write: .*submissions.jsonl"):
        submit_all(done, scheduler, again=True)
    assert scheduler.submitted == []


def test_read_submissions_none_were_made(done: SetUp) -> None:
    assert read_submissions(done.plan) == []


@pytest.mark.parametrize("keep", [1, 20, -2])
def test_read_submissions_torn_line_is_passed_over_and_hides_no_other(
    done: SetUp, keep: int
) -> None:
    first = record_submission(
        done.plan, job_id="7", executor="submitit", split="train", offset=0, count=5
    )
    path = record_of(done.plan)
    size = path.stat().st_size
    submit_all(done, FakeScheduler())
    os.truncate(path, size + keep if keep > 0 else path.stat().st_size + keep)
    before = read_submissions(done.plan)
    assert before[0] == first
    last = record_submission(
        done.plan, job_id="8", executor="local", split="train", offset=0, count=5
    )
    assert read_submissions(done.plan) == [*before, last]
    assert path.read_bytes().endswith(b"\n")


def test_read_submissions_lines_of_another_making_are_passed_over(done: SetUp) -> None:
    record_of(done.plan).write_text('{}\n[1]\nnull\n{"job_id": 3}\n\nx\n')
    assert read_submissions(done.plan) == []


def test_record_submission_is_one_line_of_json(done: SetUp) -> None:
    made = record_submission(
        done.plan, job_id="7", executor="local", split="ü\n", offset=0, count=5
    )
    (line,) = record_of(done.plan).read_text().splitlines()
    assert json.loads(line)["split"] == "ü\n"
    assert slurm_ids([made]) == []
