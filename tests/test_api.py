from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import chatspace
from chatspace.errors import IncompleteError, InputError, UnfitEnvironmentError
from chatspace.jobs.setup import set_up
from tests.conftest import SpecMaker, texts, write_parquet


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


def test_wait_ends_with_a_timeout_and_the_state(make_spec: SpecMaker) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    with pytest.raises(TimeoutError, match="incomplete"):
        run.wait(timeout_min=0)


def test_open_run_unknown_lists_the_known(make_spec: SpecMaker, tmp_path: Path) -> None:
    run = chatspace.Run(set_up(make_spec()).plan)
    with pytest.raises(InputError, match=run.run_id):
        chatspace.open_run("nope", workspace=str(tmp_path / "ws"))
