from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from chatspace.errors import InputError, InterruptedRun, ModelError, UnfitEnvironmentError
from chatspace.jobs.gather import gather_run
from chatspace.openai_embed.work import open_session
from tests.openai_runs import (
    N_ROWS,
    check_vectors,
    plan_of,
    request_files,
    rows_of,
    run_here,
    runtime_of,
    stages_told,
    start_task,
)
from tests.openai_server import FakeOpenAI, Fault, vector_of


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=429, headers={"Retry-After": "0.1"}),
        Fault("status", status=429),
        Fault("status", status=500),
        Fault("status", status=503, headers={"retry-after-ms": "50"}),
        Fault("drop"),
        Fault("short"),
        Fault("twice"),
        Fault("shuffle"),
        Fault("nan"),
        Fault("no_json"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{len(fault.headers)}",
)
def test_run_slice_with_a_fault_asks_again_and_loses_nothing(
    server: FakeOpenAI, tmp_path: Path, fault: Fault
) -> None:
    server.faults.append(fault)
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)
    is_an_answer = fault.kind == "shuffle"
    assert server.n_requests == N_ROWS // 5 + (0 if is_an_answer else 1)
    assert runtime_of(plan)["n_retries"] == (0 if is_an_answer else 1)


def test_run_slice_in_a_storm_of_faults_loses_nothing(server: FakeOpenAI, tmp_path: Path) -> None:
    kinds = ["drop", "short", "shuffle", "twice", "nan", "no_json", "drop_after"]
    faults = [Fault(kind) for kind in kinds] + [Fault("status", status=429)] * 4
    random.Random(0).shuffle(faults)
    server.faults.extend(faults)
    plan = plan_of(tmp_path, server, requests={"concurrency": 6})
    run_here(plan)
    check_vectors(plan)
    assert server.n_requests == N_ROWS // 5 + len(faults) - 1  # what is shuffled is an answer


def test_run_slice_when_the_server_hangs_asks_again_after_the_timeout(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.faults.append(Fault("hang"))
    plan = plan_of(tmp_path, server, requests={"timeout_s": 0.4})
    run_here(plan)
    check_vectors(plan)
    assert server.n_requests == N_ROWS // 5 + 1


def test_run_slice_with_wrong_dimension_fails_after_three_answers(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.dim = 8
    server.faults.extend([Fault("wrong_dim")] * 9)
    plan = plan_of(tmp_path, server, model={"dimensions": 8}, requests={"concurrency": 1})
    with pytest.raises(ModelError, match="vectors of 3 numbers where 8 are due"):
        run_here(plan)
    assert server.n_requests == 3


@pytest.mark.parametrize("asked_s", [0.7])
def test_run_slice_obeys_retry_after_with_all_its_requests(
    server: FakeOpenAI, tmp_path: Path, asked_s: float
) -> None:
    server.faults.append(Fault("status", status=429, headers={"Retry-After": str(asked_s)}))
    plan = plan_of(tmp_path, server, requests={"concurrency": 1})
    run_here(plan)
    assert server.times[1] - server.times[0] >= asked_s
    assert stages_told(plan) == ["embedding", "waiting for the limits", "embedding", "done"]


def before(server: FakeOpenAI, seconds: float) -> int:
    """Requests that came within so many seconds of the first."""
    return sum(time_s < server.times[0] + seconds for time_s in server.times)


def test_run_slice_obeys_the_headers_of_a_refusal_with_all_its_requests(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    used_up = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}
    server.faults.append(Fault("status", status=429, headers=used_up))
    server.delay_s = 0.2
    plan = plan_of(tmp_path, server, requests={"concurrency": 2})
    run_here(plan)
    check_vectors(plan)
    # What was under way with the one that was refused, at most one more, and then nothing: left to
    # itself, the other thread asks for nine more in that time.
    assert before(server, 1.9) <= 4
    assert server.n_requests == N_ROWS // 5 + 1


def test_requests_wait_together_where_a_refusal_does_not_say_for_how_long(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.faults.append(Fault("status", status=429))
    server.delay_s = 0.1
    plan = plan_of(tmp_path, server)
    session = open_session(plan, plan.splits[0])
    session.asker.first_backoff_s = 4.0  # it waits for half of that, at least
    with ThreadPoolExecutor(2) as threads:
        texts = [f"text {i}" for i in range(16)]
        answers = list(threads.map(lambda text: session.asker.ask([text], 2), texts))
    session.client.close()
    for text, answer in zip(texts, answers, strict=True):
        np.testing.assert_allclose(answer.vectors[0], vector_of(text, 16), atol=1e-6)
    assert before(server, 1.9) <= 4
    assert server.n_requests == len(texts) + 1


def test_run_slice_without_credit_fails_at_once(server: FakeOpenAI, tmp_path: Path) -> None:
    server.faults.extend([Fault("status", status=429, code="insufficient_quota")] * 9)
    plan = plan_of(tmp_path, server, requests={"concurrency": 1})
    with pytest.raises(UnfitEnvironmentError, match="No credit"):
        run_here(plan)
    assert server.n_requests == 1


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (403, UnfitEnvironmentError, "Key refused"),
        (404, ModelError, "Not there"),
        (400, InputError, "Request refused"),
    ],
)
def test_run_slice_when_refused_fails_at_once(
    server: FakeOpenAI, tmp_path: Path, status: int, error: type[Exception], said: str
) -> None:
    server.faults.extend([Fault("status", status=status)] * 9)
    with pytest.raises(error, match=said):
        run_here(plan_of(tmp_path, server, requests={"concurrency": 1}))
    assert server.n_requests == 1


def test_refusal_that_names_another_field_skips_no_row(server: FakeOpenAI, tmp_path: Path) -> None:
    said = "Invalid 'dimensions': 2048 exceeds the maximum limit of 1536"
    server.faults.extend([Fault("status", status=400, message=said)] * 400)
    plan = plan_of(tmp_path, server, model={"dimensions": 2048, "on_too_long": "skip"})
    with pytest.raises(InputError, match=r"Request refused: .*dimensions"):
        run_here(plan)


def test_run_slice_when_nobody_answers_gives_up_and_keeps_answers(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    requests = {"concurrency": 1, "give_up_min": 0.01}
    server.faults.extend([Fault("shuffle")] * 2 + [Fault("status", status=500)] * 9)
    plan = plan_of(tmp_path, server, requests=requests)
    with pytest.raises(UnfitEnvironmentError, match=r"No answer: tiny; .* the last: 500"):
        run_here(plan)
    assert "shard-00000.journal" in request_files(plan)
    assert stages_told(plan) == ["embedding", "waiting for the endpoint"]
    server.faults.clear()
    run_here(plan)
    check_vectors(plan)
    assert set(server.served.values()) == {1}


def test_killed_task_repeats_at_most_what_was_under_way(server: FakeOpenAI, tmp_path: Path) -> None:
    server.delay_s = 0.1
    plan = plan_of(tmp_path, server, requests={"max_inputs": 2, "concurrency": 3})
    for wanted in (8, 20):
        task = start_task(plan)
        end = time.monotonic() + 60
        while server.n_requests < wanted and time.monotonic() < end and task.poll() is None:
            time.sleep(0.01)
        os.kill(task.pid, signal.SIGKILL)
        task.wait(timeout=10)
    server.delay_s = 0
    run_here(plan)
    check_vectors(plan)
    twice = sum(server.served.values()) - N_ROWS
    assert 0 <= twice <= 2 * 3 * 2  # two kills, three requests of two rows under way
    assert server.n_requests <= N_ROWS // 2 + 2 * 3
    assert request_files(plan) == []


def test_answer_that_is_lost_on_its_way_is_all_that_is_charged_twice(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.faults.append(Fault("drop_after"))
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)
    assert sum(server.served.values()) == N_ROWS + 5


def test_stopped_task_keeps_its_answers_and_exits_75(server: FakeOpenAI, tmp_path: Path) -> None:
    server.delay_s = 0.1
    plan = plan_of(tmp_path, server, requests={"concurrency": 1})
    task = start_task(plan)
    end = time.monotonic() + 60
    while server.n_requests < 3 and time.monotonic() < end and task.poll() is None:
        time.sleep(0.01)
    task.terminate()
    assert task.wait(timeout=30) == InterruptedRun.exit_code
    assert "shard-00000.journal" in request_files(plan)
    server.delay_s = 0
    run_here(plan)
    check_vectors(plan)
    assert set(server.served.values()) == {1}  # the one under way was waited for
    (gathered,) = gather_run(plan)
    assert gathered.content["n_tokens"] == sum(len(row["text"].split()) for row in rows_of(plan))
