"""What colours the points of a map: names with a colour each, or numbers on a scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_GROUPS = 12
"""Groups with a colour of their own; more cannot be told apart, and the rest is `other`."""
OTHER = "other"
MISSING = "(none)"

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
OTHER_LIGHT, OTHER_DARK = "#b4b2ab", "#6d7076"

N_LEVELS = 64
_SCALE_MAP = "viridis"  # even steps for the eye, also of who is colour-blind
# The ends that would vanish on light and on dark ground are left out.
_LIGHT_PART, _DARK_PART = (0.0, 0.92), (0.16, 1.0)
_CLIPPED = 0.01  # of the numbers at each end, where they would squeeze all others together
_SQUEEZED = 3.0
_LOG_RATIO = 1000.0
_LEAST_SEPARATED = 10_000  # years have no thousands separator
_MOST_DIGITS = 1e7
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Numbers that colour points.

    Attributes:
        name: what they are, for the scale.
        values: (n,), float64; NaN where a point has none. At least two differ.
    """

    name: str
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Points of one colour.

    Attributes:
        name: of its entry in the legend.
        light: colour on light ground.
        dark: colour on dark ground.
        members: which points they are.
        anchor: where they are densest.
    """

    name: str
    light: str
    dark: str
    members: NDArray[np.int64]
    anchor: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A bar of colours.

    Attributes:
        name: what is shown.
        places: of each point on the bar, 0 to 1, (n,); NaN where it has no number.
        ticks: places on the bar and the numbers there.
        note: what the bar does not show; empty where it shows all.
    """

    name: str
    places: NDArray[np.float64]
    ticks: tuple[tuple[float, str], ...]
    note: str = ""


def grouped(groups: Sequence[str], xy: NDArray[Any]) -> list[Group]:
    """Returns the groups, at most `MAX_GROUPS` by name, the largest, and what is left as `other`.

    They stand by size; whole numbers stand as numbers do.
    """
    counts = Counter(name for name in groups if name != OTHER)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_GROUPS]
    if all(name == MISSING or _is_whole(name) for name in ranked):
        ranked.sort(key=lambda name: (name == MISSING, 0 if name == MISSING else int(name)))
    place = {name: index for index, name in enumerate(ranked)}
    which = np.array([place.get(name, len(ranked)) for name in groups], dtype=np.int64)  # (n,)
    hues = [*zip(LIGHT_PALETTE, DARK_PALETTE, strict=True)][: len(ranked)]
    named = zip([*ranked, OTHER], [*hues, (OTHER_LIGHT, OTHER_DARK)], strict=True)
    return [
        Group(name=name, light=light, dark=dark, members=members, anchor=_densest(xy[members]))
        for index, (name, (light, dark)) in enumerate(named)
        if len(members := np.flatnonzero(which == index))
    ]


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()


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


def scaled(numbers: Numbers) -> Scale:
    """Returns where numbers stand on a bar of colours.

    The bar is even in the numbers, or in their logarithms where they go over three powers of ten.
    Where a few far numbers would squeeze all others together it ends before them, and says so.
    """
    there = numbers.values[np.isfinite(numbers.values)]
    low, high = np.quantile(there, (_CLIPPED, 1 - _CLIPPED))
    is_log = bool(there.min() > 0 and high / low >= _LOG_RATIO)
    ends = _ends(np.log10(there) if is_log else there)
    values = numbers.values.astype(np.float64)
    if is_log:
        values = np.log10(values, out=np.full_like(values, np.nan), where=values > 0)
    with np.errstate(invalid="ignore"):
        places = (values - ends[0]) / (ends[1] - ends[0])  # (n,)
    places[~np.isfinite(numbers.values)] = np.nan
    ticks = _log_ticks(*ends) if is_log else _even_ticks(*ends, whole=bool((there % 1 == 0).all()))
    low, high = (10.0**end if is_log else end for end in ends)
    outside = [f"below {_number(low)}"] if np.nanmin(places) < -_ROUNDING else []
    outside += [f"above {_number(high)}"] if np.nanmax(places) > 1 + _ROUNDING else []
    return Scale(
        name=numbers.name,
        places=np.clip(places, 0, 1),
        ticks=ticks,
        note=f"{' and '.join(outside)}: colour of the end" if outside else "",
    )


def scale_colours(n_levels: int = N_LEVELS) -> tuple[list[str], list[str]]:
    """Returns the colours of the bar from its low end, for light and for dark ground."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    bar = colormaps[_SCALE_MAP]
    light, dark = (
        [to_hex(bar(place)) for place in np.linspace(*part, n_levels)]
        for part in (_LIGHT_PART, _DARK_PART)
    )
    return light, dark


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = np.quantile(values, (_CLIPPED, 1 - _CLIPPED))
    is_squeezed = inner_high > inner_low and high - low > _SQUEEZED * (inner_high - inner_low)
    return (float(inner_low), float(inner_high)) if is_squeezed else (low, high)


def _even_ticks(low: float, high: float, *, whole: bool) -> tuple[tuple[float, str], ...]:
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    inside = [float(v) for v in values if low <= v <= high]
    if len(inside) < 2:
        inside = [low, high]
    return tuple(((v - low) / (high - low), _number(v)) for v in inside)


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    powers = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    step = -(-len(powers) // 6)
    return tuple(((power - low) / (high - low), _number(10.0**power)) for power in powers[::step])


def _number(value: float) -> str:
    """Returns a number as a legend wants it: short, with separators where it is long."""
    if value and not 1e-4 <= abs(value) < _MOST_DIGITS:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    if value % 1 == 0:
        return f"{value:,.0f}" if abs(value) >= _LEAST_SEPARATED else f"{value:.0f}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
