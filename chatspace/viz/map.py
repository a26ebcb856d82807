"""A map of projected vectors: one PNG to look at, one HTML page to explore.

The page is a single file that asks the network for nothing (its content policy forbids it), so that
it can be mailed, put beside a paper, or opened from a cluster's file system. Layout and behaviour
stand in `map.html`; this module only fills in the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatspace.atomic import atomic_path, atomic_write_text
from chatspace.errors import OutputError
from chatspace.viz.colouring import (
    MISSING,
    N_LEVELS,
    OTHER_DARK,
    OTHER_LIGHT,
    Group,
    Numbers,
    Scale,
    grouped,
    scale_colours,
    scaled,
)
from chatspace.viz.lettering import cut
from chatspace.viz.picture import PAPER, Words, draw_map

PNG, HTML = "map.png", "map.html"
EXCERPT_CHARS = 400
_EXCERPT_BYTES = 640  # of UTF-8: text that needs four bytes a character must not make the page huge
_ID_CHARS = 160
_GRID = 65_535  # positions as whole numbers: finer than any screen, a third of the bytes of floats
READING = "Near points have similar vectors; distances between clusters and the axes mean nothing."
_SOFTWARE = "chatspace map"
# What says of a file that `write_map` made it, near its beginning.
_MARKS = {
    PNG: b"Software\0" + _SOFTWARE.encode(),
    HTML: f'<meta name="generator" content="{_SOFTWARE}">'.encode(),
}
_MARK_WITHIN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRows:
    """The points of a map; all four have one entry a point.

    Attributes:
        ids: what a point is called.
        texts: what is shown on hover; cut to about 400 characters.
        groups: what colours a point: a name, or a number on a scale.
        xy: positions, shape (n, 2), finite; `chatspace.viz.projection.project` makes them.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    groups: Sequence[str] | Numbers
    xy: NDArray[Any]

    def __post_init__(self) -> None:
        n_points = len(self.ids)
        assert len(self.texts) == len(self.groups) == n_points
        assert self.xy.shape == (n_points, 2)


def write_map(
    rows: MapRows,
    folder: Path,
    *,
    title: str,
    subtitle: str,
    reading: str = READING,
    elsewhere: str = "workspace",
) -> tuple[Path, Path]:
    """Writes `map.png` and `map.html`, each whole or not at all.

    Args:
        rows: the points.
        folder: made where it is missing.
        title: one line, what is shown.
        subtitle: one line, such as rows, model and dimension.
        reading: one line, what nearness on this map means.
        elsewhere: what a person changes to have it written somewhere else, for errors.

    Returns:
        Paths of the PNG and of the HTML page.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    png, html = folder / PNG, folder / HTML
    colouring: list[Group] | Scale
    if isinstance(rows.groups, Numbers):
        colouring = scaled(rows.groups)
    else:
        colouring = grouped(rows.groups, rows.xy)
    words = Words(title=title, subtitle=subtitle, reading=reading)
    with atomic_path(png, elsewhere=elsewhere) as temp:
        draw_map(rows.xy, colouring, words).savefig(
            temp, format="png", facecolor=PAPER, metadata={"Software": _SOFTWARE}
        )
    atomic_write_text(html, _page(rows, colouring, words), elsewhere=elsewhere)
    return png, html


def has_map(folder: Path) -> bool:
    """Tells whether a file of a map stands in a folder."""
    return any(os.path.lexists(folder / name) for name in _MARKS)


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder for a map in which files stand that `write_map` did not make.

    Raises:
        OutputError: a file of another origin would be replaced, or `folder` is a file.
    """
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise OutputError(
                f"No folder: --out {folder}; {place} is a file, and a map is a folder with {PNG} "
                f"and {HTML}. Name another --out."
            )
    for name, mark in _MARKS.items():
        path = folder / name
        if os.path.lexists(path) and not _has_mark(path, mark):
            raise OutputError(
                f"Not a map of chatspace: {path}; it is not replaced. Name another --out, or move "
                "it away."
            )


def _has_mark(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return not path.is_symlink() and mark in file.read(_MARK_WITHIN)
    except OSError:
        return False


def _page(rows: MapRows, colouring: list[Group] | Scale, words: Words) -> str:
    """Returns the page with its data in the one slot of the template."""
    template = Path(__file__).with_name("map.html").read_text(encoding="utf-8")
    head, tail = template.split("__MAP_DATA__")
    return head + _script_json(_page_data(rows, colouring, words)) + tail


def _page_data(rows: MapRows, colouring: list[Group] | Scale, words: Words) -> dict[str, Any]:
    low = rows.xy.min(axis=0) if len(rows.xy) else np.zeros(2)  # (2,)
    reach = float(np.ptp(rows.xy, axis=0).max()) if len(rows.xy) else 0.0

    def to_grid(xy: NDArray[Any]) -> Any:
        return np.rint((xy - low) * (_GRID / (reach or 1.0))).astype(np.int64).tolist()

    grid = to_grid(rows.xy)  # (n, 2)
    if isinstance(colouring, Scale):
        assert isinstance(rows.groups, Numbers)
        colours = _scale_data(colouring, rows.groups)
    else:
        colours = _group_data(colouring, len(rows.ids))
        for group, shown in zip(colouring, colours["groups"], strict=True):
            shown["at"] = to_grid(np.array(group.anchor))
    return {
        "title": words.title,
        "subtitle": words.subtitle,
        "reading": words.reading,
        **colours,
        "x": [x for x, _ in grid],
        "y": [y for _, y in grid],
        "ids": [cut(name, _ID_CHARS) for name in rows.ids],
        "texts": [_excerpt(text) for text in rows.texts],
    }


def _group_data(groups: list[Group], n_points: int) -> dict[str, Any]:
    """Returns the groups without their places, and which group each point is of."""
    which = np.zeros(n_points, dtype=np.int64)  # (n,)
    for index, group in enumerate(groups):
        which[group.members] = index
    shown = [{"name": g.name, "light": g.light, "dark": g.dark} for g in groups]
    return {"groups": shown, "group": which.tolist()}


def _scale_data(scale: Scale, numbers: Numbers) -> dict[str, Any]:
    """Returns the bar, the colour and the number of each point, and two groups: with and without.

    A point without a number has the level -1.
    """
    is_there = np.isfinite(scale.places)
    level = np.full(len(is_there), -1, dtype=np.int64)  # (n,)
    level[is_there] = np.rint(scale.places[is_there] * (N_LEVELS - 1))
    light, dark = scale_colours()
    bar = {"light": light, "dark": dark, "ticks": scale.ticks, "note": scale.note}
    values = [f"{value:.10g}" if there else "" for value, there in zip(
        numbers.values.tolist(), is_there.tolist(), strict=True
    )]  # fmt: skip
    groups = [{"name": scale.name}, {"name": MISSING, "light": OTHER_LIGHT, "dark": OTHER_DARK}]
    return {
        "scale": bar,
        "level": level.tolist(),
        "values": values,
        "groups": groups if not is_there.all() else groups[:1],
        "group": np.where(is_there, 0, 1).tolist(),
    }


def _script_json(value: object) -> str:
    """Returns JSON that may stand inside a `<script>` element, whatever strings it holds.

    No `<` is left that could end the element or begin a comment; JSON itself escapes control
    characters; half of a surrogate pair, which UTF-8 cannot say, becomes a question mark.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return safe.encode("utf-8", errors="replace").decode("utf-8")


def _excerpt(text: str) -> str:
    encoded = text[:EXCERPT_CHARS].encode("utf-8", errors="replace")
    start = encoded[:_EXCERPT_BYTES].decode("utf-8", errors="ignore")
    return start if len(start) == len(text) else start.rstrip() + " …"
