import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from chatspace.shards.records import ShardRecord
from chatspace.shards.verify import check_shard, repeated_ids
from tests.shards import commit, span_of, store_at, table_of


def problems_of(folder: Path, record: ShardRecord) -> tuple[str, ...]:
    return check_shard(store_at(folder), span_of(record.shard_index), record).problems


def test_check_shard_whole_has_no_problems(tmp_path: Path) -> None:
    record = commit(store_at(tmp_path), 1)
    check = check_shard(store_at(tmp_path), span_of(1), record)
    assert check.problems == ()
    assert len(check.id_hashes) == record.rows


def test_check_shard_any_flipped_bit_is_found(tmp_path: Path) -> None:
    record = commit(store_at(tmp_path), 0)
    path = tmp_path / "shard-00000.parquet"
    content = path.read_bytes()
    rng = random.Random(0)
    for position in rng.sample(range(len(content)), 40):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        (line,) = problems_of(tmp_path, record)
        assert line.startswith(f"Checksum differs: {path}")
        assert line.endswith(f"recorded {record.sha256[:12]}.")
    path.write_bytes(content)
    assert problems_of(tmp_path, record) == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_shard_vectors_that_are_not_finite(tmp_path: Path, value: float) -> None:
    record = commit(store_at(tmp_path), 0, value=value)
    (line,) = problems_of(tmp_path, record)
    assert "vectors hold NaN or infinity" in line
    assert "shard-00000.parquet" in line


@pytest.mark.parametrize("rows", [[4, 5, 6, 8], [3, 5, 6, 7], [4, 6, 5, 7], [4, 5, 5, 6]])
def test_check_shard_row_index_outside_or_out_of_order(tmp_path: Path, rows: list[int]) -> None:
    table = table_of(span_of(1))
    table = table.set_column(1, "row_index", pa.array(rows, pa.int64()))
    record = store_at(tmp_path).commit(span_of(1), table, skipped={}, truncated=0)
    (line,) = problems_of(tmp_path, record)
    assert "row_index is not ascending within the shard's rows 4 to 7" in line


def test_check_shard_counts_that_differ_from_the_record(tmp_path: Path) -> None:
    record = commit(store_at(tmp_path), 0)
    lines = problems_of(tmp_path, replace(record, rows=3, embedding_dim=8))
    assert len(lines) == 2
    assert "rows=4; recorded 3" in lines[0]
    assert "embedding_dim=3; recorded 8" in lines[1]


def test_check_shard_all_rows_skipped_is_fine(tmp_path: Path) -> None:
    table = table_of(span_of(0)).slice(0, 0)
    record = store_at(tmp_path).commit(span_of(0), table, skipped={"empty_text": 4}, truncated=0)
    assert (record.rows, record.min_norm, record.embedding_dim) == (0, None, 3)
    assert problems_of(tmp_path, record) == ()


def test_repeated_ids_across_shards_are_counted(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    ids = {0: ["a", "b", "c", "d"], 1: ["e", "b", "f", "d"]}
    checks = [check_shard(store, span_of(i), commit(store, i, ids=ids[i])) for i in ids]
    assert repeated_ids(checks[:1]) == repeated_ids([]) == []
    assert repeated_ids(checks) == ["ids repeat in 2 rows of the split."]
