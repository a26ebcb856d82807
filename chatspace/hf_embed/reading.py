"""What the pipeline asks of whoever reads a dataset."""

from __future__ import annotations

from typing import Protocol

from chatspace.shards.records import ShardSpan
from chatspace.shards.table import EmbeddedRows


class Rows(EmbeddedRows, Protocol):
    """The rows of a shard as a reader prepares them, and how many it left out, by reason."""

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        ...


class Reader(Protocol):
    """Reads the rows of a shard."""

    def read(self, span: ShardSpan) -> Rows:
        """Returns the rows of `span`, in input order."""
        ...
