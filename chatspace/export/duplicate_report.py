"""What a search for duplicates shows: groups of rows to look at, and a Parquet file of pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.export.duplicates import Found, Wanted
from chatspace.export.pairs import group_labels
from chatspace.export.place import NOTE_KEY, new_file
from chatspace.export.source import Positions, VectorSource
from chatspace.wording import counted

EXCERPT_CHARS = 100
_WRITE_PAIRS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that pairs join.

    Attributes:
        number: its place among the groups, from 1; the largest first.
        splits: rows by split.
        ids: of its rows, a few of them.
        excerpt: how the text of its first row begins; None where the run stores none.
    """

    number: int
    rows: int
    splits: dict[str, int]
    ids: tuple[str, ...]
    excerpt: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns the group for machines."""
        return {
            "group": self.number,
            "rows": self.rows,
            "splits": self.splits,
            "ids": list(self.ids),
            "text": self.excerpt,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """All groups of a search.

    Attributes:
        rows: positions of the rows that are in a group, ascending, (n,).
        numbers: the group of each, from 1, (n,).
    """

    rows: Positions
    numbers: Positions

    @property
    def count(self) -> int:
        """Groups."""
        return int(self.numbers.max(initial=0))

    @property
    def n_surplus(self) -> int:
        """Rows that would go if one of each group stayed."""
        return len(self.rows) - self.count

    def members(self, number: int) -> Positions:
        """Returns the positions of a group's rows, ascending."""
        chosen: Positions = self.rows[self.numbers == number]
        return chosen


def grouped(found: Found) -> Groups:
    """Returns the groups that the pairs make, by size, then by their first row."""
    rows, labels = group_labels(found.pairs)
    firsts, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((firsts, -sizes))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return Groups(rows=rows, numbers=number[which])


def shown_groups(source: VectorSource, groups: Groups, n_shown: int, n_ids: int) -> list[Group]:
    """Returns the largest groups, with the ids of a few of their rows and a text."""
    shown = []
    for number in range(1, min(n_shown, groups.count) + 1):
        members = groups.members(number)
        splits = Counter(_splits_of(source, members))
        names = [name for name in ("id", "text") if name in source.schema.names]
        first = source.rows_at(members[:n_ids], names)
        text = first["text"][0].as_py()
        shown.append(
            Group(
                number=number,
                rows=len(members),
                splits=dict(splits),
                ids=tuple(first["id"].to_pylist()),
                excerpt=None if text is None else excerpt(text, EXCERPT_CHARS),
            )
        )
    return shown


def _splits_of(source: VectorSource, rows: Positions) -> list[str]:
    """Returns the split of each row; a split's rows stand together."""
    names = list(source.splits)
    ends = np.cumsum(list(source.splits.values()))
    return [names[place] for place in np.searchsorted(ends, rows, side="right")]


def excerpt(text: str, n_chars: int) -> str:
    """Returns the beginning of a text on one line, with nothing that moves a terminal's cursor."""
    start = " ".join(text[: 4 * n_chars].split())
    plain = "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in start)
    return plain if len(plain) <= n_chars else f"{plain[: n_chars - 1]}…"


def summary(source: VectorSource, wanted: Wanted, found: Found, groups: Groups) -> dict[str, Any]:
    """Returns the figures of a search, for machines."""
    return {
        "run_id": source.plan.run_id,
        "threshold": wanted.threshold,
        "rows": source.rows,
        "rows_of_zeros": found.n_zero,
        "pairs": len(found.pairs),
        "groups": groups.count,
        "rows_in_groups": len(groups.rows),
        "surplus_rows": groups.n_surplus,
        "sampled_pairs": found.sampled,
        "sampled_pairs_found": found.sampled_found,
    }


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """Returns the same for people."""
    lines = [
        f"{facts['run_id']}: {counted(facts['pairs'], 'pair')} among {facts['rows']:,} rows at or "
        f"above {facts['threshold']:g}, in {counted(facts['groups'], 'group')}; "
        f"{counted(facts['surplus_rows'], 'row')} would go if one of each group stayed"
    ]
    if facts["rows_of_zeros"]:
        zeros = counted(facts["rows_of_zeros"], "row")
        lines.append(f"{zeros} with a vector of zeros, which is in no pair")
    if facts["sampled_pairs"] is not None:
        n_true, n_found = facts["sampled_pairs"], facts["sampled_pairs_found"]
        share = f" ({n_found / n_true:.1%})" if n_true else ""
        lines.append(
            f"approximate: {n_found:,} of {n_true:,} pairs{share} were found of a sample of rows "
            "that was compared with all"
        )
    return lines


def group_lines(groups: Sequence[Group]) -> list[str]:
    """Returns a table of groups, largest first: rows, splits, first id; below it, its text."""
    lines = [f"{'rows':>7}  first id"]
    for group in groups:
        splits = ", ".join(f"{name} {n:,}" for name, n in group.splits.items())
        lines.append(f"{group.rows:>7,}  {group.ids[0]}  ({splits})")
        if group.excerpt is not None:
            lines.append(f"{'':7}  {group.excerpt}")
    return lines


def write_pairs(
    source: VectorSource, found: Found, groups: Groups, out: Path, *, threshold: float
) -> None:
    """Writes every pair with its score and its group into a Parquet file, whole or not at all.

    Takes memory for the ids of all rows that are in a pair.
    """
    names = source.key_columns
    keys = source.rows_at(groups.rows, names)
    sides = [
        keys.schema.field(name).with_name(f"{side}_{name}").with_nullable(False)
        for side in ("first", "second")
        for name in names
    ]
    schema = pa.schema(
        [
            *sides,
            pa.field("score", pa.float32(), nullable=False),
            pa.field("group", pa.int64(), nullable=False),
        ]
    )
    note = {
        "run_id": source.plan.run_id,
        "threshold": threshold,
        "sampled": found.sampled,
        "sampled_found": found.sampled_found,
    }
    schema = schema.with_metadata({NOTE_KEY: json.dumps(note)})
    with new_file(out) as temp, pq.ParquetWriter(temp, schema, compression="zstd") as writer:
        for start in range(0, max(len(found.pairs), 1), _WRITE_PAIRS):
            part = slice(start, start + _WRITE_PAIRS)
            first, second = (
                np.searchsorted(groups.rows, side[part])
                for side in (found.pairs.first, found.pairs.second)
            )
            chosen = [keys.take(pa.array(side)) for side in (first, second)]
            columns = [side[name] for side in chosen for name in names]
            columns += [pa.array(found.pairs.scores[part]), pa.array(groups.numbers[first])]
            writer.write_table(pa.table(columns, schema=schema))
