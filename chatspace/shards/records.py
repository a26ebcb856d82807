"""Names and records of shards: what a file and the manifests say of one shard."""

from __future__ import annotations

from dataclasses import dataclass, field


def shard_file_name(index: int) -> str:
    """Returns the file name of a shard, `shard-00042.parquet`; more digits where five do not do."""
    return f"shard-{index:05d}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpan:
    """A half-open range of input rows of one split, with its global index."""

    index: int
    row_start: int
    row_stop: int

    @property
    def n_rows(self) -> int:
        """Input rows in the range."""
        return self.row_stop - self.row_start

    @property
    def file_name(self) -> str:
        """Name of the shard's file."""
        return shard_file_name(self.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose shards a folder holds: stands in the metadata of each of its files."""

    plan_sha256: str
    run_id: str
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One whole shard on disk.

    Attributes:
        rows: input rows in the file, skipped ones not counted.
        chunks: chunks of them, which are the rows of the file; None where rows are stored whole.
        rows_skipped: input rows that are not in the file, by reason.
        rows_truncated: rows cut to the model's limit.
        embedding_dim: length of the vectors; 0 where the kind stores none.
        min_norm: smallest Euclidean norm of the vectors, of int8 and binary ones before they were
            quantised; null where there are no rows.
        created_at: when the file was committed, ISO 8601, UTC.
        attempt: job, array index and restart count of the execution that wrote it.
    """

    path: str
    shard_index: int
    row_start: int
    row_stop: int
    rows: int
    rows_skipped: dict[str, int] = field(default_factory=dict)
    rows_truncated: int
    bytes: int
    sha256: str
    embedding_dim: int
    min_norm: float | None
    max_norm: float | None
    created_at: str
    attempt: str
    chunks: int | None = None
