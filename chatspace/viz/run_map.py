"""The map of a run: its points, coloured by a column, as a picture and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from chatspace.errors import InputError
from chatspace.export.source import VectorSource
from chatspace.shards.chunks import CHUNK_COLUMN
from chatspace.spec.problems import nearest
from chatspace.viz.colouring import MISSING, Numbers
from chatspace.viz.map import READING, MapRows, has_map, refuse_foreign, write_map
from chatspace.viz.reduction import reduction_path, settings_text

_MOST_NUMBERS = 12  # whole numbers that are rather names, such as those of clusters
_PCA_READING = "Both axes are principal axes: what is far apart here is far apart in the vectors."
_NO_COLOUR = ("x", "y", "neighbors", "id", "text", "row_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMap:
    """The files of a run's map.

    Attributes:
        png: the picture.
        html: the page.
        is_replaced: whether an earlier map stood there.
    """

    png: Path
    html: Path
    is_replaced: bool


def write_run_map(
    source: VectorSource, points: pa.Table, *, colour: str | None, folder: Path | None
) -> RunMap:
    """Writes `map.png` and `map.html` of a run.

    Args:
        source: the rows that the points were made of.
        points: as `chatspace.viz.reduction.reduced` returns them.
        colour: column of the points whose values colour them [the split].
        folder: where the files go [the run's folder of maps].

    Raises:
        InputError: there is no such column.
        OutputError: the folder cannot be written or has files of another origin, or the disk is
            full.
    """
    if folder is not None:
        refuse_foreign(folder)
    plan, column = source.plan, colour or "split"
    place = folder or reduction_path(plan, "any").parent
    is_replaced = has_map(place)
    rows = MapRows(
        ids=points["id"].to_pylist(),
        texts=[text or "" for text in points["text"].to_pylist()],
        groups=groups_of(points, column),
        xy=np.stack([points["x"].to_numpy(), points["y"].to_numpy()], axis=1),  # (n, 2)
    )
    made = settings_text(points)
    png, html = write_map(
        rows,
        place,
        title=", ".join(dict.fromkeys(split.dataset for split in plan.splits)),
        subtitle=f"{_what(source, points)}; {made}; coloured by {column}",
        reading=_PCA_READING if made.startswith("PCA") else READING,
        elsewhere="workspace" if folder is None else "--out",
    )
    return RunMap(png=png, html=html, is_replaced=is_replaced)


def _what(source: VectorSource, points: pa.Table) -> str:
    """Returns how many rows of which model a map shows."""
    is_part = points.num_rows < source.rows
    shown = f"{points.num_rows:,} of {source.rows:,}" if is_part else f"{source.rows:,}"
    model = Path(source.plan.model["name"]).name
    what = "chunks" if CHUNK_COLUMN in points.column_names else "rows"
    return f"{shown} {what}, {model}, {source.encoding.dim} dimensions"


def colours_of(points: pa.Table) -> list[str]:
    """Returns the columns that can colour points."""
    return [name for name in points.column_names if name not in _NO_COLOUR]


def groups_of(points: pa.Table, column: str) -> Sequence[str] | Numbers:
    """Returns what each point is coloured by: names, or numbers.

    Numbers are names where they are whole and of a few values, and where they do not differ.

    Raises:
        InputError: there is no such column.
    """
    known = colours_of(points)
    if column not in known:
        raise InputError(
            f"Unknown column: --color {column}; the points have {', '.join(known)}. Keep it with "
            f"output.keep_columns, or name another.{nearest(column, known)}"
        )
    values = points[column]
    is_whole, is_number = pt.is_integer(values.type), pt.is_floating(values.type)
    if is_number or (is_whole and len(values.drop_null().unique()) > _MOST_NUMBERS):
        found = np.array([np.nan if v is None else v for v in values.to_pylist()], np.float64)
        found[~np.isfinite(found)] = np.nan
        if len(np.unique(found[np.isfinite(found)])) > 1:
            return Numbers(name=column, values=found)
    return [MISSING if value is None else str(value) for value in values.to_pylist()]
