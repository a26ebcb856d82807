"""The Parquet files that rows are read from, as the plan lists them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One Parquet file.

    Attributes:
        row_groups: rows of each row group.
        text_bytes: uncompressed bytes of the text column in each row group, as the footer has them.
        text_steps: bytes of text in each row group, in steps of as many rows but for the last;
            empty for a group that was not read, and at all where none was.
    """

    path: str
    bytes: int
    mtime_ns: int
    rows: int
    row_groups: tuple[int, ...]
    text_bytes: tuple[int, ...]
    text_steps: tuple[tuple[int, ...], ...] = ()


def file_time(ns: int) -> str:
    """Returns a file's time to the nanosecond, as `touch -d` takes it."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
