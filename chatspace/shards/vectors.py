"""How vectors are stored: as floats, as bytes with a scale for each vector, or as one bit a number.

    dtype     bytes a vector   stored                                        read back as
    float32   4 dim            the vector                                    itself
    float16   2 dim            the vector, rounded                           itself
    int8      dim + 4          round(vector / scale), -127 to 127            stored * scale
    binary    dim / 8          bit 1 where a number is above 0               (2 bit - 1) / sqrt(dim)

Bits stand most significant first, and the last byte is filled up with zeros. Vectors of bits are
read back with length one.

The scale of int8 is max(abs(vector)) / 127 and stands beside the vector. It is a function of that
vector alone, so shards have the same bytes whatever was done before them, where, and how often; and
the cosine of two stored vectors is that of the vectors read back, for which no scale is needed.

Source: the bits are those of `precision="ubinary"` in sentence-transformers, numpy's `packbits`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.errors import ModelError

VECTOR_COLUMN = "embedding"
SCALE_COLUMN = "embedding_scale"
ENCODING_KEY = b"chatspace"
LEVELS = 127

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Norms = tuple[float | None, float | None]

_ITEMS = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "binary": pa.uint8(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the vectors of a file are stored.

    Attributes:
        dtype: `float32`, `float16`, `int8` or `binary`.
        dim: numbers of a vector, before its bits are packed.
    """

    dtype: str
    dim: int

    @property
    def is_quantised(self) -> bool:
        """Whether what is stored is no longer a float."""
        return self.dtype in ("int8", "binary")

    @property
    def width(self) -> int:
        """Stored items of a vector."""
        return -(-self.dim // 8) if self.dtype == "binary" else self.dim

    @property
    def n_bytes(self) -> int:
        """Bytes of a stored vector."""
        scale = 4 if self.dtype == "int8" else 0
        return self.width * int(_ITEMS[self.dtype].bit_width) // 8 + scale

    @property
    def columns(self) -> list[str]:
        """The columns that a vector is read back from."""
        return [VECTOR_COLUMN, SCALE_COLUMN] if self.dtype == "int8" else [VECTOR_COLUMN]

    def fields(self) -> list[pa.Field]:
        """Returns the Arrow fields of `columns`; those of floats carry no metadata."""
        note = {ENCODING_KEY: json.dumps(self.describe())} if self.is_quantised else None
        item = _ITEMS[self.dtype]
        vector = pa.field(VECTOR_COLUMN, pa.list_(item, self.width), nullable=False, metadata=note)
        scale = pa.field(SCALE_COLUMN, pa.float32(), nullable=False)
        return [vector, scale][: len(self.columns)]

    def describe(self) -> dict[str, Any]:
        """Returns, as JSON, all that it takes to read the vectors back without chatspace."""
        facts: dict[str, Any] = {"dtype": self.dtype, "dim": self.dim}
        if self.dtype == "int8":
            facts["calibration"] = {
                "method": "symmetric, one scale for each vector",
                "scale": f"{SCALE_COLUMN} = max(abs(vector)) / {LEVELS}",
                "vector": f"{VECTOR_COLUMN} * {SCALE_COLUMN}",
            }
        elif self.dtype == "binary":
            facts["bits"] = {
                "bit": "1 where the number is above 0",
                "bit_order": "big",
                "bytes": self.width,
                "vector": "(2 * bit - 1) / sqrt(dim)",
            }
        return facts


def encoding_of(schema: pa.Schema) -> Encoding:
    """Returns how the vectors of a file with this schema are stored.

    Raises:
        ValueError: there is no column of vectors.
    """
    if VECTOR_COLUMN not in schema.names:
        raise ValueError(f"No column of vectors: {VECTOR_COLUMN}; there are {schema.names}.")
    field = schema.field(VECTOR_COLUMN)
    if not pa.types.is_fixed_size_list(field.type):
        raise ValueError(f"Not a column of vectors: type={field.type}; fixed_size_list is needed.")
    note = (field.metadata or {}).get(ENCODING_KEY)
    if note is not None:
        facts = json.loads(note)
        return Encoding(dtype=facts["dtype"], dim=facts["dim"])
    names = {item: name for name, item in _ITEMS.items()}
    dtype, size = names[field.type.value_type], field.type.list_size
    return Encoding(dtype=dtype, dim=8 * size if dtype == "binary" else size)


def finite_floats(
    vectors: npt.NDArray[np.float32], dtype: str, row_index: npt.NDArray[np.int64]
) -> Floats:
    """Returns vectors as floats that can be stored: rounded for float16, else as they are.

    Args:
        vectors: shape (n_rows, dim).
        dtype: how they will be stored.
        row_index: number of each row in its split, for the message, (n_rows,).

    Raises:
        ModelError: a vector has a number that is none, or that the dtype cannot hold.
    """
    floats: Floats = vectors
    if dtype == "float16":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
            floats = vectors.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(floats).all(axis=1))
    if len(bad):
        raise ModelError(
            f"Vector is not finite: row_index={row_index[bad[0]]}; {len(bad)} rows of this shard, "
            f"as {dtype}. Use float32 for the model and for output.dtype, and look at the row."
        )
    return floats


def quantised(
    vectors: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """Returns what is stored of vectors, and the scale of each for int8.

    Args:
        vectors: shape (n_rows, dim), finite.
        dtype: `int8` or `binary`.

    Returns:
        Items, (n_rows, width), int8 or uint8; scales, (n_rows,), None for binary.
    """
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1), None
    scales = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(LEVELS)
    # A vector of zeros, or of numbers too small for a float32 scale, stays zeros.
    steps = np.divide(
        vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0
    )  # (n_rows, dim)
    return np.clip(np.rint(steps), -LEVELS, LEVELS).astype(np.int8), scales


def dequantised(
    items: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None, encoding: Encoding
) -> npt.NDArray[np.float32]:
    """Returns vectors as they are read back, (n_rows, dim), float32.

    Args:
        items: what is stored, (n_rows, width).
        scales: of int8, (n_rows,).
        encoding: how it is stored.
    """
    if encoding.dtype == "binary":
        bits = np.unpackbits(items, axis=1, count=encoding.dim)  # (n_rows, dim)
        size = np.float32(1 / np.sqrt(encoding.dim))
        return np.where(bits, size, -size)
    assert scales is not None
    return items.astype(np.float32) * scales[:, None]


def norm_range(matrix: npt.NDArray[Any]) -> Norms:
    """Returns the smallest and the largest Euclidean norm of the rows, None for no rows.

    Args:
        matrix: vectors, shape (rows, dim).
    """
    if matrix.shape[0] == 0 or matrix.shape[1] == 0:
        return None, None
    norms = np.linalg.norm(matrix.astype(np.float32, copy=False), axis=1)  # (rows,)
    return float(norms.min()), float(norms.max())
