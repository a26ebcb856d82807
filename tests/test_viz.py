from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatspace.errors import OutputError
from chatspace.viz.colouring import (
    DARK_PALETTE,
    LIGHT_PALETTE,
    MAX_GROUPS,
    MISSING,
    N_LEVELS,
    Numbers,
)
from chatspace.viz.map import MapRows, refuse_foreign, write_map
from chatspace.viz.projection import project, sample_rows

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "NUL \x00 bell \x07 escape \x1b",
    "half a pair \ud800",
    "\u2028 \u2029",
    "😀" * 500,
    "",
)


def _blobs(n_rows: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    which = np.arange(n_rows) % 3
    centres = rng.normal(size=(3, dim)) * 4
    return centres[which] + rng.normal(size=(n_rows, dim)), which


def _rows(texts: Sequence[str], groups: Sequence[str] | None = None) -> MapRows:
    xy = np.random.default_rng(0).normal(size=(len(texts), 2))
    ids = [f"row {index}" for index in range(len(texts))]
    return MapRows(ids=ids, texts=texts, groups=groups or ["a"] * len(texts), xy=xy)


def _data(html: Path) -> dict[str, Any]:
    page = html.read_text(encoding="utf-8")
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.S)
    assert len(scripts) == 2, "data must not open or close a script"
    return json.loads(scripts[0])


def test_project_puts_near_vectors_together() -> None:
    vectors, which = _blobs(120)
    xy = project(vectors, seed=0)
    centres = np.array([xy[which == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(xy[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == which).mean() > 0.95
    assert np.abs(xy).max() == pytest.approx(1)


def test_project_with_the_same_seed_gives_the_same_points() -> None:
    vectors, _ = _blobs(60)
    assert np.array_equal(project(vectors, seed=3), project(vectors, seed=3))


@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 15, 16, 17])
def test_project_of_few_rows_gives_finite_points(n_rows: int) -> None:
    xy = project(_blobs(n_rows)[0], seed=0)
    assert xy.shape == (n_rows, 2)
    assert np.isfinite(xy).all()


@pytest.mark.parametrize("row", [np.zeros(8), np.ones(8)], ids=["zero", "equal"])
def test_project_of_equal_rows_gives_finite_points(row: np.ndarray) -> None:
    assert np.isfinite(project(np.tile(row, (40, 1)), seed=0)).all()


def test_sample_rows_above_the_limit_is_sorted_and_depends_on_the_seed_alone() -> None:
    rows = sample_rows(1000, seed=1, limit=100)
    assert len(np.unique(rows)) == 100
    assert np.array_equal(rows, np.sort(rows))
    assert np.array_equal(rows, sample_rows(1000, seed=1, limit=100))
    assert not np.array_equal(rows, sample_rows(1000, seed=2, limit=100))


def test_sample_rows_below_the_limit_is_all() -> None:
    assert sample_rows(5, seed=0, limit=5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_write_map_of_hostile_text_keeps_the_page_whole(tmp_path: Path) -> None:
    rows = _rows(HOSTILE, groups=["</script>", "a\n\ud800", "$x$", "other", "a", "a", "a"])
    png, html = write_map(rows, tmp_path, title="</title><script>1</script>", subtitle="\udfff")
    data = _data(html)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert data["texts"][:3] == list(HOSTILE[:3])
    assert data["texts"][3] == "half a pair ?"
    assert data["title"] == "</title><script>1</script>"
    assert "\x00" not in html.read_text(encoding="utf-8")


def test_write_map_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = write_map(_rows(["a"]), tmp_path, title="t", subtitle="s")[1].read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|src=|href=", page)
    assert "default-src 'none'" in page


def test_write_map_cuts_long_texts_so_that_the_page_stays_small(tmp_path: Path) -> None:
    _, html = write_map(_rows(["😀" * 5000] * 500), tmp_path, title="t", subtitle="s")
    assert html.stat().st_size < 400_000  # 4 MB for 5,000 rows


def test_write_map_names_the_largest_groups_and_calls_the_rest_other(tmp_path: Path) -> None:
    groups = [f"group {size:02d}" for size in range(1, 16) for _ in range(size)]
    _, html = write_map(_rows([""] * len(groups), groups), tmp_path, title="t", subtitle="s")
    data = _data(html)
    names = [group["name"] for group in data["groups"]]
    assert names == [f"group {size:02d}" for size in range(15, 3, -1)] + ["other"]
    assert data["group"].count(MAX_GROUPS) == 1 + 2 + 3


@pytest.mark.parametrize("n_rows", [0, 1])
def test_write_map_of_hardly_any_rows_is_written(tmp_path: Path, n_rows: int) -> None:
    png, html = write_map(_rows(["a"] * n_rows), tmp_path / "new", title="t", subtitle="s")
    assert png.is_file()
    assert len(_data(html)["ids"]) == n_rows


def test_write_map_of_numbers_has_a_bar_and_each_number(tmp_path: Path) -> None:
    values = np.array([0.5, 10.0, np.nan, 2.5])
    rows = MapRows(
        ids=list("abcd"),
        texts=[""] * 4,
        groups=Numbers(name="</script>", values=values),
        xy=np.random.default_rng(0).normal(size=(4, 2)),
    )
    png, html = write_map(rows, tmp_path, title="t", subtitle="s")
    data = _data(html)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert data["level"] == [0, N_LEVELS - 1, -1, round(2 / 9.5 * (N_LEVELS - 1))]
    assert data["values"] == ["0.5", "10", "", "2.5"]
    assert [group["name"] for group in data["groups"]] == ["</script>", MISSING]
    assert data["group"] == [0, 0, 1, 0]
    assert [text for _, text in data["scale"]["ticks"]] == ["2", "4", "6", "8", "10"]
    assert len(data["scale"]["light"]) == len(data["scale"]["dark"]) == N_LEVELS


def test_refuse_foreign_takes_maps_alone(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new")
    png, html = write_map(_rows(["a"]), tmp_path, title="t", subtitle="s")
    refuse_foreign(tmp_path)
    for path in (png, html):
        made = path.read_bytes()
        path.write_bytes(b"mine")
        with pytest.raises(OutputError, match=rf"{path.name}; it is not replaced.*--out"):
            refuse_foreign(tmp_path)
        path.write_bytes(made)
    for folder in (png, png / "below" / "it"):
        with pytest.raises(OutputError, match=r"No folder: --out .*map.png is a file.*--out\.$"):
            refuse_foreign(folder)
    assert html.read_bytes() and png.read_bytes()


@pytest.mark.usefixtures("unprivileged")
def test_write_map_that_cannot_be_written_names_the_option() -> None:
    with pytest.raises(OutputError, match=r"or choose another --out\.$"):
        write_map(_rows(["a"]), Path("/of_nobody"), title="t", subtitle="s", elsewhere="--out")


def test_palettes_have_one_colour_for_each_named_group() -> None:
    assert len(set(LIGHT_PALETTE)) == len(set(DARK_PALETTE)) == MAX_GROUPS
