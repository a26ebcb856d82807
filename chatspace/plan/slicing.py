"""Shards grouped into slices: contiguous, in order, with the heaviest slice as light as can be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chatspace.data.inputs import InputFile
from chatspace.data.selection import SelectedRows
from chatspace.plan.model import Slice, SplitPlan
from chatspace.spec.base import SlicesSection

DEFAULT_ROWS_PER_SLICE = 500_000

Ints = npt.NDArray[np.int64]


def shard_text_bytes(
    files: Sequence[InputFile],
    rows: int,
    rows_per_shard: int,
    selected: SelectedRows | None = None,
) -> Ints:
    """Estimates the bytes of text in each shard from what is known of the row groups.

    Where shards share a step of a row group, or one that was not read, it is divided among them in
    proportion to their rows.

    Args:
        files: the inputs in reading order.
        rows: input rows of the run; rows beyond them are not read.
        rows_per_shard: rows of a shard.
        selected: which rows of the split they are [the first ones].

    Returns:
        Bytes per shard, shape (n_shards,).
    """
    row_ends, byte_ends = text_curve(files, selected)
    edges = np.append(np.arange(0, rows, rows_per_shard), rows)  # (n_shards + 1,)
    weights: Ints = np.diff(np.interp(edges, row_ends, byte_ends).astype(np.int64))
    return weights


def split_weights(split: SplitPlan) -> Ints:
    """Returns the bytes of text in each shard of a split, shape (n_shards,)."""
    return shard_text_bytes(split.files, split.rows, split.rows_per_shard, split.selected)


def text_curve(files: Sequence[InputFile], selected: SelectedRows | None) -> tuple[Ints, Ints]:
    """Returns how much text lies before each border of row groups and of their steps.

    Of a group of which only some rows are read, they are taken to lie evenly in it.

    Returns:
        Read rows before each border and bytes before it, shape (n_borders,) each.
    """
    groups, rows, text = _pieces(files)
    row_ends = np.concatenate(([0], np.cumsum(rows)))
    byte_ends = np.concatenate(([0], np.cumsum(text)))
    if selected is None:
        return row_ends, byte_ends
    if selected.path is None:
        start, stop = selected.first_row, selected.first_row + sum(selected.group_rows)
        inside = row_ends[(row_ends > start) & (row_ends < stop)]
        kept = np.concatenate(([start], inside, [stop]))
        before = np.interp(kept, row_ends, byte_ends).astype(np.int64)
        return kept - start, before - before[0]
    read_of_group = np.array(selected.group_rows, dtype=np.int64)
    group_rows = np.array([n for file in files for n in file.row_groups], dtype=np.int64)
    share = (read_of_group / np.maximum(group_rows, 1))[groups]
    return (
        np.round(np.concatenate(([0], np.cumsum(rows * share)))).astype(np.int64),
        np.round(np.concatenate(([0], np.cumsum(text * share)))).astype(np.int64),
    )


def _pieces(files: Sequence[InputFile]) -> tuple[Ints, Ints, Ints]:
    """Returns the row group, the rows and the bytes of each step; a group unread is one step."""
    pieces: list[tuple[int, int, int]] = []
    group = 0
    for file in files:
        steps_of = file.text_steps or ((),) * len(file.row_groups)
        for n_rows, n_bytes, steps in zip(file.row_groups, file.text_bytes, steps_of, strict=True):
            if steps:
                step_rows = -(-n_rows // len(steps))
                last = n_rows - step_rows * (len(steps) - 1)
                pieces += [(group, step_rows, text) for text in steps[:-1]]
                pieces.append((group, last, steps[-1]))
            else:
                pieces.append((group, n_rows, n_bytes))
            group += 1
    columns = np.array(pieces, dtype=np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def slice_count(section: SlicesSection, rows: int, n_shards: int) -> int:
    """Returns how many slices a split gets; never more than it has shards."""
    if section.count is not None:
        wanted = section.count
    elif section.max_tasks is not None:
        wanted = section.max_tasks
    else:
        wanted = -(-rows // (section.rows_per_slice or DEFAULT_ROWS_PER_SLICE))
    return max(1, min(wanted, n_shards))


def make_slices(weights: Ints, count: int) -> tuple[Slice, ...]:
    """Divides consecutive shards into `count` non-empty slices.

    The weight of the heaviest slice is the smallest possible for contiguous slices; within that
    bound the borders lie as near as possible to an even division.

    Args:
        weights: text bytes (or rows) of each shard, shape (n_shards,).
        count: number of slices, 1 <= count <= n_shards.

    Source: the linear partition problem, solved by bisection on the bound.
    """
    assert 1 <= count <= len(weights)
    sums = _running_sums(weights)  # (n_shards + 1,)
    cap = _smallest_cap(sums, count)
    earliest = _earliest_borders(sums, count, cap)
    borders = [0]
    for j in range(1, count):
        even = int(np.searchsorted(sums, sums[-1] * j / count))
        nearest = (
            even
            if even == 0
            or sums[even] - sums[-1] * j / count <= (sums[-1] * j / count - sums[even - 1])
            else even - 1
        )
        latest = min(_furthest(sums, borders[-1], cap), len(weights) - (count - j))
        borders.append(min(max(nearest, earliest[j], borders[-1] + 1), latest))
    borders.append(len(weights))
    return tuple(
        Slice(
            index=j,
            shard_start=borders[j],
            shard_stop=borders[j + 1],
            text_bytes=int(weights[borders[j] : borders[j + 1]].sum()),
        )
        for j in range(count)
    )


def fewest_slices(weights: Ints, cap: int) -> int:
    """Returns the smallest count at which `make_slices` makes no slice heavier than `cap`.

    Args:
        weights: text bytes (or rows) of each shard, shape (n_shards,); 0 counts as 1.
        cap: no less than the heaviest shard.
    """
    assert cap >= max(1, weights.max())
    return _n_slices(_running_sums(weights).tolist(), cap)


def _running_sums(weights: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(np.maximum(weights, 1))))


def _n_slices(sums: list[int], cap: int) -> int:
    """Returns how many slices there are where each takes all shards that `cap` allows."""
    border, count = 0, 0
    while border < len(sums) - 1:
        border = bisect_right(sums, sums[border] + cap, lo=border) - 1
        count += 1
    return count


def _furthest(sums: Ints, start: int, cap: int) -> int:
    """Returns the largest border such that the shards from `start` weigh at most `cap`."""
    return int(np.searchsorted(sums, sums[start] + cap, side="right")) - 1


def _smallest_cap(sums: Ints, count: int) -> int:
    """Returns the smallest weight such that `count` contiguous slices suffice."""
    low, high = int(np.diff(sums).max()), int(sums[-1])
    steps = sums.tolist()
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _n_slices(steps, middle) <= count else (middle + 1, high)
    return low


def _earliest_borders(sums: Ints, count: int, cap: int) -> list[int]:
    """Returns the smallest position of each border from which the remaining slices suffice."""
    borders = [0] * (count + 1)
    borders[count] = len(sums) - 1
    for j in range(count - 1, 0, -1):
        reachable = int(np.searchsorted(sums, sums[borders[j + 1]] - cap, side="left"))
        borders[j] = max(reachable, j)
    return borders
