from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chatspace.errors import ModelError
from chatspace.shards.store import read_shard_footer
from chatspace.shards.table import embedding_matrix, float_vectors, vector_norms
from chatspace.shards.vectors import (
    ENCODING_KEY,
    Encoding,
    dequantised,
    encoding_of,
    finite_floats,
    norm_range,
    quantised,
)
from chatspace.shards.verify import check_shard
from tests.shards import span_of, store_at
from tests.test_shards_table import table_of
from tests.vector_runs import random_vectors

DTYPES = ("float32", "float16", "int8", "binary")
MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
    elements=st.floats(-1e6, 1e6, width=32),
)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_finite_floats_rounds_for_float16_alone() -> None:
    vectors = np.array([[0.1, 3.0]], np.float32)
    rows = np.array([7])
    assert finite_floats(vectors, "float32", rows) is vectors
    halves = finite_floats(vectors, "float16", rows)
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, vectors.astype(np.float16))


@pytest.mark.parametrize(
    ("bad", "dtype"), [(1e6, "float16"), (np.nan, "float32"), (np.inf, "int8")]
)
def test_finite_floats_names_the_first_row_that_cannot_be_stored(bad: float, dtype: str) -> None:
    vectors = np.array([[1, 2], [3, bad], [bad, 4]], np.float32)
    words = rf"row_index=8; 2 rows of this shard, as {dtype}\. Use float32"
    with pytest.raises(ModelError, match=words):
        finite_floats(vectors, dtype, np.array([7, 8, 9]))


@given(MATRICES)
def test_int8_is_off_by_half_a_step_at_most(vectors: np.ndarray) -> None:
    items, scales = quantised(vectors, "int8")
    assert items.dtype == np.int8 and scales is not None and scales.dtype == np.float32
    back = dequantised(items, scales, Encoding(dtype="int8", dim=vectors.shape[1]))
    limit = 0.5001 * scales[:, None] + 1e-43  # numbers near the smallest float32 become zero
    assert (np.abs(back.astype(np.float64) - vectors) <= limit).all()


@given(MATRICES)
def test_int8_of_a_row_does_not_depend_on_the_others(vectors: np.ndarray) -> None:
    items, scales = quantised(vectors, "int8")
    assert scales is not None
    alone, scale = quantised(vectors[-1:], "int8")
    assert scale is not None
    assert np.array_equal(alone[0], items[-1]) and scale[0] == scales[-1]


@given(MATRICES)
def test_binary_keeps_the_signs_and_gives_length_one(vectors: np.ndarray) -> None:
    encoding = Encoding(dtype="binary", dim=vectors.shape[1])
    items, scales = quantised(vectors, "binary")
    assert scales is None and items.shape == (len(vectors), encoding.width)
    back = dequantised(items, None, encoding)
    assert back.shape == vectors.shape and back.dtype == np.float32
    assert np.array_equal(back > 0, vectors > 0)
    assert np.allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)


def test_int8_cosines_need_no_scale() -> None:
    vectors = random_vectors(50, 64) * np.geomspace(0.01, 100, 50, dtype=np.float32)[:, None]
    items, scales = quantised(vectors, "int8")
    back = unit(dequantised(items, scales, Encoding(dtype="int8", dim=64)))
    bare = unit(items.astype(np.float32))
    assert np.allclose(back @ back.T, bare @ bare.T, atol=1e-6)
    assert ((back * unit(vectors)).sum(axis=1) > 0.9998).all()


def test_int8_of_zeros_is_zeros() -> None:
    items, scales = quantised(np.zeros((2, 3), np.float32), "int8")
    assert scales is not None and not items.any() and not scales.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 8, 13])
def test_float_vectors_of_every_dtype_come_back_from_parquet(
    tmp_path: Path, dtype: str, dim: int
) -> None:
    vectors = random_vectors(5, dim)
    table = table_of(vectors.astype("float16") if dtype == "float16" else vectors, dtype=dtype)
    pq.write_table(table, tmp_path / "t.parquet")
    back = pq.read_table(tmp_path / "t.parquet")
    encoding = encoding_of(back.schema)
    assert encoding == Encoding(dtype=dtype, dim=dim)
    assert back["embedding"].type.list_size == encoding.width
    assert embedding_matrix(back["embedding"]).nbytes + 4 * 5 * (dtype == "int8") == (
        5 * encoding.n_bytes
    )
    read = float_vectors(back.select(encoding.columns))
    assert read.shape == (5, dim)
    if dtype == "binary":
        assert np.array_equal(read > 0, vectors > 0)
    else:
        assert np.allclose(read, vectors, atol=0.02)
    part = float_vectors(back.slice(2, 2))
    assert np.array_equal(part, read[2:4])


def test_quantised_table_says_in_its_field_how_to_read_it() -> None:
    note = table_of(random_vectors(2, 12), dtype="binary").schema.field("embedding").metadata
    facts = json.loads(note[ENCODING_KEY])
    assert (facts["dtype"], facts["dim"]) == ("binary", 12)
    assert facts["bits"]["bit_order"] == "big" and facts["bits"]["bytes"] == 2
    note = table_of(random_vectors(2, 12), dtype="int8").schema.field("embedding").metadata
    assert json.loads(note[ENCODING_KEY])["calibration"]["vector"] == (
        "embedding * embedding_scale"
    )


def test_float_table_has_neither_scale_nor_metadata() -> None:
    schema = table_of(random_vectors(2, 12)).schema
    assert schema.metadata is None and schema.field("embedding").metadata is None
    assert "embedding_scale" not in schema.names


def test_encoding_of_other_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="No column of vectors"):
        encoding_of(pa.schema([("id", pa.string())]))
    with pytest.raises(ValueError, match="fixed_size_list"):
        encoding_of(pa.schema([("embedding", pa.list_(pa.float32()))]))


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_vector_norms_are_those_before_quantising(dtype: str) -> None:
    vectors = random_vectors(6, 16)
    assert vector_norms(table_of(vectors, dtype=dtype)) == norm_range(vectors)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_commit_of_quantised_vectors_is_verified(tmp_path: Path, dtype: str) -> None:
    store, span, vectors = store_at(tmp_path), span_of(0), random_vectors(4, 13)
    table = table_of(vectors, dtype=dtype)
    table = table.set_column(4, "row_index", pa.array(range(4), pa.int64()))
    record = store.commit(span, table, skipped={}, truncated=0)
    assert record.embedding_dim == 13
    assert (record.min_norm, record.max_norm) == norm_range(vectors)
    assert check_shard(store, span, record).problems == ()
    footer = read_shard_footer(store.path(span))
    assert footer is not None and footer["vectors"]["dtype"] == dtype
    again = store_at(tmp_path / "again").commit(span, table, skipped={}, truncated=0)
    assert again.sha256 == record.sha256


def test_check_shard_finds_a_scale_that_is_no_number(tmp_path: Path) -> None:
    table = table_of(random_vectors(4, 8), dtype="int8")
    table = table.set_column(4, "row_index", pa.array(range(4), pa.int64()))
    place = table.schema.get_field_index("embedding_scale")
    broken = pa.array([1, np.nan, 1, 1], pa.float32())
    table = table.set_column(place, table.schema.field(place), broken)
    store, span = store_at(tmp_path), span_of(0)
    record = store.commit(span, table, skipped={}, truncated=0)
    (line,) = check_shard(store, span, record).problems
    assert "vectors hold NaN or infinity" in line


@settings(max_examples=30)
@given(dim=st.integers(1, 70), dtype=st.sampled_from(DTYPES))
def test_encoding_describes_itself(dim: int, dtype: str) -> None:
    encoding = Encoding(dtype=dtype, dim=dim)
    facts = encoding.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert Encoding(dtype=facts["dtype"], dim=facts["dim"]) == encoding
    assert [field.name for field in encoding.fields()] == encoding.columns
