from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatspace.errors import InputError, ModelError, UnfitEnvironmentError
from chatspace.jobs.gather import gather_run
from chatspace.layout import Layout
from chatspace.openai_embed import batching
from chatspace.openai_embed.asking import Inputs
from chatspace.openai_embed.batching import batch_file
from chatspace.openai_embed.client import request_body
from chatspace.plan.model import Plan
from tests.conftest import write_parquet
from tests.openai_runs import (
    N_ROWS,
    check_vectors,
    empty_at_first,
    long_rows,
    plan_of,
    request_files,
    rows_of,
    run_here,
    runtime_of,
    start_task,
)
from tests.openai_server import FakeOpenAI

BATCH = {"mode": "batch"}


def ledger_path(plan: Plan, shard: int = 0) -> Path:
    folder = Layout(Path(plan.workspace)).run(plan.run_id).requests("train")
    return folder / f"shard-{shard:05d}.batch.json"


def wait_for(condition: Any, task: Any) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end and task.poll() is None:
        time.sleep(0.01)


def test_batch_run_makes_one_batch_a_shard(server: FakeOpenAI, tmp_path: Path) -> None:
    server.polls = 2
    plan = plan_of(tmp_path, server, requests=BATCH)
    run_here(plan)
    check_vectors(plan)
    assert (len(server.batches), server.n_requests) == (3, 0)
    assert set(server.served.values()) == {1}
    assert request_files(plan) == []
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["n_tokens"] == sum(len(text.split()) for text in server.served)
    lines = [json.loads(line) for line in server.files["file-0"].splitlines()]
    assert {line["url"] for line in lines} == {"/v1/embeddings"}
    assert [len(line["body"]["input"]) for line in lines] == [5, 5, 5, 5]


def test_batch_run_has_no_more_batches_at_once_than_asked(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, requests={**BATCH, "max_batches": 1})
    run_here(plan)
    check_vectors(plan)
    looks = [path for path in server.paths if "/batches" in path]
    made = [at for at, path in enumerate(looks) if path == "/v1/batches"]
    assert made == [0, 2, 4]  # each was looked at before the next was made


def killed_with_batches(server: FakeOpenAI, folder: Path) -> Plan:
    """A run whose task was killed when it knew the ids of its three batches; they end now."""
    server.polls = 10**9
    plan = plan_of(folder, server, requests=BATCH)
    task = start_task(plan)
    wait_for(lambda: len(server.batches) == 3 and len(request_files(plan)) >= 6, task)
    wait_for(lambda: json.loads(ledger_path(plan, 2).read_text())["batch_id"], task)
    os.kill(task.pid, signal.SIGKILL)
    task.wait(timeout=10)
    server.polls = 1
    return plan


def test_task_killed_while_it_waits_finds_its_batches_again(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = killed_with_batches(server, tmp_path)
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 3
    assert set(server.served.values()) == {1}


def test_task_stopped_while_it_waits_exits_75_and_goes_on(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.polls = 10**9
    plan = plan_of(tmp_path, server, requests={**BATCH, "poll_s": 600})
    task = start_task(plan)
    wait_for(lambda: len(server.batches) == 3, task)
    wait_for(lambda: ledger_path(plan, 2).exists(), task)
    task.terminate()
    assert task.wait(timeout=20) == 75
    server.polls = 1
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 3


def test_batch_whose_id_was_never_heard_is_found_by_its_token(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.lose_batch_answer = True  # made, and the connection breaks before its id is sent
    plan = plan_of(tmp_path, server, requests=BATCH)
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 3


def test_task_killed_between_making_a_batch_and_noting_it_makes_no_other(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = killed_with_batches(server, tmp_path)
    for shard in range(3):  # as the file is between the two
        path = ledger_path(plan, shard)
        path.write_text(json.dumps({**json.loads(path.read_text()), "batch_id": None}))
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 3
    assert set(server.served.values()) == {1}


def test_batch_run_outlives_looks_that_fail(server: FakeOpenAI, tmp_path: Path) -> None:
    server.failing_looks = 3
    plan = plan_of(tmp_path, server, requests={**BATCH, "max_batches": 1})
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 3
    assert runtime_of(plan)["n_retries"] == 3


def test_files_are_deleted_at_the_endpoint_once_their_shard_is_there(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.limit = 20  # a batch with rows that are too long gives a file of errors, too
    plan = plan_of(
        tmp_path, server, dataset=long_rows(tmp_path), requests={**BATCH, "max_batches": 1}
    )
    shards = Path(plan.workspace) / plan.splits[0].output_dir
    there: list[int] = []
    server.on_delete = lambda: there.append(len(list(shards.glob("shard-*.parquet"))))
    run_here(plan)
    assert there == [1, 1, 1, 2, 2, 2, 3, 3]
    assert sorted(server.deleted) == sorted(server.files)
    assert request_files(plan) == []


def test_files_that_cannot_be_deleted_are_told_and_lose_nothing(
    server: FakeOpenAI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.failing_deletes = 2
    plan = plan_of(tmp_path, server, requests={**BATCH, "max_batches": 1})
    run_here(plan)
    check_vectors(plan)
    said = [text for text in caplog.messages if text.startswith("file is left at the endpoint")]
    assert said == [f"file is left at the endpoint id=file-{i}: 500 not now" for i in range(2)]
    assert len(server.deleted) == len(server.files) - 2


def test_files_of_a_shard_whose_task_was_killed_after_it_are_deleted_by_the_next(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.batch_ends.extend(["completed", "cancelled"])
    plan = plan_of(tmp_path, server, requests={**BATCH, "max_batches": 1})
    with pytest.raises(UnfitEnvironmentError):
        run_here(plan)
    left = server.keep_file(b"texts of the first shard")
    ledger_path(plan).with_name("shard-00000.files").write_text(f"{left}\n")
    run_here(plan)
    assert sorted(server.deleted) == sorted(server.files)
    assert request_files(plan) == []


@pytest.mark.parametrize("end", ["expired", "failed:token_limit_exceeded"])
def test_what_a_batch_left_undone_goes_into_another(
    server: FakeOpenAI, tmp_path: Path, end: str
) -> None:
    server.batch_ends.append(end)
    plan = plan_of(tmp_path, server, requests=BATCH)
    run_here(plan)
    check_vectors(plan)
    assert len(server.batches) == 4
    assert set(server.served.values()) == {1}


def test_batch_that_is_cancelled_keeps_its_half_and_ends_the_task(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.batch_ends.append("cancelled")
    plan = plan_of(tmp_path, server, requests={**BATCH, "max_batches": 1})
    with pytest.raises(UnfitEnvironmentError, match="Batch not finished: batch_0; cancelled"):
        run_here(plan)
    run_here(plan)
    check_vectors(plan)
    assert set(server.served.values()) == {1}


def test_batch_that_is_refused_ends_the_task(server: FakeOpenAI, tmp_path: Path) -> None:
    server.batch_ends.extend(["failed:model_not_found"] * 3)
    with pytest.raises(ModelError, match="Batch refused: batch_0; model_not_found"):
        run_here(plan_of(tmp_path, server, requests=BATCH))


@pytest.mark.parametrize("how", ["truncate", "skip"])
def test_row_too_long_in_a_batch_is_asked_for_directly(
    server: FakeOpenAI, tmp_path: Path, how: str
) -> None:
    server.limit = 20
    dataset, model = long_rows(tmp_path), {"on_too_long": how}
    plan = plan_of(tmp_path, server, dataset=dataset, model=model, requests=BATCH)
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    is_cut = how == "truncate"
    assert gathered.content["rows_truncated"] == (2 if is_cut else 0)
    assert gathered.content["rows_skipped"] == ({} if is_cut else {"too_long": 2})
    assert len(rows_of(plan)) == N_ROWS - (0 if is_cut else 2)
    assert set(server.served.values()) == {1}


def test_direct_run_refuses_a_shard_that_is_in_a_batch(server: FakeOpenAI, tmp_path: Path) -> None:
    server.polls = 10**9
    plan = plan_of(tmp_path, server, requests=BATCH)
    task = start_task(plan)
    wait_for(lambda: len(server.batches) == 3, task)
    task.kill()
    task.wait(timeout=10)
    again = plan_of(tmp_path, server, requests={"mode": "direct"})
    assert again.run_id == plan.run_id  # how it is asked is no part of the run
    with pytest.raises(InputError, match="Batch under way: shard 0"):
        run_here(again)
    assert server.n_requests == 0


@pytest.mark.parametrize("limit", [{"max_inputs": 12}, {"max_bytes": 700}])
def test_shard_with_more_than_one_batch_takes_gets_several(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    smaller = partial(batching.one_batch, **limit)  # of 20 rows, 5 a request
    monkeypatch.setattr(batching, "one_batch", smaller)
    plan = plan_of(tmp_path, server, requests=BATCH)
    run_here(plan)
    check_vectors(plan)
    files = [server.files[batch["input_file_id"]] for batch in server.batches.values()]
    assert len(files) >= 6
    for lines in (content.splitlines(keepends=True) for content in files):
        n_inputs = sum(len(json.loads(line)["body"]["input"]) for line in lines)
        is_within = n_inputs <= 10 if "max_inputs" in limit else sum(map(len, lines)) <= 700
        assert is_within or len(lines) == 1
    assert set(server.served.values()) == {1} and server.n_requests == 0


def test_batches_of_a_shard_that_follow_each_other_are_no_attempts(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a row that is too long, which is asked for directly; the seventh expires once."""
    monkeypatch.setattr(batching, "one_batch", partial(batching.one_batch, max_inputs=5))
    server.limit = 10
    server.batch_ends.extend(["completed"] * 6 + ["expired"])
    rows = [" ".join(f"w{k}x{at}" for k in range(15 if at % 5 == 0 else 3)) for at in range(40)]
    path = write_parquet(tmp_path / "r.parquet", {"text": rows})
    sections = {"dataset": {"path": str(path)}, "output": {"rows_per_shard": 40}}
    plan = plan_of(tmp_path, server, requests=BATCH, **sections)
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["rows_embedded"] == 40
    assert gathered.content["rows_truncated"] == 8
    attempts = [int(batch["metadata"]["shard"].split()[-1]) for batch in server.batches.values()]
    assert attempts == [1] * 7 + [2, 1]


def test_batch_that_was_made_of_other_texts_is_left_alone(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = killed_with_batches(server, tmp_path)
    ledger = json.loads(ledger_path(plan).read_text())
    ledger_path(plan).write_text(json.dumps({**ledger, "texts_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"Batch of other texts: shard 0; batch_\d was made of"):
        run_here(plan)
    assert ledger_path(plan).exists()
    ledger_path(plan).unlink()
    run_here(plan)
    check_vectors(plan)


def test_one_batch_ends_before_a_limit_and_is_never_empty() -> None:
    groups = [inputs_of(range(at, at + 4)) for at in (0, 4, 8, 12)]
    taken = partial(batching.one_batch, groups, lambda inputs: 10 * len(inputs.rows))
    assert taken() == groups
    assert taken(max_inputs=8) == taken(max_inputs=11) == taken(max_bytes=100) == groups[:2]
    assert taken(max_inputs=1) == taken(max_bytes=1) == groups[:1]


def inputs_of(rows: Iterable[int]) -> Inputs:
    rows = tuple(rows)
    return Inputs(rows=rows, texts=("x",) * len(rows), counts=np.ones(len(rows), np.int64))


def test_batch_file_above_its_limit_is_refused() -> None:
    bodies = [request_body("tiny", ["naïve text"], None)]
    content = batch_file(bodies, 7)
    assert json.loads(content)["body"]["input"] == ["naïve text"]
    assert batch_file(bodies, 7, max_bytes=len(content)) == content
    with pytest.raises(InputError, match=r"shard 7 has a request of .* requests.mode: direct"):
        batch_file(bodies, 7, max_bytes=len(content) - 1)


def test_batch_that_the_account_has_no_longer_names_its_ledger(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.polls = 10**6
    plan = plan_of(tmp_path, server, requests=BATCH)
    task = start_task(plan)
    last = ledger_path(plan, 2)
    wait_for(lambda: last.exists() and json.loads(last.read_text())["batch_id"], task)
    os.kill(task.pid, signal.SIGKILL)
    task.wait(timeout=10)
    server.batches.clear()
    server.polls = 1
    with pytest.raises(ModelError, match=r"Batch not found: .*remove .*shard-00000\.batch\.json"):
        run_here(plan)
    for index in range(3):
        ledger_path(plan, index).unlink()
    run_here(plan)
    check_vectors(plan)


def test_shards_without_a_vector_wait_for_a_batch_with_some(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, requests=BATCH, dataset=empty_at_first(tmp_path))
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert (gathered.content["rows_embedded"], gathered.content["embedding_dim"]) == (20, 16)
    assert (len(server.batches), request_files(plan)) == (1, [])


def test_batch_run_with_rows_that_are_all_empty_is_an_error(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, requests=BATCH, dataset=empty_at_first(tmp_path, n_full=0))
    with pytest.raises(ModelError, match="Length of the vectors is not known"):
        run_here(plan)
