"""The vectors of a run in the plane: one Parquet file, which maps and viewers read.

`runs/{run_id}/maps/{method}.parquet` has a row for each point: `id`, `split`, `row_index`, `text`,
one column for each key of the rows' metadata, `x` and `y`, and after UMAP `neighbors`, the nearest
rows in the space of the vectors as Embedding Atlas reads them. How it was made stands in the file's
metadata. Memory is that of the vectors of the sample, about four times.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import atomic_path
from chatspace.data.sampling import draw_rows
from chatspace.errors import InputError
from chatspace.export.source import VectorSource
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.table import float_vectors
from chatspace.spec.problems import nearest
from chatspace.viz.projection import (
    Layout2d,
    compares_all,
    pca_layout,
    project,
    require_umap,
    umap_layout,
)

METHODS = ("umap", "pca", "tsne")
METRICS = ("cosine", "euclidean", "manhattan", "correlation")
NOTE_KEY = b"chatspace"
_FORMAT_VERSION = 2  # 1: UMAP always with approximate neighbours
_FIXED = ("id", "split", "row_index", "chunk_index", "text")
_PLACED = ("x", "y", "neighbors")
_LEAST_NEIGHBORS, _MOST_NEIGHBORS = 2, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How vectors are brought into the plane; the names are those of the field.

    Attributes:
        method: `umap`, `pca` or `tsne`.
        n_neighbors: of UMAP: how many near rows a row is kept together with.
        min_dist: of UMAP: how close points may stand, 0 to 1.
        metric: `cosine`, `euclidean`, `manhattan` or `correlation`; t-SNE knows only cosine, and
            PCA cosine (of vectors scaled to length one) and euclidean.
        sample: so many rows, drawn by the seed; 0 for all.
        seed: of the draw and of the method.
    """

    method: str = "umap"
    n_neighbors: int = 15
    min_dist: float = 0.1
    metric: str = "cosine"
    sample: int = 50_000
    seed: int = 0

    def check(self) -> None:
        """Refuses values that the methods do not take.

        Raises:
            InputError: a value is unknown or out of range.
        """
        _one_of("--method", self.method, METHODS)
        fitting = {"umap": METRICS, "pca": METRICS[:2], "tsne": METRICS[:1]}[self.method]
        _one_of("--metric", self.metric, fitting)
        _within("--n-neighbors", self.n_neighbors, (_LEAST_NEIGHBORS, _MOST_NEIGHBORS))
        _within("--min-dist", self.min_dist, (0.0, 1.0))
        if self.sample < 0:
            raise InputError(
                f"Out of range: --sample {self.sample}; 0 takes all rows. Give a number of rows."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """Points, and what became of those that lay there before.

    Attributes:
        points: a row for each, as the module says.
        origin: `new`; `kept`, as they had been made alike; or `replaced`, as they had not.
    """

    points: pa.Table
    origin: Literal["new", "kept", "replaced"]


def reduction_path(plan: Plan, method: str) -> Path:
    """Returns where the points of a run lie."""
    return Layout(Path(plan.workspace)).run(plan.run_id).maps / f"{method}.parquet"


def reduced(source: VectorSource, reduction: Reduction, note: Callable[[str], None]) -> Reduced:
    """Returns the points of a run: those that lie there if they were made alike, else new ones.

    Args:
        source: rows of the run.
        reduction: how the points are made.
        note: told what takes long.

    Raises:
        InputError: a value of the reduction cannot be used.
        IncompleteError: a shard is damaged.
        OutputError: the points cannot be written.
        UnfitEnvironmentError: the library of the method is missing.
    """
    reduction.check()
    path = reduction_path(source.plan, reduction.method)
    about = _about(source, reduction)
    found = read_points(path)
    if found is not None and _note_of(found) == about:
        return Reduced(points=found, origin="kept")
    n_rows = about["rows_shown"]
    first = ""
    if reduction.method == "umap":
        require_umap()
        long = "some seconds" if compares_all(n_rows, reduction.metric) else "half a minute or more"
        first = f"; it is compiled first, which takes {long}"
    note(f"Placing {n_rows:,} of {source.rows:,} rows by {reduction.method}{first}")
    is_there = os.path.lexists(path)
    table = _reduce(source, reduction, n_rows)
    table = table.replace_schema_metadata({NOTE_KEY: json.dumps(about)})
    with atomic_path(path) as temp:
        pq.write_table(table, temp, compression="zstd")
    return Reduced(points=table, origin="replaced" if is_there else "new")


def points_of(source: VectorSource, method: str) -> pa.Table | None:
    """Returns the points of these rows that lie there, however they were made, else None."""
    found = read_points(reduction_path(source.plan, method))
    if found is None:
        return None
    keys = ("format", "plan_sha256", "splits")
    made, here = _note_of(found), _about(source, Reduction())
    return found if all(made.get(key) == here[key] for key in keys) else None


def read_points(path: Path) -> pa.Table | None:
    """Returns the points of a file, None where there is none that can be read."""
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid):
        return None


def settings_text(points: pa.Table) -> str:
    """Returns how points were made, for a caption."""
    made = _note_of(points)["reduction"]
    if made["method"] != "umap":
        return str(made["method"]).upper() if made["method"] == "pca" else "t-SNE"
    return f"UMAP, {made['n_neighbors']} neighbors, min_dist {made['min_dist']:g}, {made['metric']}"


def _about(source: VectorSource, reduction: Reduction) -> dict[str, Any]:
    n_rows = min(source.rows, reduction.sample or source.rows)
    return {
        "format": _FORMAT_VERSION,
        "plan_sha256": source.plan.plan_sha256,
        "splits": source.splits,
        "rows": source.rows,
        "rows_shown": n_rows,
        "reduction": asdict(reduction),
    }


def _note_of(points: pa.Table) -> dict[str, Any]:
    try:
        found = json.loads((points.schema.metadata or {})[NOTE_KEY])
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _reduce(source: VectorSource, reduction: Reduction, n_rows: int) -> pa.Table:
    positions = draw_rows(source.rows, n_rows, reduction.seed)
    fixed = [name for name in _FIXED if name in source.schema.names]
    rows = source.rows_at(positions, [*fixed, "metadata", *source.encoding.columns])
    vectors = float_vectors(rows).astype(np.float32)  # (n_rows, dim)
    layout = _place(vectors, reduction)
    columns = {name: rows[name] for name in fixed} | _metadata_columns(rows["metadata"])
    columns["x"], columns["y"] = pa.array(layout.xy[:, 0]), pa.array(layout.xy[:, 1])
    if layout.neighbors is not None:
        columns["neighbors"] = _neighbors(*layout.neighbors)
    return pa.table(columns)


def _place(vectors: npt.NDArray[np.float32], reduction: Reduction) -> Layout2d:
    if reduction.method == "umap":
        return umap_layout(
            vectors,
            n_neighbors=reduction.n_neighbors,
            min_dist=reduction.min_dist,
            metric=reduction.metric,
            seed=reduction.seed,
        )
    if reduction.method == "pca":
        return Layout2d(xy=pca_layout(vectors, scaled=reduction.metric == "cosine"))
    return Layout2d(xy=project(vectors, reduction.seed))


def _metadata_columns(metadata: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Returns a column for each key of the rows' metadata, in the order in which keys appear."""
    rows = [json.loads(text) if text else {} for text in metadata.to_pylist()]
    names = dict.fromkeys(name for row in rows for name in row)
    taken = {*_FIXED, *_PLACED}
    return {
        f"metadata_{name}" if name in taken else name: _column([row.get(name) for row in rows])
        for name in names
    }


def _column(values: Sequence[Any]) -> pa.Array:
    """Returns values as text, numbers or truth; what is nested or mixed becomes text."""
    types = {type(value) for value in values if value is not None}
    if types <= {int, float} or types in ({bool}, {str}):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):  # numbers beyond 64 bits
            pass
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(texts, pa.string())


def _neighbors(ids: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> pa.Array:
    """Returns `{ids, distances}` of each row; the ids are places in the table."""
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * ids.shape[1])
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1), pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(distances.reshape(-1), pa.float32())),
    ]
    return pa.StructArray.from_arrays(lists, names=["ids", "distances"])


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(
            f"Unknown value: {option} {value}; known: {', '.join(known)}."
            f"{nearest(value, known) or ' Choose one.'}"
        )


def _within(option: str, value: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise InputError(
            f"Out of range: {option} {value:g}; {low:g} to {high:g}. Choose a value between."
        )
