"""Points of a run, and the map that is drawn of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.errors import InputError
from chatspace.export.source import VectorSource, open_source
from chatspace.jobs.gather import gather_run
from chatspace.jobs.local import slices_of
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.viz.colouring import MISSING, Numbers
from chatspace.viz.projection import EXACT_METRICS, exact_neighbors, pca_layout, umap_layout
from chatspace.viz.reduction import Reduction, points_of, reduced, reduction_path
from chatspace.viz.run_map import groups_of, write_run_map
from tests.conftest import SpecMaker, texts, write_parquet

# UMAP is compiled when it is first used, which takes long beside other work.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

N_ROWS = 120


@pytest.fixture
def source(make_spec: SpecMaker, tmp_path: Path) -> VectorSource:
    """A run of 120 rows with columns of every sort beside the text."""
    columns = {
        "text": texts(N_ROWS),
        "topic": ["a", "b", None] * (N_ROWS // 3),
        "score": [n / 7 for n in range(N_ROWS)],
        "x": list(range(N_ROWS)),
        "tags": [["t", str(n % 2)] for n in range(N_ROWS)],
    }
    write_parquet(tmp_path / "rows" / "train.parquet", columns)
    plan = set_up(
        make_spec(
            dataset={"path": str(tmp_path / "rows")},
            output={"keep_columns": ["topic", "score", "x", "tags"]},
        )
    ).plan
    path = Layout(Path(plan.workspace)).run(plan.run_id).plan
    for split, slice_ in slices_of(plan):
        run_task(path, split.name, slice_.index, of=len(split.slices))
    gather_run(plan)
    return open_source(plan)


def blobs(n_rows: int, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    which = np.arange(n_rows) % 3
    return rng.normal(size=(3, dim))[which] * 5 + rng.normal(size=(n_rows, dim)), which


def test_umap_layout_keeps_clusters_apart_and_gives_true_neighbours() -> None:
    vectors, which = blobs(90)
    layout = umap_layout(vectors, n_neighbors=8, min_dist=0.1, metric="euclidean", seed=3)
    again = umap_layout(vectors, n_neighbors=8, min_dist=0.1, metric="euclidean", seed=3)
    assert (layout.xy == again.xy).all()
    assert np.abs(layout.xy).max() == pytest.approx(1, abs=1e-5)
    centres = np.array([layout.xy[which == k].mean(axis=0) for k in range(3)])
    spread = max(layout.xy[which == k].std(axis=0).max() for k in range(3))
    assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (1, 2))) > 3 * spread
    assert layout.neighbors is not None
    ids, distances = layout.neighbors
    exact = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert (ids[:, 0] == np.arange(90)).all()
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :8], atol=1e-3)


@pytest.mark.parametrize("metric", EXACT_METRICS)
def test_exact_neighbors_are_those_of_scipy(metric: str) -> None:
    from scipy.spatial.distance import cdist

    rows = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    rows[7] = rows[3]
    ids, distances = exact_neighbors(rows, 9, metric)
    exact = cdist(rows, rows, metric)
    np.fill_diagonal(exact, -1)  # itself first, also beside a copy
    assert (ids[:, 0] == np.arange(300)).all() and not distances[:, 0].any()
    np.testing.assert_allclose(distances[:, 1:], np.sort(exact, axis=1)[:, 1:9], atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(exact, ids, 1)[:, 1:], distances[:, 1:], atol=1e-5
    )


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 6])
def test_umap_layout_of_a_few_rows_places_them(n_rows: int) -> None:
    layout = umap_layout(blobs(n_rows)[0], n_neighbors=15, min_dist=0.1, metric="cosine", seed=0)
    assert layout.xy.shape == (n_rows, 2)
    assert np.isfinite(layout.xy).all()


def test_pca_layout_puts_the_widest_spread_on_the_first_axis() -> None:
    vectors = np.zeros((50, 4))
    vectors[:, 2] = np.linspace(-5, 5, 50)
    vectors[:, 1] = np.tile([-1, 1], 25)
    xy = pca_layout(vectors, scaled=False)
    assert np.ptp(xy[:, 0]) == pytest.approx(2)
    assert np.ptp(xy[:, 1]) == pytest.approx(0.4, abs=0.05)


def test_reduced_writes_a_row_for_each_point_with_its_columns(source: VectorSource) -> None:
    notes: list[str] = []
    points = reduced(source, Reduction(n_neighbors=5, seed=1), notes.append).points
    assert [note.partition(";")[0] for note in notes] == ["Placing 120 of 120 rows by umap"]
    assert points.column_names == [
        *("id", "split", "row_index", "text", "topic", "score", "metadata_x", "tags"),
        *("x", "y", "neighbors"),
    ]
    assert points["text"].to_pylist() == texts(N_ROWS)
    assert points["score"].type == pa.float64()
    assert points["tags"][0].as_py() == '["t", "0"]'
    assert len(points["neighbors"][7].as_py()["ids"]) == 5
    path = reduction_path(source.plan, "umap")
    note = json.loads(pq.read_schema(path).metadata[b"chatspace"])
    assert note["reduction"]["n_neighbors"] == 5
    assert points_of(source, "umap") is not None
    assert points_of(source, "pca") is None


def test_reduced_again_takes_what_lies_there_and_other_values_make_it_anew(
    source: VectorSource,
) -> None:
    notes: list[str] = []
    origins = [
        reduced(source, Reduction(method="pca", metric=metric), notes.append).origin
        for metric in ("cosine", "cosine", "euclidean")
    ]
    assert origins == ["new", "kept", "replaced"]
    assert len(notes) == 2


def test_reduced_of_a_sample_is_the_same_rows_every_time(source: VectorSource) -> None:
    points = reduced(source, Reduction(method="pca", sample=10, seed=4), lambda _: None).points
    rows = points["row_index"].to_pylist()
    assert len(rows) == 10
    assert rows == sorted(rows)
    other = reduced(source, Reduction(method="tsne", sample=10, seed=4), lambda _: None).points
    assert other["row_index"].to_pylist() == rows


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "som"}, "--method som; known: umap, pca, tsne"),
        ({"metric": "hamming"}, "--metric hamming; known: cosine"),
        ({"method": "tsne", "metric": "euclidean"}, "known: cosine. Choose"),
        ({"n_neighbors": 1}, "--n-neighbors 1; 2 to 1000"),
        ({"min_dist": 1.5}, "--min-dist 1.5; 0 to 1"),
        ({"sample": -1}, "--sample -1; 0 takes all rows"),
    ],
)
def test_reduction_of_bad_values_is_refused_in_one_line(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        Reduction(**values).check()  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_of_numbers_are_a_scale_and_few_whole_ones_are_names(source: VectorSource) -> None:
    points = reduced(source, Reduction(method="pca"), lambda _: None).points
    assert set(groups_of(points, "topic")) == {"a", "b", MISSING}
    score = groups_of(points, "score")
    assert isinstance(score, Numbers) and score.name == "score"
    assert np.array_equal(score.values, points["score"].to_numpy())
    with pytest.raises(InputError, match=r"--color topics; .*Did you mean topic\?"):
        groups_of(points, "topics")
    with pytest.raises(InputError, match=r"name another\.$"):
        groups_of(points, "s")


@pytest.mark.parametrize(
    ("values", "is_scale"),
    [
        ([0, 1, 2, None], False),
        ([0.5, 1.0, None, None], True),
        (list(range(13)), True),
        ([1.5, 1.5, None], False),
        ([float("nan"), float("inf"), 2.0, None], False),
        ([True, False], False),
        ([None, None], False),
    ],
)
def test_groups_of_a_column_tell_numbers_from_names(values: list[object], is_scale: bool) -> None:
    found = groups_of(pa.table({"kept": values}), "kept")
    assert isinstance(found, Numbers) == is_scale
    if isinstance(found, Numbers):
        assert [None if v != v else v for v in found.values.tolist()] == values
    else:
        assert [name == MISSING for name in found] == [value is None for value in values]


def test_groups_of_whole_numbers_beyond_floats_are_their_own_names() -> None:
    points = pa.table({"snow": [2**60 + n for n in range(20)], "x": [0.0] * 20})
    assert groups_of(points, "snow")[0] == str(2**60)


def test_write_run_map_says_what_it_shows(source: VectorSource, tmp_path: Path) -> None:
    points = reduced(source, Reduction(method="pca", sample=50), lambda _: None).points
    made = write_run_map(source, points, colour="topic", folder=tmp_path / "map")
    assert made.png.read_bytes()[:4] == b"\x89PNG"
    again = write_run_map(source, points, colour="topic", folder=tmp_path / "map")
    assert (made.is_replaced, again.is_replaced) == (False, True)
    page = made.html.read_text(encoding="utf-8")
    assert "50 of 120 rows, tiny-bert, 64 dimensions; PCA" in page
    assert "principal axes" in page
    chunks = points.append_column("chunk_index", pa.array([0] * 50, pa.int32()))
    cut = write_run_map(source, chunks, colour="topic", folder=tmp_path / "chunks")
    assert "50 of 120 chunks, tiny-bert" in cut.html.read_text(encoding="utf-8")
