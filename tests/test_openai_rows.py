from __future__ import annotations

from pathlib import Path

import pytest

from chatspace.errors import InputError, ModelError
from chatspace.jobs.gather import gather_run
from tests.conftest import write_parquet
from tests.openai_runs import (
    N_ROWS,
    empty_at_first,
    long_rows,
    plan_of,
    request_files,
    rows_of,
    run_here,
)
from tests.openai_server import FakeOpenAI


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


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_output_is_cut_and_quantised(server: FakeOpenAI, tmp_path: Path, dtype: str) -> None:
    plan = plan_of(tmp_path, server, output={"dtype": dtype, "truncate_dim": 8})
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert (gathered.content["dtype"], gathered.content["embedding_dim"]) == (dtype, 8)
    assert gathered.content["min_norm"] == pytest.approx(1, abs=1e-3)  # scaled to one again
