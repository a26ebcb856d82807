"""Shards whose rows are chunks: their columns, their records, and what verification sees."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.shards.chunks import count_rows, follow_each_other, with_chunks
from chatspace.shards.gather import prove_coverage
from chatspace.shards.records import ShardSpan
from chatspace.shards.store import ShardStore
from chatspace.shards.task_manifest import TaskManifest, read_task_manifest
from chatspace.shards.verify import check_shard
from tests.shards import OWNER, commit, span_of, store_at, table_of

SPAN = ShardSpan(index=0, row_start=0, row_stop=4)


def chunk_table(
    row_index: list[int], chunk_index: list[int], documents: np.ndarray | None = None
) -> pa.Table:
    """Chunks of the rows of a shard, each a sentence long."""
    n_chunks = len(row_index)
    table = table_of(ShardSpan(index=0, row_start=0, row_stop=n_chunks))
    ids = [f"d{row}#{chunk}" for row, chunk in zip(row_index, chunk_index, strict=True)]
    table = table.set_column(0, "id", pa.array(ids))
    table = table.set_column(1, "row_index", pa.array(row_index, pa.int64()))
    table = table.append_column("model", pa.repeat("tiny", n_chunks))
    index = np.array(chunk_index, dtype=np.int64)
    return with_chunks(
        table,
        chunk_index=index,
        char_start=40 * index,
        char_stop=40 * index + 39,
        documents=documents,
    )


def commit_chunks(folder: Path, row_index: list[int], chunk_index: list[int]) -> ShardStore:
    store = store_at(folder)
    skipped = {"null_text": SPAN.n_rows - chunk_index.count(0)}
    store.commit(SPAN, chunk_table(row_index, chunk_index), skipped=skipped, truncated=0)
    return store


def test_with_chunks_puts_its_columns_where_they_belong() -> None:
    documents = np.arange(4, dtype=np.float32).reshape(2, 2)
    table = chunk_table([0, 0, 2], [0, 1, 0], documents)
    names = "id row_index chunk_index char_start char_stop embedding document_vector model"
    assert table.column_names == names.split()
    assert not table.schema.field("chunk_index").nullable
    assert table["document_vector"].to_pylist() == [[0, 1], None, [2, 3]]
    assert table["char_stop"].to_pylist() == [39, 79, 39]


def test_with_chunks_document_vectors_are_read_back_from_parquet(tmp_path: Path) -> None:
    documents = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    table = chunk_table([0, 0, 0, 3, 3], [0, 1, 2, 0, 1], documents)
    pq.write_table(table, tmp_path / "x.parquet")
    read = pq.read_table(tmp_path / "x.parquet")
    assert read["document_vector"].drop_null().to_pylist() == documents.tolist()
    assert read["document_vector"].null_count == 3


def test_count_rows_counts_rows_and_chunks() -> None:
    assert count_rows(table_of(span_of(0))) == (4, None)
    assert count_rows(chunk_table([0, 0, 2], [0, 1, 0])) == (2, 3)
    assert count_rows(chunk_table([], [])) == (0, 0)


@pytest.mark.parametrize(
    ("row_index", "chunk_index", "is_right"),
    [
        ([], [], True),
        ([7], [0], True),
        ([0, 0, 0, 5, 6, 6], [0, 1, 2, 0, 0, 1], True),
        ([0, 0], [0, 2], False),
        ([0, 0], [1, 2], False),
        ([0, 0, 1], [0, 1, 1], False),
        ([1, 0], [0, 0], False),
        ([0, 0], [0, 0], False),
    ],
)
def test_follow_each_other_rows_ascend_and_chunks_count(
    row_index: list[int], chunk_index: list[int], is_right: bool
) -> None:
    found = follow_each_other(np.array(row_index, np.int64), np.array(chunk_index, np.int64))
    assert found is is_right


def test_commit_counts_input_rows_and_chunks(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    table = chunk_table([0, 0, 0, 2, 3], [0, 1, 2, 0, 0])
    record = store.commit(SPAN, table, skipped={"null_text": 1}, truncated=0)
    assert (record.rows, record.chunks) == (3, 5)
    adopted = store.adopt(SPAN)
    assert adopted is not None and (adopted.rows, adopted.chunks) == (3, 5)
    assert check_shard(store, SPAN, record).problems == ()


def test_commit_a_lost_row_is_an_error_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        store_at(tmp_path).commit(SPAN, chunk_table([0, 0], [0, 1]), skipped={}, truncated=0)


def test_commit_whole_rows_say_nothing_of_chunks(tmp_path: Path) -> None:
    record = commit(store_at(tmp_path), 0)
    assert record.chunks is None
    footer = json.loads(pq.read_metadata(tmp_path / "shard-00000.parquet").metadata[b"chatspace"])
    assert "chunks" not in footer


def test_check_shard_chunks_that_do_not_follow_each_other_are_told(tmp_path: Path) -> None:
    store = commit_chunks(tmp_path, [0, 0, 2], [0, 2, 0])
    record = store.adopt(SPAN)
    assert record is not None
    (line,) = check_shard(store, SPAN, record).problems
    assert "row_index is not ascending" in line


def test_prove_coverage_of_chunks_is_complete(tmp_path: Path) -> None:
    store = commit_chunks(tmp_path, [0, 0, 1, 3], [0, 1, 0, 0])
    coverage = prove_coverage(store, [SPAN], tmp_path / "tasks", verify=True)
    assert coverage.complete and coverage.records[0].chunks == 4


def test_read_task_manifest_of_before_there_were_chunks(tmp_path: Path) -> None:
    record = asdict(commit(store_at(tmp_path), 0))
    del record["chunks"]
    path = tmp_path / "tasks" / "train-00000.json"
    TaskManifest.open(path, OWNER, 0, 1).write()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "shards": [record]}))
    manifest = read_task_manifest(path)
    assert manifest is not None and manifest.shards[0].chunks is None
