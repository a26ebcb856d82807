"""Finished runs made of given vectors: real shards, a real manifest, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chatspace.jobs.gather import gather_run, split_store
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.shards.table import embedding_table
from tests.plans import plan_of, split_plan
from tests.shards import FakeRows

ROWS_PER_SHARD = 16


def vector_run(
    workspace: Path,
    vectors: Mapping[str, np.ndarray] | np.ndarray,
    *,
    dtype: str = "float32",
    texts: Sequence[str] | None = None,
    missing: Sequence[int] = (),
    rows_per_shard: int = ROWS_PER_SHARD,
    **output: Any,
) -> Plan:
    """Writes the shards of a run whose rows have these vectors, and gathers it.

    Args:
        workspace: a new folder.
        vectors: float32, (rows, dim), of each split or of `train`.
        dtype: how they are stored.
        texts: of the rows of every split.
        missing: shards of every split that are left out; then nothing is gathered.
    """
    splits = vectors if isinstance(vectors, Mapping) else {"train": vectors}
    plan = plan_of(
        workspace,
        tuple(
            split_plan(name, rows=len(rows), rows_per_shard=rows_per_shard, count=1)
            for name, rows in splits.items()
        ),
        output={"dtype": dtype, "rows_per_shard": rows_per_shard, **output},
    )
    plan = replace(plan, model={**plan.model, "embedding_dim": 8})
    save_plan(plan, Layout(workspace).run(plan.run_id).plan)
    for name, rows in splits.items():
        split = plan.split(name)
        for span in split.spans():
            if span.index in missing:
                continue
            part = slice(span.row_start, span.row_stop)
            split_store(plan, split).commit(
                span,
                _table(plan, name, rows[part], np.arange(span.row_start, span.row_stop), texts),
                skipped={},
                truncated=0,
            )
    if not missing:
        gather_run(plan)
    return plan


def _table(
    plan: Plan, split: str, vectors: np.ndarray, places: np.ndarray, texts: Sequence[str] | None
) -> pa.Table:
    dtype = plan.spec["output"]["dtype"]
    rows = FakeRows(
        row_index=places,
        ids=pa.array([f"docs/{split}/{place}" for place in places], pa.string()),
        texts=[texts[place] if texts else f"text {place} of {split}" for place in places],
        metadata=pa.array(["{}"] * len(places), pa.string()),
    )
    return embedding_table(
        rows=rows,
        vectors=vectors.astype(np.float16) if dtype == "float16" else vectors.astype(np.float32),
        source="parquet",
        dataset="docs",
        split=split,
        model="tiny",
        created_at=plan.created_at,
        run_id=plan.run_id,
        keep_text=plan.spec["output"]["keep_text"],
        dtype=dtype,
    )


def random_vectors(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
