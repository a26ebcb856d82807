from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

import chatspace
from chatspace.errors import IncompleteError, InputError, UnfitEnvironmentError
from chatspace.jobs.events import EventLog
from chatspace.jobs.setup import set_up
from chatspace.jobs.submissions import active_jobs, local_job_id, record_submission
from chatspace.layout import Layout
from tests.conftest import SpecMaker, texts, write_parquet
from tests.vector_runs import random_vectors, vector_run


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "submitit"])
def test_submit_returns_at_once_and_wait_ends_with_the_vectors(
    executor: chatspace.api.ExecutorName, make_spec: SpecMaker
) -> None:
    started = time.monotonic()
    cluster = "local" if executor == "submitit" else None
    run = chatspace.submit(make_spec(slices={"count": 2}), executor=executor, cluster=cluster)
    assert not run.is_complete()
    assert time.monotonic() - started < 30
    assert run.wait(timeout_min=2) is run
    vectors = run.vectors()
    table = run.dataset().to_table()
    assert vectors.shape == (300, run.manifest()["embedding_dim"])
    assert table["row_index"].to_pylist() == list(range(300))
    assert np.array_equal(vectors[7], np.array(table["embedding"][7].as_py(), dtype=np.float32))
    assert chatspace.open_run(run.folder).run_id == run.run_id


@pytest.mark.slow
def test_wait_ends_when_a_local_worker_was_killed(make_spec: SpecMaker, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": texts(30_000)})
    run = chatspace.submit(make_spec(dataset={"path": str(data)}), executor="local")
    deadline = time.monotonic() + 60
    while run.status().splits[0].shards_done == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (manifest,) = (run.folder / "tasks").glob("*.json")
    os.kill(json.loads(manifest.read_text())["attempts"][0]["pid"], signal.SIGKILL)
    with pytest.raises(IncompleteError, match="killed by SIGKILL"):
        run.wait(timeout_min=1)


@pytest.mark.slow
def test_wait_after_a_repair_does_not_stumble_over_the_old_failure(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    spec = make_spec()
    data = tmp_path / "data" / "docs.parquet"
    run = chatspace.submit(spec, executor="local")
    data.rename(tmp_path / "away")
    with pytest.raises(IncompleteError, match=r"Nothing is running any more.*docs\.parquet"):
        run.wait(timeout_min=1)
    (tmp_path / "away").rename(data)
    again = chatspace.submit(spec, executor="local")
    assert again.wait(timeout_min=2).is_complete()
    assert chatspace.submit(spec, executor="local").is_complete()


@pytest.mark.slow
def test_run_goes_on_when_the_process_that_submitted_it_ends(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(make_spec().model_dump(mode="json", exclude_unset=True)))
    code = "import chatspace, sys; print(chatspace.submit(sys.argv[1]).run_id)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    run = chatspace.open_run(done.stdout.strip(), workspace=str(tmp_path / "ws"))
    assert not run.is_complete()
    assert run.wait(timeout_min=2).vectors().shape[0] == 300


@pytest.mark.slow
def test_submit_while_a_process_works_on_the_run_is_refused(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": texts(5_000)})
    spec = make_spec(dataset={"path": str(data)})
    run = chatspace.submit(spec, executor="local")
    with pytest.raises(UnfitEnvironmentError, match="active jobs"):
        chatspace.submit(spec, executor="submitit", cluster="local")
    assert run.wait(timeout_min=2).is_complete()


def test_submit_mapping_is_validated_like_a_file() -> None:
    with pytest.raises(chatspace.errors.SpecError, match="Did you mean dataset"):
        chatspace.submit({"kind": "embed", "name": "x", "datset": {}})


def test_submit_unknown_executor_names_the_known_ones(make_spec: SpecMaker) -> None:
    with pytest.raises(InputError, match="local, sbatch, submitit"):
        chatspace.submit(make_spec(), executor="slurm")  # type: ignore[arg-type]


def test_vectors_before_the_gather_says_what_to_run(make_spec: SpecMaker) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    with pytest.raises(IncompleteError, match="chatspace gather"):
        run.vectors()


def test_vectors_of_a_run_without_a_shard_says_which_and_how_it_is_done_again(
    tmp_path: Path,
) -> None:
    plan = vector_run(tmp_path, random_vectors(50))
    path = tmp_path / plan.splits[0].output_dir / "shard-00002.parquet"
    path.unlink()
    with pytest.raises(IncompleteError) as caught:
        chatspace.Run(plan).vectors()
    message = str(caught.value)
    assert message.startswith(f"Missing shard: {path}; No such file. Not complete: ")
    assert "1 of 4 shards missing" in message
    assert "Run just those: chatspace " in message
    assert message.count(str(path)) == 1


def test_wait_ends_with_a_timeout_and_the_state(make_spec: SpecMaker) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    with pytest.raises(TimeoutError, match="incomplete"):
        run.wait(timeout_min=0)


def test_open_run_unknown_lists_the_known(make_spec: SpecMaker, tmp_path: Path) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    with pytest.raises(InputError, match=run.run_id):
        chatspace.open_run("nope", workspace=str(tmp_path / "ws"))


class FakeScheduler:
    """Takes scripts and keeps their texts; its jobs stay in one state until they are cancelled."""

    def __init__(self, states: dict[str, str] | None = None) -> None:
        self.submitted: list[Path] = []
        self.cancelled: list[str] = []
        self._states = states or {}

    def check(self, script: str) -> None:
        assert "#SBATCH" in script

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        self.submitted.append(script)
        return str(100 + len(self.submitted))

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        return self._states

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids


def test_resubmit_sends_what_is_missing_in_as_many_tasks_as_asked_for(
    make_spec: SpecMaker,
) -> None:
    run, slurm = chatspace.Run(set_up(make_spec(slices={"count": 4})).plan), FakeScheduler()
    done = run.resubmit(
        max_tasks=2, overrides=["slurm.time=00:07:00"], doctor=False, scheduler=slurm
    )
    assert (done.n_missing, [job.count for job in done.submissions]) == (10, [2, 1])
    array, gather = slurm.submitted
    assert "#SBATCH --array=0-1" in array.read_text()
    assert "#SBATCH --time=00:07:00" in array.read_text()
    assert gather.name == "gather.slurm"


def test_cancel_names_the_jobs_that_it_cancelled(make_spec: SpecMaker) -> None:
    run, slurm = chatspace.Run(set_up(make_spec()).plan), FakeScheduler({"7_0": "PENDING"})
    assert run.cancel(scheduler=slurm) == []
    record_submission(run.plan, job_id="7", executor="sbatch", split="train", offset=0, count=1)
    assert run.cancel(scheduler=slurm) == ["7"] == slurm.cancelled


def test_cancel_of_a_complete_run_leaves_the_process_that_is_just_ending(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(50))
    code = "import time; time.sleep(60)  # chatspace"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        job_id = local_job_id(process.pid)
        record_submission(plan, job_id=job_id, executor="local", split="train", offset=0, count=1)
        deadline = time.monotonic() + 20
        while active_jobs(plan, FakeScheduler()) != [job_id]:  # until its name is its own
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert chatspace.Run(plan).cancel(scheduler=FakeScheduler()) == []
        assert process.poll() is None
        (tmp_path / plan.splits[0].output_dir / "shard-00000.parquet").unlink()
        assert chatspace.Run(plan).cancel(scheduler=FakeScheduler()) == [job_id]
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_logs_are_those_of_failed_tasks_or_of_the_one_that_is_named(make_spec: SpecMaker) -> None:
    run = chatspace.Run(set_up(make_spec(slices={"count": 2})).plan)
    assert run.logs() == "no failed tasks"
    assert run.logs(0) == "==> train 0: planned: no log <=="
    layout = Layout(Path(run.plan.workspace)).run(run.run_id)
    log = run.folder / "logs" / "train-00001.log"
    log.parent.mkdir()
    log.write_text("one\ntwo\nthree\n")
    with EventLog(layout.event_log("train", 1)) as events:
        events.write("failed", error="no such column", cause="input")
    assert run.logs(lines=2) == f"==> train 1: failed: {log} <==\ntwo\nthree"
    assert run.logs("train/1", lines=1) == f"==> train 1: failed: {log} <==\nthree"
    with pytest.raises(InputError, match="train/0 to train/1"):
        run.logs(2)


def test_run_in_a_notebook_shows_how_far_it_is(make_spec: SpecMaker) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    assert repr(run) == f"Run({run.run_id!r}, folder={str(run.folder)!r})"
    assert "0 of 300 rows" in run._repr_html_()


def test_runs_are_the_latest_first_and_open_as_runs(make_spec: SpecMaker, tmp_path: Path) -> None:
    workspace = str(tmp_path / "ws")
    first = chatspace.Run(set_up(make_spec(name="first")).plan)
    time.sleep(1.1)  # plans are dated to the second
    second = chatspace.Run(set_up(make_spec(name="second", model={"max_tokens": 8})).plan)
    found = chatspace.runs(workspace)
    assert [run.run_id for run in found] == [second.run_id, first.run_id]
    assert found[-1].plan.plan_sha256 == first.plan.plan_sha256
    assert isinstance(found[:1], chatspace.Runs)
    assert [run.run_id for run in found[:1]] == [second.run_id]
    assert [line.split()[0] for line in repr(found).splitlines()][1:] == [
        second.run_id,
        first.run_id,
    ]
    assert first.run_id in found._repr_html_()


def test_runs_of_an_empty_or_unknown_workspace(tmp_path: Path) -> None:
    found = chatspace.runs(str(tmp_path))
    assert len(found) == 0
    assert repr(found) == f"no runs in {tmp_path}"
    with pytest.raises(InputError, match="No workspace"):
        chatspace.runs(str(tmp_path / "nothing"))
