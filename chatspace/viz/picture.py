"""The picture of a map: points, what their colours mean, a title; drawn by matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatspace.viz.colouring import (
    MISSING,
    OTHER,
    OTHER_LIGHT,
    Group,
    Scale,
    scale_colours,
)
from chatspace.viz.lettering import fitting, plain

PAPER, INK, FAINT = "#fcfbf8", "#23252b", "#74757b"
_ALPHA = 0.72
# Of the width of the figure:
_LEFT, _RIGHT, _GAP = 0.02, 0.975, 0.02
_LEAST_LEGEND, _MOST_LABEL = 0.155, 0.27
_DOT, _BAR = 0.013, 0.016
_MOST_ON_MAP = 0.24
_TOP, _LINE = 0.84, 0.036  # of its height


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is written on a map, a line each.

    Attributes:
        title: what is shown.
        subtitle: such as rows, model and dimension.
        reading: what nearness means on this map.
    """

    title: str
    subtitle: str
    reading: str


def draw_map(xy: NDArray[Any], colouring: list[Group] | Scale, words: Words) -> Any:
    """Returns a matplotlib figure, drawn without pyplot, which would keep it and pick a backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=200)
    FigureCanvasAgg(figure)
    size = float(np.clip(60_000 / max(len(xy), 1), 3, 60))  # square points
    if isinstance(colouring, Scale):
        axes = _axes(figure, _scale_legend(figure, colouring))
        _scatter_scale(axes, xy, colouring, size)
    else:
        axes = _axes(figure, _legend(figure, colouring))
        _scatter_groups(axes, xy, colouring, size)
        _label(axes, colouring)
    figure.text(0.036, 0.03, words.reading, fontsize=9.5, color=FAINT)
    _text(figure, 0.035, 0.935, words.title, size=21, color=INK, weight="bold")
    _text(figure, 0.036, 0.9, words.subtitle, size=11.5, color=FAINT)
    return figure


def _axes(figure: Any, right: float) -> Any:
    """Returns the place for the points, beside a legend that begins at `right`."""
    axes = figure.add_axes((_LEFT, 0.05, right - _GAP - _LEFT, 0.83))
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.02)
    return axes


def _scatter_groups(axes: Any, xy: NDArray[Any], groups: list[Group], size: float) -> None:
    # Small groups last and `other` first, so that nothing rare is painted over.
    for group in sorted(groups, key=lambda g: (g.name != OTHER, -len(g.members))):
        points = xy[group.members]  # (n_members, 2)
        axes.scatter(points[:, 0], points[:, 1], s=size, c=group.light, alpha=_ALPHA, linewidths=0)


def _scatter_scale(axes: Any, xy: NDArray[Any], scale: Scale, size: float) -> None:
    # In the order of the rows, so that neither end of the bar is painted over the other.
    there = np.isfinite(scale.places)
    axes.scatter(*xy[~there].T, s=size, c=OTHER_LIGHT, alpha=_ALPHA, linewidths=0)
    axes.scatter(
        *xy[there].T,
        s=size,
        c=scale.places[there],
        cmap=_bar_of_colours(),
        vmin=0,
        vmax=1,
        alpha=_ALPHA,
        linewidths=0,
    )


def _bar_of_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("scale", scale_colours()[0])


def _label(axes: Any, groups: list[Group]) -> None:
    """Writes each group's name where it is densest, unless a larger group's name stands there."""
    from matplotlib.patheffects import withStroke

    placed: list[Any] = []
    for group in sorted(groups, key=lambda g: -len(g.members)):
        if group.name == OTHER:
            continue
        label = axes.text(*group.anchor, "", parse_math=False, ha="center", va="center")
        label.set(fontsize=11, fontweight="bold", color=INK)
        _fit(label, group.name, _MOST_ON_MAP)
        label.set_path_effects([withStroke(linewidth=3.5, foreground=PAPER, alpha=0.9)])
        box = label.get_window_extent().expanded(1.04, 1.2)
        if any(box.overlaps(other) for other in placed):
            label.remove()
        else:
            placed.append(box)


def _legend(figure: Any, groups: list[Group]) -> float:
    """Writes the names of groups and their sizes, and returns where the legend begins."""
    from matplotlib.lines import Line2D

    counts, names = [], []
    for index, group in enumerate(groups):
        y = _TOP - index * _LINE
        count = _text(figure, _RIGHT, y, f"{len(group.members):,}", size=11.5, color=FAINT)
        count.set_ha("right")
        name = _text(figure, 0, y, "", size=11.5, color=INK)
        _fit(name, group.name, _MOST_LABEL)
        counts.append(_width(count))
        names.append(name)
    widest = max((_width(name) for name in names), default=0.0)
    room = _DOT + widest + _GAP / 2 + max(counts, default=0.0)
    left = _RIGHT - max(room, _LEAST_LEGEND)
    for group, name in zip(groups, names, strict=True):
        name.set_x(left + _DOT)
        y = name.get_position()[1] + 0.006
        figure.add_artist(Line2D([left], [y], marker="o", markersize=8, color=group.light, lw=0))
    return left


def _scale_legend(figure: Any, scale: Scale) -> float:
    """Draws the bar of colours with its numbers, and returns where the legend begins."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    left = _RIGHT - _LEAST_LEGEND
    name = _text(figure, left, _TOP, "", size=11.5, color=INK, weight="bold")
    _fit(name, scale.name, _LEAST_LEGEND)
    bar = figure.add_axes((left, 0.42, _BAR, _TOP - 0.03 - 0.42))
    colours = ScalarMappable(Normalize(0, 1), _bar_of_colours())
    drawn = figure.colorbar(colours, cax=bar)
    drawn.outline.set_visible(False)
    drawn.set_ticks([place for place, _ in scale.ticks], labels=[text for _, text in scale.ticks])
    bar.tick_params(labelsize=11, labelcolor=INK, color=FAINT, length=4)
    y = 0.38
    for line in filter(None, scale.note.partition(": ")[::2]):
        _text(figure, left, y, line, size=9, color=FAINT)
        y -= 0.022
    if n_missing := int(np.isnan(scale.places).sum()):
        y -= 0.014
        dot = Line2D([left + 0.004], [y + 0.006], marker="o", markersize=8, color=OTHER_LIGHT, lw=0)
        figure.add_artist(dot)
        _text(figure, left + 0.004 + _DOT, y, MISSING, size=11.5, color=INK)
        _text(figure, _RIGHT, y, f"{n_missing:,}", size=11.5, color=FAINT).set_ha("right")
    return left


def _text(
    figure: Any, x: float, y: float, text: str, *, size: float, color: str, weight: str = "normal"
) -> Any:
    written = figure.text(x, y, plain(text), fontsize=size, color=color, fontweight=weight)
    written.set_parse_math(False)
    return written


def _fit(written: Any, text: str, most: float) -> None:
    """Has an artist show a text no wider than `most` of the figure, its middle left out."""

    def fits(part: str) -> bool:
        written.set_text(part)
        return _width(written) <= most

    written.set_text(fitting(plain(text), fits))


def _width(written: Any) -> float:
    """Returns how wide a text is, of the width of its figure."""
    figure = written.get_figure(root=True)
    return float(written.get_window_extent().width / figure.bbox.width)
