from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.shards.table import embedding_matrix, embedding_schema, embedding_table
from tests.shards import FakeRows


def rows_of(n: int) -> FakeRows:
    return FakeRows(
        row_index=np.arange(n, dtype=np.int64) * 2,
        ids=pa.array([f"id-{i}" for i in range(n)], pa.string()),
        texts=[f"text {i} 🙂\0" for i in range(n)],
        metadata=pa.array(['{"a": 1}'] * n, pa.string()),
    )


def table_of(vectors: np.ndarray, **options: Any) -> pa.Table:
    settings: dict[str, Any] = {
        "source": "parquet",
        "dataset": "d",
        "split": "train",
        "model": "m/x",
        "created_at": "2026-01-02T03:04:05.000006Z",
        "run_id": "r-1",
        "keep_text": True,
    }
    return embedding_table(rows=rows_of(len(vectors)), vectors=vectors, **(settings | options))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedding_table_round_trips_through_parquet(tmp_path: Path, dtype: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 7)).astype(dtype)
    table = table_of(vectors)
    assert table.schema.equals(embedding_schema(7, dtype))
    pq.write_table(table, tmp_path / "t.parquet")
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.column_names == [
        "id", "source", "dataset", "split", "row_index", "text", "metadata", "embedding", "model",
        "created_at", "run_id",
    ]  # fmt: skip
    assert np.array_equal(embedding_matrix(back["embedding"]), vectors)
    first = back.slice(0, 1).to_pylist()[0]
    assert first["text"] == "text 0 🙂\0"
    assert first["created_at"] == datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert first["run_id"] == "r-1" and first["metadata"] == '{"a": 1}'


def test_embedding_table_without_rows_keeps_the_schema() -> None:
    table = table_of(np.empty((0, 7), np.float32))
    assert table.num_rows == 0 and table.schema.equals(embedding_schema(7, "float32"))
    assert embedding_matrix(table["embedding"]).shape == (0, 7)


def test_embedding_table_without_text_stores_null() -> None:
    table = table_of(np.ones((3, 2), np.float32), keep_text=False)
    assert table["text"].null_count == 3 and table["text"].type == pa.string()


def test_embedding_table_does_not_copy_the_vectors() -> None:
    vectors = np.ones((3, 2), np.float32)
    values = table_of(vectors)["embedding"].chunk(0).values
    assert values.buffers()[1].address == vectors.ctypes.data


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedding_matrix_of_a_slice_starts_at_its_offset(dtype: str) -> None:
    vectors = np.arange(20, dtype=dtype).reshape(10, 2)
    column = table_of(vectors)["embedding"]
    part = embedding_matrix(column.slice(3, 4))
    assert np.array_equal(part, vectors[3:7])
    assert np.shares_memory(part, vectors)
    assert np.array_equal(embedding_matrix(column.chunk(0).slice(9)), vectors[9:])


def test_embedding_matrix_of_several_chunks_joins_them() -> None:
    a, b = np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)
    column = pa.chunked_array(
        [table_of(a)["embedding"].chunk(0), table_of(b)["embedding"].chunk(0)]
    )
    assert np.array_equal(embedding_matrix(column), np.concatenate([a, b]))


def test_embedding_matrix_of_no_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed_size_list"):
        embedding_matrix(pa.array([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="null_count=1"):
        embedding_matrix(pa.array([[1.0], None], pa.list_(pa.float32(), 1)))


def test_table_module_does_not_import_torch() -> None:
    code = "import sys, chatspace.shards.table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
