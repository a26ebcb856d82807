"""A map of projected vectors: one PNG to look at, one HTML page to explore.

The page is a single file that asks the network for nothing (its content policy forbids it), so that
it can be mailed, put beside a paper, or opened from a cluster's file system. Layout and behaviour
stand in `map.html`; this module only fills in the data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatspace.atomic import atomic_path, atomic_write_text

MAX_GROUPS = 12
"""Groups with a colour of their own; more cannot be told apart, and the rest is `other`."""
OTHER = "other"
EXCERPT_CHARS = 400
_EXCERPT_BYTES = 640  # of UTF-8: text that needs four bytes a character must not make the page huge
_ID_CHARS = 160
_GRID = 65_535  # positions as whole numbers: finer than any screen, a third of the bytes of floats

# Found by search: calm colours whose least distance in OKLab is largest, for normal vision and for
# the three kinds of colour blindness (Machado et al., "A physiologically-based model for simulation
# of color vision deficiency", 2009); for light and for dark ground.
LIGHT_PALETTE = (
    *("#3767c4", "#e56179", "#66c354", "#9c7ee8", "#9a1b18", "#3099af"),
    *("#837d1f", "#a74284", "#0b604b", "#66339b", "#5e1535", "#0f3172"),
)
DARK_PALETTE = (
    *("#12b1f1", "#dc88bc", "#d9f866", "#dcbcf9", "#c44420", "#a9f3fe"),
    *("#f5ba29", "#9dba89", "#2ba675", "#a466d4", "#e8781a", "#43e9af"),
)
_OTHER_LIGHT, _OTHER_DARK = "#b4b2ab", "#6d7076"
_PAPER, _INK, _FAINT = "#fcfbf8", "#23252b", "#74757b"
READING = "Near points have similar vectors; distances between clusters and the axes mean nothing."


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRows:
    """The points of a map; all four have one entry a point.

    Attributes:
        ids: what a point is called.
        texts: what is shown on hover; cut to about 400 characters.
        groups: what colours a point.
        xy: positions, shape (n, 2), finite; `chatspace.viz.projection.project` makes them.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    groups: Sequence[str]
    xy: NDArray[Any]

    def __post_init__(self) -> None:
        n_points = len(self.ids)
        assert len(self.texts) == len(self.groups) == n_points
        assert self.xy.shape == (n_points, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A legend entry: `anchor` is where its points are densest, `members` which points they are."""

    name: str
    light: str
    dark: str
    members: NDArray[np.int64]
    anchor: tuple[float, float]


def write_map(
    rows: MapRows, folder: Path, *, title: str, subtitle: str, reading: str = READING
) -> tuple[Path, Path]:
    """Writes `map.png` and `map.html`, each whole or not at all.

    Args:
        rows: the points.
        folder: made where it is missing.
        title: one line, what is shown.
        subtitle: one line, such as rows, model and dimension.
        reading: one line, what nearness on this map means.

    Returns:
        Paths of the PNG and of the HTML page.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    png, html = folder / "map.png", folder / "map.html"
    groups = _grouped(rows)
    with atomic_path(png) as tmp:
        _draw(rows, groups, (title, subtitle, reading)).savefig(tmp, format="png", facecolor=_PAPER)
    atomic_write_text(html, _page(rows, groups, (title, subtitle, reading)))
    return png, html


def _grouped(rows: MapRows) -> list[_Group]:
    """Returns the groups by size, at most `MAX_GROUPS` by name and what is left as `other`."""
    xy, counts = rows.xy, Counter(name for name in rows.groups if name != OTHER)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_GROUPS]
    place = {name: index for index, name in enumerate(ranked)}
    which = np.array([place.get(name, len(ranked)) for name in rows.groups], dtype=np.int64)  # (n,)
    named = zip([*ranked, OTHER], _colours(len(ranked)), strict=True)
    return [
        _Group(
            name=name, light=hues[0], dark=hues[1], members=members, anchor=_densest(xy[members])
        )
        for index, (name, hues) in enumerate(named)
        if len(members := np.flatnonzero(which == index))
    ]


def _colours(n_named: int) -> list[tuple[str, str]]:
    named = list(zip(LIGHT_PALETTE, DARK_PALETTE, strict=True))[:n_named]
    return [*named, (_OTHER_LIGHT, _OTHER_DARK)]


def _densest(points: NDArray[Any]) -> tuple[float, float]:
    """Returns the middle of the place where most points are, where a label explains most."""
    counts, x_edges, y_edges = np.histogram2d(points[:, 0], points[:, 1], bins=12)  # (12, 12)
    x, y = np.unravel_index(counts.argmax(), counts.shape)
    inside = (
        (points[:, 0] >= x_edges[x])
        & (points[:, 0] <= x_edges[x + 1])
        & (points[:, 1] >= y_edges[y])
        & (points[:, 1] <= y_edges[y + 1])
    )
    middle = np.median(points[inside], axis=0)  # (2,)
    return float(middle[0]), float(middle[1])


def _draw(rows: MapRows, groups: list[_Group], words: tuple[str, str, str]) -> Any:
    """Returns a matplotlib figure, drawn without pyplot, which would keep it and pick a backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title, subtitle, reading = words
    figure = Figure(figsize=(12, 9), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.05, 0.77, 0.83))
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.02)
    size = float(np.clip(60_000 / max(len(rows.ids), 1), 3, 60))  # square points
    # Small groups last and `other` first, so that nothing rare is painted over.
    for group in sorted(groups, key=lambda g: (g.name != OTHER, -len(g.members))):
        xy = rows.xy[group.members]  # (n_members, 2)
        axes.scatter(xy[:, 0], xy[:, 1], s=size, c=group.light, alpha=0.72, linewidths=0)
    _label(axes, groups)
    figure.text(0.036, 0.03, reading, fontsize=9.5, color=_FAINT)
    figure.text(
        0.035, 0.935, _plain(title), fontsize=21, fontweight="bold", color=_INK, parse_math=False
    )
    figure.text(0.036, 0.9, _plain(subtitle), fontsize=11.5, color=_FAINT, parse_math=False)
    _legend(figure, groups)
    return figure


def _label(axes: Any, groups: list[_Group]) -> None:
    """Writes each group's name where it is densest, unless a larger group's name stands there."""
    from matplotlib.patheffects import withStroke

    placed: list[tuple[float, float]] = []
    for group in groups:
        x, y = group.anchor
        if group.name == OTHER or any(abs(x - a) < 0.3 and abs(y - b) < 0.07 for a, b in placed):
            continue
        placed.append(group.anchor)
        label = axes.text(x, y, _plain(group.name), parse_math=False, ha="center", va="center")
        label.set(fontsize=11, fontweight="bold", color=_INK)
        label.set_path_effects([withStroke(linewidth=3.5, foreground=_PAPER, alpha=0.9)])


def _legend(figure: Any, groups: list[_Group]) -> None:
    from matplotlib.lines import Line2D

    for index, group in enumerate(groups):
        y = 0.84 - index * 0.036
        dot = Line2D([0.807], [y + 0.006], marker="o", markersize=8, color=group.light, lw=0)
        figure.add_artist(dot)
        figure.text(
            0.82, y, _cut(_plain(group.name), 18), fontsize=11.5, color=_INK, parse_math=False
        )
        figure.text(0.975, y, f"{len(group.members):,}", fontsize=11.5, color=_FAINT, ha="right")


def _page(rows: MapRows, groups: list[_Group], words: tuple[str, str, str]) -> str:
    """Returns the page with its data in the one slot of the template."""
    template = Path(__file__).with_name("map.html").read_text(encoding="utf-8")
    head, tail = template.split("__MAP_DATA__")
    return head + _script_json(_page_data(rows, groups, words)) + tail


def _page_data(rows: MapRows, groups: list[_Group], words: tuple[str, str, str]) -> dict[str, Any]:
    title, subtitle, reading = words
    which = np.zeros(len(rows.ids), dtype=np.int64)  # (n,)
    for index, group in enumerate(groups):
        which[group.members] = index
    low = rows.xy.min(axis=0) if len(rows.xy) else np.zeros(2)  # (2,)
    reach = float(np.ptp(rows.xy, axis=0).max()) if len(rows.xy) else 0.0

    def to_grid(xy: NDArray[Any]) -> Any:
        return np.rint((xy - low) * (_GRID / (reach or 1.0))).astype(np.int64).tolist()

    grid = to_grid(rows.xy)  # (n, 2)
    return {
        "title": title,
        "subtitle": subtitle,
        "reading": reading,
        "groups": [
            {"name": g.name, "light": g.light, "dark": g.dark, "at": to_grid(np.array(g.anchor))}
            for g in groups
        ],
        "group": which.tolist(),
        "x": [x for x, _ in grid],
        "y": [y for _, y in grid],
        "ids": [_cut(name, _ID_CHARS) for name in rows.ids],
        "texts": [_excerpt(text) for text in rows.texts],
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


def _cut(text: str, n_chars: int) -> str:
    return text if len(text) <= n_chars else text[: n_chars - 1] + "…"


def _plain(text: str) -> str:
    """Returns one line that a font engine takes: no control characters, no half surrogates."""
    return "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in text)
