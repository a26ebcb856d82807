from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.errors import InputError, SpecError, UnfitEnvironmentError
from chatspace.jobs.events import EventLog
from chatspace.jobs.gather import gather_run, verify_run
from chatspace.jobs.repair import divide, read_repair, run_repair_task
from chatspace.jobs.setup import GATHER_SCRIPT, set_up
from chatspace.jobs.submissions import read_submissions, record_submission
from chatspace.layout import Layout, RunLayout
from chatspace.mend.bad_nodes import failed_nodes
from chatspace.mend.cancel import cancel
from chatspace.mend.resubmit import missing_shards, resubmit
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan
from tests.conftest import SpecMaker
from tests.plans import plan_of, split_plan
from tests.test_exactly_once import digests, plan_path, run_all


class FakeScheduler:
    """Takes every script; the real one stands in tests/slurm/test_repair.py."""

    def __init__(self, states: dict[str, str] | None = None, *, refuse: bool = False) -> None:
        self.submitted: list[tuple[Path, tuple[str, ...]]] = []
        self.checked: list[str] = []
        self.cancelled: list[str] = []
        self._states, self._refuse = states or {}, refuse

    def check(self, script: str) -> None:
        if self._refuse:
            raise UnfitEnvironmentError("sbatch refused: invalid partition.")
        self.checked.append(script)

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        self.submitted.append((script, tuple(after)))
        return str(100 + len(self.submitted))

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        return {k: v for k, v in self._states.items() if k.split("_")[0] in job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids


def layout(plan: Plan) -> RunLayout:
    return Layout(Path(plan.workspace)).run(plan.run_id)


@pytest.fixture
def plan(make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """300 rows in 10 shards in 3 slices, set up."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("CHATSPACE_THREADS", "1")
    return set_up(make_spec(slices={"count": 3})).plan


def delete_shards(plan: Plan, *indexes: int) -> None:
    for index in indexes:
        (Path(plan.workspace) / plan.splits[0].output_dir / f"shard-{index:05d}.parquet").unlink()


@pytest.mark.slow
def test_resubmit_does_just_the_missing_shards_and_the_run_is_the_same(plan: Plan) -> None:
    run_all(plan)
    undisturbed = digests(plan)
    delete_shards(plan, 1, 4, 5, 9)
    scheduler = FakeScheduler()
    done = resubmit(plan, scheduler, max_tasks=3)
    assert (done.n_missing, done.n_active) == (4, 0)
    (script, _), (gather, after) = scheduler.submitted
    assert script == layout(plan).repairs / "001" / "embed.slurm"
    assert (gather, after) == (script.with_name("gather.slurm"), ("101",))
    assert "#SBATCH --array=0-2\n" in scheduler.checked[0]
    assert "#SBATCH --array=0-2\n" in script.read_text()
    assert [s.repair for s in read_submissions(plan)] == [1, None]
    repair = read_repair(plan, 1)
    assert [shard for task in repair.tasks for shard in task] == [1, 4, 5, 9]
    written = digests(plan)
    for index in range(3):
        run_repair_task(plan_path(plan), 1, index)
    assert digests(plan) == undisturbed
    assert {k: v for k, v in digests(plan).items() if k in written} == written
    assert gather_run(plan)[0].content["rows_embedded"] == 300
    names = {path.name for path in layout(plan).tasks.iterdir()}
    assert {"train-repair001-00000.json", "train-repair001-00002.json"} <= names
    assert not list((layout(plan).folder / "claims").rglob("shard-*"))
    with pytest.raises(InputError, match="repair 1 has 0 to 2"):
        run_repair_task(plan_path(plan), 1, 3)


@pytest.mark.slow
def test_resubmit_with_verify_sets_a_damaged_shard_aside_and_redoes_it(plan: Plan) -> None:
    run_all(plan)
    gather_run(plan)
    undisturbed = digests(plan)
    shard = Path(plan.workspace) / plan.splits[0].output_dir / "shard-00003.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    assert resubmit(plan, FakeScheduler()).n_missing == 0  # its footer and its size are right
    done = resubmit(plan, FakeScheduler(), verify=True)
    assert done.n_missing == 1
    run_repair_task(plan_path(plan), 1, 0)
    assert digests(plan) == undisturbed
    assert verify_run(plan) == {"train": 10}


def test_resubmit_leaves_alone_what_is_queued_or_running(plan: Plan) -> None:
    record_submission(plan, job_id="50", executor="sbatch", split="train", offset=0, count=3)
    states = {"50_0": "RUNNING", "50_1": "FAILED", "50_2": "PENDING"}
    middle = plan.splits[0].slices[1]
    shards = list(range(middle.shard_start, middle.shard_stop))
    done = resubmit(plan, FakeScheduler(states))
    assert (done.n_missing, done.n_active) == (10, 10 - len(shards))
    assert [shard for task in read_repair(plan, 1).tasks for shard in task] == shards
    again = resubmit(plan, FakeScheduler({**states, "101_0": "PENDING"}))
    assert again.n_active == 10 and again.submissions == ()
    shared = resubmit(plan, FakeScheduler(states), share=True)
    assert shared.n_active == 0 and len(read_repair(plan, 2).tasks) == 3


def test_resubmit_with_changed_settings_keeps_the_run_and_refuses_other_keys(plan: Plan) -> None:
    scheduler = FakeScheduler()
    resubmit(plan, scheduler, overrides=["slurm.time=00:30:00", "slurm.gpu_type=a100"])
    text = scheduler.checked[0]
    assert "#SBATCH --time=00:30:00\n" in text
    assert f"#SBATCH --output={plan.cluster['log_dir']}/" in text
    assert read_repair(plan, 1).cluster["gpu_type"] == "a100"
    assert "#SBATCH --time=00:30:00\n" in scheduler.checked[1]  # the gather job, too
    settings = read_repair(plan, 1).cluster
    kept = {k: v for k, v in settings.items() if k not in ("time", "gpu_type")}
    assert kept == {k: v for k, v in json.loads(json.dumps(plan.cluster)).items() if k in kept}
    with pytest.raises(SpecError, match=r"--set model\.dtype=float32"):
        resubmit(plan, scheduler, overrides=["model.dtype=float32"])
    with pytest.raises(SpecError, match=r"slurm\.tim"):
        resubmit(plan, scheduler, overrides=["slurm.tim=1"])


def test_resubmit_looks_at_the_changed_run_before_anything_is_written(plan: Plan) -> None:
    def refuse(changed: Plan, scripts: Mapping[str, str]) -> None:
        assert changed.cluster["time"] == "00:30:00"
        assert list(scripts) == ["train", GATHER_SCRIPT]
        assert "#SBATCH --time=00:30:00" in scripts["train"]
        raise UnfitEnvironmentError("not fit")

    scheduler = FakeScheduler()
    with pytest.raises(UnfitEnvironmentError, match="not fit"):
        resubmit(plan, scheduler, overrides=["slurm.time=00:30:00"], check=refuse)
    assert not layout(plan).repairs.exists()


def test_resubmit_that_is_refused_writes_nothing(plan: Plan) -> None:
    with pytest.raises(UnfitEnvironmentError, match="invalid partition"):
        resubmit(plan, FakeScheduler(refuse=True))
    assert not layout(plan).repairs.exists() and read_submissions(plan) == []


def write_failures(plan: Plan, *failures: tuple[str, str]) -> None:
    """Writes the event logs of tasks that failed: node and cause of each, `ok` for none."""
    for index, (node, cause) in enumerate(failures):
        name = f"1_{index}.r0"
        with EventLog(layout(plan).event_log("train", index)) as events:
            events.write("started", attempt=name, host="login", slurm={"node": node})
            if cause == "killed":
                events.write("ended", attempt=name, host=node, exit_code=137, oom_kills=0)
            elif cause != "ok":
                events.write("failed", attempt=name, error="x", cause=cause)
                events.write("ended", attempt=name, host=node, exit_code=1)


def test_resubmit_avoids_nodes_that_failed_twice_unless_told_not_to(plan: Plan) -> None:
    write_failures(
        plan,
        ("n1", "node"),
        ("n1", "node"),
        ("n2", "bug"),
        ("n2", "bug"),
        ("n3", "node"),
        ("n4", "ok"),
    )
    assert failed_nodes(plan) == ["n1"]
    scheduler = FakeScheduler()
    assert resubmit(plan, scheduler).excluded == ("n1",)
    assert "#SBATCH --exclude=n1\n" in scheduler.checked[0]
    done = resubmit(plan, scheduler, share=True, overrides=["slurm.exclude_failed_nodes=false"])
    assert done.excluded == () and "--exclude" not in scheduler.checked[2]


@pytest.mark.parametrize("cause", ["killed", "environment", "host_memory"])
def test_failed_nodes_of_a_cause_that_most_nodes_share_are_none(plan: Plan, cause: str) -> None:
    nodes = ["n1", "n1", "n2", "n2", "n3", "n3"]
    write_failures(plan, *((node, cause) for node in nodes), ("n4", "ok"))
    assert failed_nodes(plan) == []


def test_failed_nodes_count_an_attempt_once_and_no_machine_off_slurm(plan: Plan) -> None:
    for lane in ("", ".lane1"):
        with EventLog(layout(plan).event_log("train", f"00000{lane}")) as events:
            events.write("started", attempt=f"1_0.r0{lane}", slurm={"node": "n1"})
            events.write("failed", attempt=f"1_0.r0{lane}", cause="node", error="x")
    for index in (1, 2):
        with EventLog(layout(plan).event_log("train", index)) as events:
            events.write("started", attempt=f"login-{index}", host="login", slurm={})
            events.write("failed", attempt=f"login-{index}", cause="node", error="x")
    assert failed_nodes(plan) == []


def test_missing_shards_of_a_fresh_run_are_all(plan: Plan) -> None:
    assert missing_shards(plan) == {"train": list(range(10))}


def test_cancel_names_what_it_cancelled_and_nothing_else(plan: Plan) -> None:
    record_submission(plan, job_id="50", executor="sbatch", split="train", offset=0, count=3)
    record_submission(plan, job_id="51", executor="sbatch", split="train", offset=0, count=3)
    scheduler = FakeScheduler({"50_0": "COMPLETED", "51_0": "RUNNING", "51_1": "PENDING"})
    assert cancel(plan, scheduler) == ["51"] == scheduler.cancelled


def test_read_repair_that_is_absent_or_foreign_says_what_to_run(plan: Plan) -> None:
    with pytest.raises(InputError, match="chatspace resubmit"):
        read_repair(plan, 1)
    resubmit(plan, FakeScheduler())
    path = layout(plan).repairs / "001" / "repair.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "plan_sha256": "0" * 64}))
    with pytest.raises(InputError, match="another plan"):
        read_repair(plan, 1)


@given(
    missing=st.sets(st.integers(0, 49), min_size=1),
    of_test=st.sets(st.integers(0, 29)),
    max_tasks=st.integers(2, 40) | st.none(),
)
def test_divide_gives_every_shard_to_one_task(
    missing: set[int], of_test: set[int], max_tasks: int | None
) -> None:
    splits = (
        split_plan("train", rows=5000, count=5),
        split_plan("test", rows=3000, count=2),
    )
    wanted = {"train": sorted(missing), **({"test": sorted(of_test)} if of_test else {})}
    tasks = divide(plan_of("/ws", splits), wanted, max_tasks)
    assert {name: [s for task in parts for s in task] for name, parts in tasks.items()} == wanted
    assert all(task for parts in tasks.values() for task in parts)
    if max_tasks is not None:
        assert sum(map(len, tasks.values())) <= max_tasks


def test_divide_with_fewer_tasks_than_splits_is_refused() -> None:
    plan = plan_of("/ws", (split_plan("train"), split_plan("test")))
    with pytest.raises(SpecError, match="Allow at least 2"):
        divide(plan, {"train": [0], "test": [1]}, 1)


def test_read_repair_of_a_moved_workspace_has_the_paths_of_now(plan: Plan, tmp_path: Path) -> None:
    inside = f"{plan.workspace}/logs"
    resubmit(plan, FakeScheduler(), overrides=[f"slurm.log_dir={inside}"])
    assert read_repair(plan, 1).cluster["log_dir"] == inside
    Path(plan.workspace).rename(tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "runs" / plan.run_id / "plan.json"
    assert read_repair(load_plan(path), 1).cluster["log_dir"] == str(tmp_path / "elsewhere/logs")


def test_two_repairs_at_once_get_numbers_of_their_own(plan: Plan) -> None:
    first = resubmit(plan, FakeScheduler())
    second = resubmit(plan, FakeScheduler(), share=True)
    assert [s.repair for s in (*first.submissions, *second.submissions)] == [1, None, 2, None]
    assert sorted(os.listdir(layout(plan).repairs)) == ["001", "002"]
