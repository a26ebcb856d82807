from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from chatspace.errors import InputError
from chatspace.jobs.submissions import record_submission
from chatspace.plan.model import Plan
from chatspace.watch.logs import find_task, follow, last_lines, newest_log, newest_logs
from chatspace.watch.status import task_statuses
from chatspace.watch.task_states import TaskStatus
from tests.plans import plan_of, split_plan
from tests.runs import FakeScheduler, layout_of, log_events, started


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    splits = (split_plan("train"), split_plan("test", count=2))
    plan = plan_of(tmp_path / "ws", splits, slurm={"log_dir": str(tmp_path / "logs")})
    layout_of(plan).folder.mkdir(parents=True)
    return plan


def submit(plan: Plan, job_id: str, *, executor: str = "sbatch", offset: int = 0) -> None:
    count = 1 if executor == "local" else 3
    record_submission(
        plan, job_id=job_id, executor=executor, split="train", offset=offset, count=count
    )


def statuses(plan: Plan) -> list[TaskStatus]:
    return task_statuses(plan, scheduler=FakeScheduler({}))


def write(path: Path, text: str = "line\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_newest_log_of_a_slurm_task_is_that_of_its_latest_job(plan: Plan, tmp_path: Path) -> None:
    submit(plan, "12")
    submit(plan, "13")
    write(tmp_path / "logs" / f"{plan.run_id}-12_1.out")
    newest = write(tmp_path / "logs" / f"{plan.run_id}-13_1.out")
    log_events(plan, "train", 1, started("13_1.r0"))
    status = statuses(plan)[1]
    assert newest_log(plan, status) == newest
    assert [p.name for p in newest_logs(plan, status, "12_1")] == [f"{plan.run_id}-12_1.out"]


def test_newest_log_of_a_task_that_wrote_no_event_is_found_by_its_job(
    plan: Plan, tmp_path: Path
) -> None:
    submit(plan, "12")
    log = write(tmp_path / "logs" / f"{plan.run_id}-12_2.out")
    assert newest_log(plan, statuses(plan)[2]) == log


def test_newest_log_is_where_the_event_log_says(plan: Plan, tmp_path: Path) -> None:
    log = write(tmp_path / "other" / "name.out")
    log_events(plan, "train", 0, started("12_0.r0", log=str(log)))
    assert newest_log(plan, statuses(plan)[0]) == log


def test_newest_log_of_the_local_executor(plan: Plan) -> None:
    log = write(layout_of(plan).folder / "logs" / "test-00001.log")
    log_events(plan, "test", 1, started("host-77"))
    assert newest_log(plan, statuses(plan)[4]) == log


def test_newest_logs_of_submitit_are_errors_then_output(plan: Plan) -> None:
    submit(plan, "host:77", executor="local", offset=1)
    folder = layout_of(plan).folder / "submitit"
    names = ["77_0_log.err", "77_0_log.out"]
    for name in names:
        write(folder / name)
    assert [path.name for path in newest_logs(plan, statuses(plan)[1])] == names
    submit(plan, "14")
    write(folder / "14_2_0_log.out")
    assert [path.name for path in newest_logs(plan, statuses(plan)[2])] == ["14_2_0_log.out"]


def test_newest_log_of_a_task_that_never_ran_is_none(plan: Plan) -> None:
    assert newest_log(plan, statuses(plan)[0]) is None


@pytest.mark.parametrize(
    ("text", "label", "element"),
    [
        ("train/1", "train 1", None),
        ("test/1", "test 1", None),
        ("2", "train 2", None),
        ("13_1", "train 1", "13_1"),
        ("12_1", "train 1", "12_1"),
    ],
)
def test_find_task_by_slice_or_slurm_id(
    plan: Plan, text: str, label: str, element: str | None
) -> None:
    submit(plan, "12")
    submit(plan, "13")
    found, id_ = find_task(plan, statuses(plan), text)
    assert (found.task.label, id_) == (label, element)


@pytest.mark.parametrize("text", ["9", "dev/0", "99_0", "12_7", "x", "train/", "repair1/0"])
def test_find_task_unknown_names_the_known(plan: Plan, text: str) -> None:
    submit(plan, "12")
    with pytest.raises(InputError, match=r"train/0 to train/2, test/0 to test/1"):
        find_task(plan, statuses(plan), text)


def test_find_task_of_several_splits_wants_one_named(plan: Plan) -> None:
    with pytest.raises(InputError, match=r"train/1, test/1. Name one"):
        find_task(plan, statuses(plan), "1")


@pytest.mark.parametrize(("n", "expected"), [(1, ["line 49999"]), (60_000, None)])
def test_last_lines_reads_the_end_alone(tmp_path: Path, n: int, expected: list[str] | None) -> None:
    lines = [f"line {i}" for i in range(50_000)]
    path = write(tmp_path / "long.out", "\n".join(lines) + "\n")
    assert last_lines(path, n) == (expected or lines)


def test_last_lines_of_odd_files(tmp_path: Path) -> None:
    assert last_lines(write(tmp_path / "empty", ""), 5) == []
    assert last_lines(write(tmp_path / "no end", "a\nb"), 1) == ["b"]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    assert len(last_lines(tmp_path / "bytes", 5)) == 1
    assert "No such file" in last_lines(tmp_path / "absent", 5)[0]


def test_follow_shows_what_comes_until_the_task_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "job.out", "shown\n")
    written: list[str] = []
    ended = threading.Event()

    def work() -> None:
        for word in ("one\n", "two\n"):
            time.sleep(0.05)
            with path.open("a") as file:
                file.write(word)
        ended.set()
        with path.open("a") as file:
            file.write("last\n")

    thread = threading.Thread(target=work)
    thread.start()
    follow(path, lambda: not ended.is_set(), written.append, from_byte=6, poll_s=0.01, ask_s=0.1)
    thread.join()
    assert "".join(written) == "one\ntwo\nlast\n"


def test_follow_log_that_begins_anew_is_shown_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path / "job.out", "new\n")
    written: list[str] = []
    follow(path, lambda: False, written.append, from_byte=100, poll_s=0.01)
    assert written == ["new\n"]
