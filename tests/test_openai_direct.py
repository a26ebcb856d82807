from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatspace.errors import (
    InputError,
    InterruptedRun,
    ModelError,
    SpecError,
    UnfitEnvironmentError,
)
from chatspace.jobs.gather import gather_run
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
from tests.openai_server import KEY, FakeOpenAI, Fault, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs this
    with serving() as fake:
        yield fake


def test_run_slice_gives_each_row_its_vector_and_gathers(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.delay_s = 0.05
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)
    assert server.n_requests == N_ROWS // 5
    assert max(map(len, server.requests)) == 5
    assert server.most_at_once == 2
    assert {body["encoding_format"] for body in server.bodies} == {"base64"}
    assert request_files(plan) == []
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["rows_total"] == N_ROWS
    assert gathered.content["embedding_dim"] == 16
    assert gathered.content["n_tokens"] == sum(
        len(text.split()) for texts in server.requests for text in texts
    )


def test_run_slice_again_sends_nothing(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server)
    run_here(plan)
    before = server.n_requests
    run_here(plan)
    assert server.n_requests == before


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


def test_run_slice_asks_for_dimensions(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server, model={"dimensions": 4})
    run_here(plan)
    check_vectors(plan, dim=4)
    assert plan.splits[0].output_dir == "embeddings/tiny-4/docs/train"


@pytest.mark.parametrize("asked_s", [0.7])
def test_run_slice_obeys_retry_after_with_all_its_requests(
    server: FakeOpenAI, tmp_path: Path, asked_s: float
) -> None:
    server.faults.append(Fault("status", status=429, headers={"Retry-After": str(asked_s)}))
    run_here(plan_of(tmp_path, server, requests={"concurrency": 1}))
    assert server.times[1] - server.times[0] >= asked_s


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
    server.faults.clear()
    run_here(plan)
    check_vectors(plan)
    assert set(server.served.values()) == {1}


def test_row_too_long_for_the_endpoint_is_cut_and_counted(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.limit = 20
    plan = plan_of(tmp_path, server, dataset=long_rows(tmp_path))
    run_here(plan)
    (gathered,) = gather_run(plan)
    assert gathered.content["rows_truncated"] == 2
    assert len(rows_of(plan)) == N_ROWS
    assert set(server.served.values()) == {1}  # what is refused is not charged
    kept = [text for text in server.served if text.startswith(("word7x", "word33x"))]
    assert [15 < len(text.split()) <= 20 for text in kept] == [True, True]


def test_row_too_long_is_skipped_and_counted(server: FakeOpenAI, tmp_path: Path) -> None:
    server.limit = 20
    dataset, model = long_rows(tmp_path), {"on_too_long": "skip"}
    plan = plan_of(tmp_path, server, dataset=dataset, model=model)
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["rows_skipped"] == {"too_long": 2}
    assert {7, 33}.isdisjoint(row["row_index"] for row in rows_of(plan))
    assert gathered.content["rows_embedded"] == N_ROWS - 2


def test_row_too_long_is_an_error_that_names_the_row(server: FakeOpenAI, tmp_path: Path) -> None:
    server.limit = 20
    dataset, model = long_rows(tmp_path), {"on_too_long": "error"}
    plan = plan_of(tmp_path, server, dataset=dataset, model=model, requests={"concurrency": 1})
    with pytest.raises(InputError, match=r"row_index=7; the endpoint says: .* 50 tokens"):
        run_here(plan)


def test_rows_that_are_empty_are_never_sent(server: FakeOpenAI, tmp_path: Path) -> None:
    rows = ["a b", "", None, "  ", "c d"] * 4
    path = write_parquet(tmp_path / "holes.parquet", {"text": rows})
    plan = plan_of(tmp_path, server, dataset={"source": "parquet", "path": str(path)})
    run_here(plan)
    (gathered,) = gather_run(plan)
    assert gathered.content["rows_skipped"] == {"empty_text": 8, "null_text": 4}
    assert set(server.served) == {"a b", "c d"}


def test_shards_without_a_vector_wait_until_the_length_is_known(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, dataset=empty_at_first(tmp_path))
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["rows_embedded"] == 20
    assert gathered.content["rows_skipped"] == {"empty_text": 60}
    assert gathered.content["embedding_dim"] == 16
    assert request_files(plan) == []


def test_rows_that_are_all_empty_are_an_error_at_the_end(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, dataset=empty_at_first(tmp_path, n_full=0))
    with pytest.raises(ModelError, match=r"Length .* not known: shard 0 .*model\.dimensions"):
        run_here(plan)
    assert server.n_requests == 0


def test_answers_of_another_model_are_refused_until_the_first_is_back(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, requests={"concurrency": 1})
    server.faults.extend([Fault("shuffle")] * 2 + [Fault("status", status=400)] * 9)
    with pytest.raises(InputError):
        run_here(plan)
    server.faults.clear()
    server.dim = 8
    with pytest.raises(ModelError, match="vectors of 8 numbers where 16 are due"):
        run_here(plan)
    server.dim = 16
    run_here(plan)
    check_vectors(plan)


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_output_is_cut_and_quantised(server: FakeOpenAI, tmp_path: Path, dtype: str) -> None:
    plan = plan_of(tmp_path, server, output={"dtype": dtype, "truncate_dim": 8})
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert (gathered.content["dtype"], gathered.content["embedding_dim"]) == (dtype, 8)
    assert gathered.content["min_norm"] == pytest.approx(1, abs=1e-3)  # scaled to one again


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


def test_key_stands_in_no_file_and_no_message(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-99999999999999999999"
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    plan = plan_of(tmp_path, server)
    with pytest.raises(UnfitEnvironmentError, match="Key refused") as caught:
        run_here(plan)
    failing = start_task(plan)
    said = failing.communicate(timeout=60)[1].decode()
    assert failing.returncode == 4
    assert "Key refused" in said
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults.append(Fault("status", status=500, message=f"secret {KEY} is in here"))
    task = start_task(plan)
    said += task.communicate(timeout=60)[1].decode()
    assert task.returncode == 0
    check_vectors(plan)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8
    for key in (wrong, KEY):
        assert not any(key.encode() in content for content in written)
        assert key not in said + str(caught.value)


def test_run_without_a_key_that_is_needed_fails(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    plan = plan_of(tmp_path, server, model={"base_url": "https://api.openai.com/v1"})
    with pytest.raises(UnfitEnvironmentError, match="No key: OPENAI_API_KEY is not set"):
        run_here(plan)


def test_server_that_wants_no_key_gets_none(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.key = None
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)


def test_key_comes_from_the_env_file(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)
    assert "OPENAI_API_KEY" not in os.environ


def test_azure_is_asked_by_deployment_and_version(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url.removesuffix("/v1"))
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-account")
    plan = plan_of(tmp_path, server, model={"base_url": None, "api_version": "2024-10-21"})
    run_here(plan)
    check_vectors(plan)
    assert set(server.paths) == {
        "/openai/deployments/tiny/embeddings?api-version=2024-10-21",
    }


def test_run_slice_without_leave_to_spend_sends_nothing(server: FakeOpenAI, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spending\.execute=false"):
        plan_of(tmp_path, server, spending={"execute": False})
    assert server.paths == []
