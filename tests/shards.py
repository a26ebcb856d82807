"""Small real shards on disk, and rows to make them of, without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from chatspace.shards.records import Owner, ShardRecord, ShardSpan
from chatspace.shards.store import ShardStore

OWNER = Owner(plan_sha256="a" * 64, run_id="docs-aaaaaaaa", split="train")
STRANGER = Owner(plan_sha256="b" * 64, run_id="docs-bbbbbbbb", split="train")
ROWS = 4


@dataclass
class FakeRows:
    row_index: np.ndarray
    ids: pa.Array
    texts: list[str]
    metadata: pa.Array
    skipped: dict[str, int] = field(default_factory=dict)


def store_at(folder: Path, owner: Owner = OWNER, attempt: str = "local") -> ShardStore:
    return ShardStore(folder=folder, place="embeddings/x", owner=owner, attempt=attempt)


def span_of(index: int, rows: int = ROWS) -> ShardSpan:
    return ShardSpan(index=index, row_start=index * rows, row_stop=(index + 1) * rows)


def table_of(
    span: ShardSpan, *, dim: int = 3, value: float | None = None, ids: list[str] | None = None
) -> pa.Table:
    rows = range(span.row_start, span.row_stop)
    vectors = np.random.default_rng(span.index).normal(size=len(rows) * dim).astype(np.float32)
    if value is not None:
        vectors[0] = value
    return pa.table(
        {
            "id": ids or [f"docs/train/{row}" for row in rows],
            "row_index": pa.array(rows, pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim),
        }
    )


def commit(store: ShardStore, index: int, **table: object) -> ShardRecord:
    span = span_of(index)
    return store.commit(span, table_of(span, **table), skipped={}, truncated=0)  # type: ignore[arg-type]
