"""Vectors to two dimensions, for a picture that a person looks at."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatspace.export.libraries import library

MAX_ROWS = 10_000
"""More rows take longer than a person waits, and no screen shows them apart."""
_PCA_DIM = 50
_PERPLEXITY = 30.0
_MAX_ITER = 750
# t-SNE of fewer points has no neighbourhoods to keep; their principal axes show more.
_MIN_TSNE_ROWS = 16
_MIN_UMAP_ROWS = 4
EXACT_METRICS = ("cosine", "euclidean", "correlation")
_MOST_EXACT_ROWS = 20_000
_EXACT_BYTES = 32 * 2**20


def sample_rows(n_rows: int, *, seed: int, limit: int = MAX_ROWS) -> NDArray[np.int64]:
    """Returns which rows a picture shows: all, or a sample of `limit` that depends on `seed` alone.

    Returns:
        Ascending row numbers, shape (min(n_rows, limit),).
    """
    if n_rows <= limit:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, size=limit, replace=False))


def project(vectors: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """Places vectors in the plane so that close ones (by cosine) stand together.

    PCA to 50 dimensions, then t-SNE started from the first two of them. What is kept is who is near
    whom. What is not: distances between clusters, the size and density of a cluster, and the axes,
    which mean nothing. The same vectors and seed give the same picture on the same machine; another
    processor may round otherwise and place clusters elsewhere.

    Args:
        vectors: shape (n, dim), any float type, finite; more than `MAX_ROWS` are better sampled
            first (`sample_rows`). About 13 s for 5,000 rows of 384 on two cores.
        seed: of the parts of PCA and t-SNE that draw at random.

    Returns:
        Points centred on 0 that fit into -1 to 1, shape (n, 2), float32.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008; the start from
        principal axes: Kobak and Berens, "The art of using t-SNE", Nature Communications 10, 2019.
    """
    n_rows = len(vectors)
    reduced = _principal_axes(_unit_rows(vectors), seed)  # (n, <= 50)
    xy = _tsne(reduced, seed) if n_rows >= _MIN_TSNE_ROWS else _first_two(reduced)  # (n, 2)
    return _centred(xy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout2d:
    """Points in the plane.

    Attributes:
        xy: (n, 2), float32, centred on 0, within -1 to 1.
        neighbors: places of the nearest rows, (n, n_neighbors), and their distances, both by the
            metric of the layout and in the space of the vectors; None where nobody looked.
    """

    xy: NDArray[np.float32]
    neighbors: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None


def pca_layout(vectors: NDArray[Any], *, scaled: bool) -> NDArray[np.float32]:
    """Places vectors on their two principal axes; distances and axes mean what they are.

    Args:
        vectors: shape (n, dim), any float type, finite.
        scaled: scale them to length one first.

    Returns:
        Points, shape (n, 2), float32, scaled alike on both axes to fit into -1 to 1.
    """
    rows = _unit_rows(vectors) if scaled else np.asarray(vectors, dtype=np.float32)
    return _centred(_first_two(_principal_axes(rows, seed=0)))


def require_umap() -> Any:
    """Returns the library of UMAP.

    Raises:
        UnfitEnvironmentError: umap-learn is not installed.
    """
    return library("umap", "umap-learn", extra="maps")


def umap_layout(
    vectors: NDArray[Any], *, n_neighbors: int, min_dist: float, metric: str, seed: int
) -> Layout2d:
    """Places vectors by UMAP, which keeps who is near whom; distances between clusters say little.

    The same vectors and seed give the same picture on the same machine. Fewer rows than neighbours
    are asked for have all others as neighbours; fewer than four are placed on their principal axes.

    Args:
        vectors: shape (n, dim), any float type, finite.
        n_neighbors: near rows that a row is kept together with.
        min_dist: how close points may stand.
        metric: of pynndescent, such as `cosine`.
        seed: of all that draws at random.

    Raises:
        UnfitEnvironmentError: umap-learn is not installed.

    Source: McInnes, Healy and Melville, "UMAP: Uniform Manifold Approximation and Projection for
        Dimension Reduction", arXiv:1802.03426, 2018.
    """
    if len(vectors) < _MIN_UMAP_ROWS:
        return Layout2d(xy=pca_layout(vectors, scaled=metric == "cosine"))
    umap = require_umap()
    rows = np.asarray(vectors, dtype=np.float32)  # (n, dim)
    k = min(n_neighbors, len(rows) - 1)
    known = _neighbors(umap, rows, k, metric=metric, seed=seed)
    fitted = umap.UMAP(
        n_neighbors=k,
        min_dist=min_dist,
        metric=metric,
        random_state=seed,
        n_jobs=1,
        init="pca",
        precomputed_knn=known,
    )
    with warnings.catch_warnings():
        # Without an index it could place no further rows, which nobody asks of it.
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\]", UserWarning)
        xy = _centred(np.asarray(fitted.fit_transform(rows), dtype=np.float32))  # (n, 2)
    return Layout2d(xy=xy, neighbors=(known[0].astype(np.int64), known[1]))


def compares_all(n_rows: int, metric: str) -> bool:
    """Tells whether UMAP gets exact neighbours, of all rows, and needs no approximate search."""
    return n_rows <= _MOST_EXACT_ROWS and metric in EXACT_METRICS


def _neighbors(
    umap: Any, rows: NDArray[np.float32], k: int, *, metric: str, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], Any]:
    """Returns the nearest rows of each, their distances, and an index where one was made.

    All rows are compared where that is quicker than to compile the approximate search, which takes
    half a minute in each process.
    """
    if compares_all(len(rows), metric):
        return *exact_neighbors(rows, k, metric), None
    state = np.random.RandomState(seed)
    ids, distances, search = umap.umap_.nearest_neighbors(rows, k, metric, None, False, state)
    return ids, distances, search


def exact_neighbors(
    rows: NDArray[np.float32], k: int, metric: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns the places of the `k` nearest rows of each, itself first, and their distances.

    Takes about 64 MiB beside the rows, whatever their number.

    Args:
        rows: shape (n, dim), finite.
        k: at most n.
        metric: one of `EXACT_METRICS`.

    Returns:
        Both (n, k).
    """
    if metric == "correlation":
        rows = rows - rows.mean(axis=1, keepdims=True)
    is_angle = metric != "euclidean"
    rows = _unit_rows(rows) if is_angle else rows
    half_squares = np.einsum("ij,ij->i", rows, rows) / 2  # (n,)
    ids = np.empty((len(rows), k), np.int32)
    distances = np.empty((len(rows), k), np.float32)
    size = max(1, _EXACT_BYTES // (4 * max(len(rows), k * rows.shape[1])))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]  # (n_part, dim)
        own = np.arange(len(part))
        near = part @ rows.T  # (n_part, n), larger is nearer
        if not is_angle:
            near -= half_squares
        near[own, start + own] = np.inf
        found = np.argpartition(-near, k - 1, axis=1)[:, :k]  # (n_part, k)
        away = _distances(part, rows[found], is_angle=is_angle)  # (n_part, k)
        away[found == start + own[:, None]] = -1  # first, also among copies
        order = np.lexsort((found, away), axis=1)
        ids[start : start + size] = np.take_along_axis(found, order, axis=1)
        distances[start : start + size] = np.take_along_axis(away, order, axis=1)
    return ids, np.maximum(distances, 0)


def _distances(
    rows: NDArray[np.float32], others: NDArray[np.float32], *, is_angle: bool
) -> NDArray[np.float32]:
    """Returns the distances of rows, (n, dim), to k others each, (n, k, dim), as (n, k).

    A difference of squares, which finds the nearest, would be coarse where rows are close.
    """
    if is_angle:
        cosines: NDArray[np.float32] = np.einsum("ij,ikj->ik", rows, others)
        return np.maximum(1 - cosines, 0)
    away: NDArray[np.float32] = np.linalg.norm(rows[:, None] - others, axis=2)
    return away


def _unit_rows(vectors: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.asarray(vectors, dtype=np.float32)  # (n, dim)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)  # (n, 1)
    unit: NDArray[np.float32] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _principal_axes(rows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA

    n_components = min(_PCA_DIM, *rows.shape)
    if n_components == 0 or not np.ptp(rows, axis=0).any():  # equal rows have no axes
        return np.zeros((len(rows), 2), dtype=np.float32)
    axes: NDArray[np.float32] = PCA(n_components, random_state=seed).fit_transform(rows)
    return axes


def _tsne(reduced: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    n_rows = len(reduced)
    start = _first_two(reduced)
    scale = float(start[:, 0].std())
    tsne = TSNE(
        init=start * (1e-4 / scale) if scale > 0 else "random",
        perplexity=min(_PERPLEXITY, (n_rows - 1) / 3),
        max_iter=_MAX_ITER,
        n_jobs=-1,
        random_state=seed,
    )
    xy: NDArray[np.float32] = tsne.fit_transform(reduced)
    return xy


def _first_two(reduced: NDArray[np.float32]) -> NDArray[np.float32]:
    xy = np.zeros((len(reduced), 2), dtype=np.float32)
    width = min(2, reduced.shape[1])
    xy[:, :width] = reduced[:, :width]
    return xy


def _centred(xy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns points moved and scaled alike on both axes, so that the farthest stand at 1."""
    if not len(xy):
        return xy
    middle = (xy.max(axis=0) + xy.min(axis=0)) / 2
    centred = xy - middle
    reach = float(np.abs(centred).max())
    return np.asarray(centred / reach if reach > 0 else centred, dtype=np.float32)
