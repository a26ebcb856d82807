"""Batches that a run left with the endpoint: `chatspace cancel` names them, and may cancel them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace.errors import UnfitEnvironmentError
from chatspace.mend.cancel import cancel_batches, left_batches
from chatspace.plan.model import Plan
from chatspace.run import Run
from tests.openai_runs import check_vectors, plan_of, request_files, run_here, start_task
from tests.openai_server import FakeOpenAI
from tests.runs import FakeScheduler
from tests.test_openai_batching import BATCH, ledger_path, wait_for
from tests.vector_runs import random_vectors, vector_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stopped(server: FakeOpenAI, tmp_path: Path) -> Plan:
    """A run that was stopped while the endpoint works on three batches."""
    server.polls = 10**9
    plan = plan_of(tmp_path, server, requests={**BATCH, "poll_s": 600})
    task = start_task(plan)
    last = ledger_path(plan, 2)
    wait_for(lambda: last.exists() and json.loads(last.read_text())["batch_id"], task)
    task.terminate()
    assert task.wait(timeout=20) == 75
    return plan_of(tmp_path, server, requests=BATCH)


def folder_of(plan: Plan) -> Path:
    return Path(plan.workspace) / "runs" / plan.run_id


def test_cancel_names_the_batches_that_go_on_and_asks_nobody(
    stopped: Plan, server: FakeOpenAI, chatspace: Command
) -> None:
    seen = list(server.paths)
    code, said, errors = chatspace("cancel", folder_of(stopped))
    assert (code, errors) == (0, "")
    assert said == (
        f"{stopped.run_id}: nothing is queued or running\n"
        "3 batches left with the endpoint, to go on there and be charged:\n"
        "  batch_0  train shard 0\n  batch_1  train shard 1\n  batch_2  train shard 2\n\n"
        f"Next, to fetch what they make:\n  chatspace run {folder_of(stopped)}\n"
        f"or, to cancel them there:\n  chatspace cancel {folder_of(stopped)} --batches\n"
    )
    assert server.paths == seen
    server.polls = 1
    run_here(stopped)
    assert left_batches(stopped) == []
    _, said, _ = chatspace("cancel", folder_of(stopped))
    assert said == f"{stopped.run_id}: nothing is queued or running\n"


def test_notebook_names_the_batches_and_cancels_them_when_asked(
    stopped: Plan, server: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    idle = FakeScheduler({})
    assert Run(stopped).cancel(scheduler=idle) == []
    assert "go on there and be charged: batch_0  train shard 0; batch_1" in caplog.text
    assert {batch["status"] for batch in server.batches.values()} == {"in_progress"}
    assert Run(stopped).cancel(batches=True, scheduler=idle) == []
    assert {batch["status"] for batch in server.batches.values()} == {"cancelling"}


def test_batches_that_were_cancelled_are_fetched_and_the_rest_is_asked_for_once(
    stopped: Plan, server: FakeOpenAI, chatspace: Command
) -> None:
    code, said, errors = chatspace("cancel", folder_of(stopped), "--batches")
    assert (code, errors) == (0, "")
    assert "3 batches at the endpoint:\n  batch_0  train shard 0: cancelling\n" in said
    assert f"and the rest:\n  chatspace run {folder_of(stopped)}\n" in said
    assert {batch["status"] for batch in server.batches.values()} == {"cancelling"}
    server.polls = 1
    run_here(stopped)
    check_vectors(stopped)
    assert len(server.batches) == 6
    assert set(server.served.values()) == {1}
    assert request_files(stopped) == []


def test_cancel_again_and_of_batches_that_end_by_themselves_changes_nothing(
    stopped: Plan, server: FakeOpenAI, chatspace: Command
) -> None:
    server.polls = 1
    server.look_at_batch("batch_0")
    del server.batches["batch_1"]
    server.polls = 10**9
    _, first, _ = chatspace("cancel", folder_of(stopped), "--batches")
    _, second, _ = chatspace("cancel", folder_of(stopped), "--batches")
    for said in (first, second):
        assert "batch_0  train shard 0: completed\n" in said
        assert f"batch_1  train shard 1: Not there: {server.url} answers 404: " in said
        assert "Check model" not in said  # that is advice for another case
    assert "batch_2  train shard 2: cancelling\n" in first
    assert "batch_2  train shard 2: cancelled\n" in second


def test_batch_whose_answer_was_lost_is_found_and_cancelled(
    stopped: Plan, server: FakeOpenAI
) -> None:
    path = ledger_path(stopped, 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "batch_id": None}))
    absent = ledger_path(stopped, 2)
    absent.write_text(
        json.dumps({**json.loads(absent.read_text()), "batch_id": None, "token": "none"})
    )
    assert left_batches(stopped)[1] == "(may not have been made)  train shard 1"
    assert list(cancel_batches(stopped)) == [
        "batch_0  train shard 0: cancelling",
        "batch_1  train shard 1: cancelling",
        "(may not have been made)  train shard 2: not made",
    ]
    assert json.loads(path.read_text())["batch_id"] == "batch_1"
    del server.batches["batch_2"]
    server.polls = 1
    run_here(stopped)
    check_vectors(stopped)
    assert set(server.served.values()) == {1}


def test_cancel_of_batches_without_an_answer_says_so_and_may_be_repeated(
    stopped: Plan, server: FakeOpenAI, chatspace: Command
) -> None:
    server.failing_looks = 2
    code, _, errors = chatspace("cancel", folder_of(stopped), "--batches")
    assert code == 4 and errors.count("\n") == 1
    assert "No answer: tiny; 2 attempts" in errors and "then run this again" in errors
    assert list(cancel_batches(stopped)) == [
        f"batch_{at}  train shard {at}: cancelling" for at in range(3)
    ]


def test_ledger_of_a_batch_that_somebody_else_cancelled_still_ends_the_task(
    stopped: Plan, server: FakeOpenAI
) -> None:
    for name in server.batches:
        server.cancel_batch(name)
    with pytest.raises(UnfitEnvironmentError, match=r"Batch not finished: batch_\d; cancelled"):
        run_here(stopped)


def test_cancel_of_batches_of_a_run_without_an_endpoint_is_refused(
    tmp_path: Path, chatspace: Command
) -> None:
    plan = vector_run(tmp_path, random_vectors(20))
    code, said, errors = chatspace("cancel", folder_of(plan), "--batches")
    assert (code, said) == (2, "")
    assert errors.startswith("chatspace: No batches: --batches; kind=embed of ")
    assert chatspace("cancel", folder_of(plan))[0] == 0
