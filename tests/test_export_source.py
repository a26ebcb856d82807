from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.errors import IncompleteError, InputError
from chatspace.export.source import (
    BLOCK_BYTES,
    SourceShard,
    VectorSource,
    open_source,
    unit_rows,
)
from chatspace.plan.model import Plan
from chatspace.run import Run
from tests.vector_runs import ROWS_PER_SHARD, random_vectors, vector_run

DTYPES = ("float32", "float16", "int8", "binary")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return vector_run(
        tmp_path_factory.mktemp("run"),
        {"train": random_vectors(50), "test": random_vectors(20, seed=1)},
    )


def test_open_source_gives_all_splits_in_input_order(plan: Plan) -> None:
    source = open_source(plan)
    assert (source.rows, source.splits, source.n_missing) == (70, {"train": 50, "test": 20}, 0)
    vectors = np.concatenate([part for _, part in source.vectors()])
    assert np.array_equal(vectors, np.concatenate([random_vectors(50), random_vectors(20, seed=1)]))
    assert np.array_equal(vectors[:50], Run(plan).vectors("train"))
    ids = [row for table in source.tables(["id"]) for row in table["id"].to_pylist()]
    assert ids[0] == "docs/train/0" and ids[-1] == "docs/test/19"


def test_open_source_of_one_split(plan: Plan) -> None:
    assert open_source(plan, "test").splits == {"test": 20}
    with pytest.raises(InputError, match=r"Unknown split: --split dev; .* has train, test"):
        open_source(plan, "dev")


class Blocks(VectorSource):
    """A source whose blocks are small, so that they and shards do not end together."""

    @property
    def block_rows(self) -> int:
        return 7


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 69))
def test_tables_from_any_row_on_hold_the_rest(plan: Plan, start: int) -> None:
    whole = open_source(plan)
    source = Blocks(plan=plan, shards=whole.shards, schema=whole.schema)
    tables = list(source.tables(["row_index", "split"], start))
    assert [len(table) for table in tables[:-1]] == [7] * (len(tables) - 1)
    rows = [(r["split"], r["row_index"]) for table in tables for r in table.to_pylist()]
    expected = [("train", i) for i in range(50)] + [("test", i) for i in range(20)]
    assert rows == expected[start:]


def test_tables_of_long_texts_have_smaller_blocks(tmp_path: Path) -> None:
    texts = [f"{i:06} " * 15_000 for i in range(400)]  # 120 kB each, 46 MiB together
    plan = vector_run(tmp_path, random_vectors(400), texts=texts, rows_per_shard=400)
    source = open_source(plan)
    tables = list(source.tables())
    assert 1 < len(tables) < 5
    assert max(table.nbytes for table in tables[:-1]) < 1.2 * BLOCK_BYTES
    assert [row for table in tables for row in table["text"].to_pylist()] == texts
    (vectors,) = source.tables(source.encoding.columns)
    assert len(vectors) == 400


@settings(max_examples=40, deadline=None)
@given(places=st.lists(st.integers(0, 69), max_size=30))
def test_rows_at_keeps_the_order_that_was_asked_for(plan: Plan, places: list[int]) -> None:
    whole = open_source(plan)
    source = Blocks(plan=plan, shards=whole.shards, schema=whole.schema)
    found = source.rows_at(np.array(places, np.int64), ["id"])["id"].to_pylist()
    names = [f"docs/train/{i}" for i in range(50)] + [f"docs/test/{i}" for i in range(20)]
    assert found == [names[place] for place in places]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_every_dtype_are_floats(tmp_path: Path, dtype: str) -> None:
    vectors = random_vectors(40, 12)
    plan = vector_run(tmp_path, vectors, dtype=dtype)
    source = open_source(plan)
    ((_, read),) = source.vectors()
    assert np.array_equal(read, Run(plan).vectors())
    cosines = (unit_rows(read) * unit_rows(vectors)).sum(axis=1)
    assert cosines.min() > (0.4 if dtype == "binary" else 0.9999)
    (table,) = source.float_tables()
    assert table.schema == source.float_schema()
    assert "embedding_scale" not in table.column_names
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), read)


def test_manifest_says_how_vectors_are_read_back(tmp_path: Path) -> None:
    manifest = Run(vector_run(tmp_path, random_vectors(20), dtype="int8")).manifest()
    assert (manifest["dtype"], manifest["embedding_dim"]) == ("int8", 8)
    assert manifest["vectors"]["calibration"]["scale"] == "embedding_scale = max(abs(vector)) / 127"
    assert manifest["min_norm"] == pytest.approx(np.linalg.norm(random_vectors(20), axis=1).min())


def test_open_source_of_an_incomplete_run_names_the_repair(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(50), missing=[1])
    with pytest.raises(
        IncompleteError, match=r"1 of 4 shards missing.*chatspace resubmit .*--part"
    ):
        open_source(plan)
    source = open_source(plan, partial=True)
    assert (source.rows, source.n_missing) == (50 - ROWS_PER_SHARD, 1)
    ids = [row for table in source.tables(["id"]) for row in table["id"].to_pylist()]
    assert "docs/train/15" in ids and "docs/train/16" not in ids


def test_open_source_finds_a_shard_that_went_after_the_gather(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(50))
    open_source(plan).shards[2].path.unlink()
    with pytest.raises(IncompleteError, match="shards 2"):
        open_source(plan)


def test_open_source_without_any_shard_has_no_rows(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(10), missing=[0])
    with pytest.raises(InputError, match="No rows"):
        open_source(plan, partial=True)


def test_tables_of_a_shard_with_a_flipped_bit_are_refused(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(50))
    source = open_source(plan)
    path = source.shards[0].path
    group = pq.ParquetFile(path).metadata.row_group(0)
    (column,) = [
        group.column(index)
        for index in range(group.num_columns)
        if group.column(index).path_in_schema.startswith("embedding")
    ]
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IncompleteError, match=r"Damaged shard: .*shard-00000\.parquet; .*"):
        list(source.vectors())
    with pytest.raises(IncompleteError, match=r"Damaged shard: .*shard-00000\.parquet; .*"):
        Run(plan).vectors()


def test_tables_of_a_damaged_shard_name_it_and_what_to_do(plan: Plan, tmp_path: Path) -> None:
    source = open_source(plan, "test")
    damaged = tmp_path / "shard-00000.parquet"
    damaged.write_bytes(source.shards[0].path.read_bytes()[:-100])
    broken = SourceShard(split="test", path=damaged, rows=16)
    with pytest.raises(IncompleteError, match=r"Damaged shard: .*chatspace verify RUN"):
        list(VectorSource(plan=plan, shards=(broken,), schema=source.schema).tables())
    short = SourceShard(split="test", path=source.shards[0].path, rows=15)
    with pytest.raises(IncompleteError, match="rows=16, recorded 15"):
        list(VectorSource(plan=plan, shards=(short,), schema=source.schema).tables())
