"""The promises of the whole: the same shards whatever happens in between."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from chatspace.errors import ExitCode, IncompleteError, OutputError
from chatspace.jobs.gather import gather_run, verify_run
from chatspace.jobs.local import slices_of, task_command
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.run import Run
from tests.conftest import SpecMaker, texts, write_parquet

EPOCH = "1700000000"


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    monkeypatch.setenv("CHATSPACE_THREADS", "1")


def plan_path(plan: Plan) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).plan


def run_all(plan: Plan) -> None:
    """Runs every slice in this process, as an array task would."""
    for split, slice_ in slices_of(plan):
        run_task(plan_path(plan), split.name, slice_.index, of=len(split.slices))


def digests(plan: Plan) -> dict[str, str]:
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.parquet"))
    }


@pytest.mark.slow
def test_run_one_three_and_eight_slices_give_the_same_files(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    found = {}
    for count in (1, 3, 8):
        spec = make_spec(workspace=str(tmp_path / f"ws{count}"), slices={"count": count})
        plan = set_up(spec).plan
        assert len(plan.splits[0].slices) == count
        run_all(plan)
        assert verify_run(plan) == {"train": 10}
        found[count] = digests(plan)
    assert len(found[1]) == 10
    assert found[1] == found[3] == found[8]


@pytest.mark.slow
def test_task_killed_five_times_then_run_again_gives_the_same_files(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": texts(3000, seed=1)})
    dataset = {"path": str(data)}
    calm = set_up(make_spec(workspace=str(tmp_path / "calm"), dataset=dataset)).plan
    run_all(calm)
    killed = set_up(make_spec(workspace=str(tmp_path / "killed"), dataset=dataset)).plan
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    shards_after = []
    for _ in range(5):
        kill_at_random_moment(killed, rng)
        shards_after.append(len(digests(killed)))
    print(f"seed={seed} shards after each kill: {shards_after} of {killed.splits[0].n_shards}")
    assert shards_after[-1] < killed.splits[0].n_shards, "killed too late to show anything"
    run_all(killed)
    assert digests(killed) == digests(calm)
    assert verify_run(killed) == {"train": killed.splits[0].n_shards}
    folder = Path(killed.workspace) / killed.splits[0].output_dir
    assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []


def kill_at_random_moment(plan: Plan, rng: random.Random) -> None:
    """Starts the task, waits for its first new shard, and kills it somewhat later."""
    ((split, slice_),) = slices_of(plan)
    before = len(digests(plan))
    process = subprocess.Popen(
        task_command(plan, split, slice_),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(digests(plan)) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.4))
    process.kill()
    process.wait(timeout=20)


@pytest.mark.slow
def test_task_stopped_by_each_signal_exits_75_and_resumes(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": texts(20_000, seed=2)})
    plan = set_up(make_spec(dataset={"path": str(data)})).plan
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        before = len(digests(plan))
        ((split, slice_),) = slices_of(plan)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(task_command(plan, split, slice_), stdout=log, stderr=log)
            wait_until(process, partial(has_shards, plan, before + 2))
            process.send_signal(number)
            process.send_signal(number)  # SLURM's own and the batch script's copy
            assert process.wait(timeout=60) == ExitCode.INTERRUPTED, (tmp_path / "log").read_text()
        assert has_shards(plan, before + 2)
    assert verify_of_present(plan)


def verify_of_present(plan: Plan) -> bool:
    with pytest.raises(IncompleteError, match="shards missing") as caught:
        verify_run(plan)
    return f"chatspace run {plan_path(plan).parent}" in str(caught.value)


@pytest.mark.slow
def test_run_finished_run_does_nothing_and_says_so(
    make_spec: SpecMaker, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = set_up(make_spec()).plan
    run_all(plan)
    stamps = {p: p.stat().st_mtime_ns for p in Path(plan.workspace).rglob("*.parquet")}
    ((split, slice_),) = slices_of(plan)
    done = subprocess.run(
        [*task_command(plan, split, slice_)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in Path(plan.workspace).rglob("*.parquet")} == stamps
    probe = (
        "import sys, chatspace.jobs.task as t; from pathlib import Path; "
        f"t.run_task(Path({str(plan_path(plan))!r}), 'train', 0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60).returncode == 0


@pytest.mark.slow
def test_run_vectors_stand_in_input_order_and_equal_the_model_s_own(
    make_spec: SpecMaker, tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    rows = texts(100, seed=3)
    rows[17], rows[40], rows[41] = "", "   \n", None  # type: ignore[call-overload]
    data = write_parquet(tmp_path / "some" / "rows.parquet", {"text": rows})
    plan = set_up(make_spec(dataset={"path": str(data)})).plan
    run_all(plan)
    run = Run(plan)
    manifest = run.manifest()
    assert manifest["rows_skipped"] == {"empty_text": 2, "null_text": 1}
    assert manifest["rows_embedded"] == 97
    kept = [text for text in rows if text and text.strip()]
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(kept)
    vectors = run.vectors()
    assert vectors.shape == (97, manifest["embedding_dim"])
    cosine = (
        (vectors * expected).sum(1)
        / np.linalg.norm(vectors, axis=1)
        / np.linalg.norm(expected, axis=1)
    )
    assert cosine.min() >= 0.99999
    assert run.dataset().to_table(columns=["row_index"])["row_index"].to_pylist() == [
        i for i in range(100) if i not in (17, 40, 41)
    ]


@pytest.mark.slow
def test_run_strange_rows_are_embedded_or_counted(make_spec: SpecMaker, tmp_path: Path) -> None:
    rows = ["", None, " \t\n", "word " * 200_000, "😀🎉", "שלום עולם", "a\x00b", "x", "\u200b"]
    data = write_parquet(tmp_path / "strange" / "rows.parquet", {"text": rows})
    plan = set_up(make_spec(dataset={"path": str(data)})).plan
    run_all(plan)
    manifest = Run(plan).manifest()
    assert manifest["rows_embedded"] + sum(manifest["rows_skipped"].values()) == len(rows)
    assert manifest["rows_truncated"] == 1
    table = Run(plan).dataset().to_table()
    kept = dict(zip(table["row_index"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert {i: kept[i] for i in (3, 4, 5, 6, 7)} == {i: rows[i] for i in (3, 4, 5, 6, 7)}


@pytest.mark.slow
def test_gather_deleted_and_damaged_shards_are_named_and_repaired(make_spec: SpecMaker) -> None:
    plan = set_up(make_spec(slices={"count": 5}, slurm={"profile": "generic"})).plan
    run_all(plan)
    before = digests(plan)
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    (folder / "shard-00003.parquet").unlink()
    os.truncate(folder / "shard-00008.parquet", 1000)
    with pytest.raises(IncompleteError, match=r"2 of 10 shards missing.*shards 3,8.*--array=1,4"):
        gather_run(plan)
    run_all(plan)
    assert digests(plan) == before
    gather_run(plan)


@pytest.mark.slow
def test_setup_output_of_another_plan_is_refused_by_name(make_spec: SpecMaker) -> None:
    plan = set_up(make_spec()).plan
    run_all(plan)
    before = digests(plan)
    with pytest.raises(OutputError, match=plan.run_id):
        set_up(make_spec(model={"max_tokens": 64}))
    assert digests(plan) == before
    assert len(list((Path(plan.workspace) / "runs").iterdir())) == 1


def test_embedding_row_has_the_documented_columns(make_spec: SpecMaker) -> None:
    plan = set_up(make_spec(dataset={"max_rows": 20})).plan
    run_all(plan)
    path = Path(plan.workspace) / plan.splits[0].output_dir / "shard-00000.parquet"
    names = "id source dataset split row_index text metadata embedding model created_at run_id"
    assert pq.read_schema(path).names == names.split()


@pytest.mark.slow
def test_run_says_what_a_second_interrupt_does_and_does_it(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": texts(20_000, seed=3)})
    plan = set_up(make_spec(dataset={"path": str(data)})).plan
    folder = Layout(Path(plan.workspace)).run(plan.run_id).folder
    command = [sys.executable, "-u", "-m", "chatspace", "run", str(folder)]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        wait_until(process, partial(has_shards, plan, 2))
        process.send_signal(signal.SIGINT)
        wait_until(process, lambda: "Ctrl-C again" in (tmp_path / "out").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    said = (tmp_path / "out").read_text()
    assert f"chatspace: Interrupted: {plan.run_id}. Run it again to resume" in said
    assert "Traceback" not in said
    assert verify_of_present(plan)


def has_shards(plan: Plan, count: int) -> bool:
    return len(digests(plan)) >= count


def wait_until(process: subprocess.Popen[bytes], is_so: Callable[[], bool]) -> None:
    """Waits for something that a process does while it lives."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
