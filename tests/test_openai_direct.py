from __future__ import annotations

from pathlib import Path

from chatspace.jobs.gather import gather_run
from tests.openai_runs import N_ROWS, check_vectors, plan_of, request_files, run_here
from tests.openai_server import FakeOpenAI


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


def test_run_slice_asks_for_dimensions(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server, model={"dimensions": 4})
    run_here(plan)
    check_vectors(plan, dim=4)
    assert plan.splits[0].output_dir == "embeddings/tiny-4/docs/train"
