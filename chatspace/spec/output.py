"""The section of a run spec that says what a shard file holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chatspace.spec.section import Section, Strings


class OutputSection(Section):
    """What a shard file holds."""

    rows_per_shard: int = Field(8192, gt=0)
    """Input rows in one shard, the unit of resuming."""
    dtype: Literal["float32", "float16", "int8", "binary"] = "float32"
    """Type of the stored vectors: floats, one byte a number with a scale a vector, or one bit."""
    truncate_dim: int | None = Field(None, gt=1)
    """Keep the first numbers of each vector only, as models of the Matryoshka sort allow.

    Vectors of a model that scales them to length one are scaled again.
    """
    keep_text: bool = True
    """Store the embedded text beside its vector."""
    keep_columns: Strings = ()
    """Input columns that are stored in `metadata`."""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    """Parquet compression."""
