"""The map of a run: its points, coloured by a column, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from chatspace.errors import InputError
from chatspace.export.source import VectorSource
from chatspace.spec.problems import nearest
from chatspace.viz.map import READING, MapRows, write_map
from chatspace.viz.reduction import reduction_path, settings_text

MISSING = "(none)"
_BINS = 8
_MOST_NUMBERS = 12
_PCA_READING = "Both axes are principal axes: what is far apart here is far apart in the vectors."
_NO_COLOUR = ("x", "y", "neighbors", "id", "text", "row_index")


def write_run_map(
    source: VectorSource, points: pa.Table, *, colour: str | None, folder: Path | None
) -> tuple[Path, Path]:
    """Writes `map.png` and `map.html` of a run.

    Args:
        source: the rows that the points were made of.
        points: as `chatspace.viz.reduction.reduced` returns them.
        colour: column of the points whose values colour them [the split].
        folder: where the files go [the run's folder of maps].

    Returns:
        Paths of the PNG and of the HTML page.

    Raises:
        InputError: there is no such column.
        OutputError: the folder cannot be written, or the disk is full.
    """
    plan = source.plan
    made = settings_text(points)
    rows = MapRows(
        ids=points["id"].to_pylist(),
        texts=[text or "" for text in points["text"].to_pylist()],
        groups=groups_of(points, colour or "split"),
        xy=np.stack([points["x"].to_numpy(), points["y"].to_numpy()], axis=1),  # (n, 2)
    )
    shown = f"{points.num_rows:,} of {source.rows:,}" if points.num_rows < source.rows else None
    subtitle = (
        f"{shown or f'{source.rows:,}'} rows, {Path(plan.model['name']).name}, "
        f"{source.encoding.dim} dimensions; {made}"
    )
    return write_map(
        rows,
        folder or reduction_path(plan, "any").parent,
        title=", ".join(dict.fromkeys(split.dataset for split in plan.splits)),
        subtitle=subtitle,
        reading=_PCA_READING if made.startswith("PCA") else READING,
    )


def colours_of(points: pa.Table) -> list[str]:
    """Returns the columns that can colour points."""
    return [name for name in points.column_names if name not in _NO_COLOUR]


def groups_of(points: pa.Table, column: str) -> list[str]:
    """Returns what each point is coloured by; numbers of many values are put into eight classes.

    Raises:
        InputError: there is no such column.
    """
    known = colours_of(points)
    if column not in known:
        raise InputError(
            f"Unknown column: --color {column}; the points have {', '.join(known)}. Keep it with "
            f"output.keep_columns, or name another.{nearest(column, known) or ''}"
        )
    values = points[column]
    is_number = pt.is_integer(values.type) or pt.is_floating(values.type)
    if is_number and len(values.unique()) > _MOST_NUMBERS:
        return _classes(values.to_pylist())
    return [MISSING if value is None else str(value) for value in values.to_pylist()]


def _classes(values: Sequence[Any]) -> list[str]:
    """Returns numbers as classes of about equal size, named by their least and largest value."""
    found = np.array([np.nan if value is None else value for value in values], np.float64)
    is_there = np.isfinite(found)
    edges = np.unique(np.quantile(found[is_there], np.linspace(0, 1, _BINS + 1)))
    if len(edges) < 2:  # whole numbers that are one as floats
        return [MISSING if value is None else str(value) for value in values]
    place = np.clip(np.searchsorted(edges, found, side="right") - 1, 0, len(edges) - 2)
    names = [f"{low:.10g} to {high:.10g}" for low, high in pairwise(edges)]
    return [names[i] if there else MISSING for i, there in zip(place, is_there, strict=True)]
