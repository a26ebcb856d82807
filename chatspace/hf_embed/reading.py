"""What the pipeline asks of whoever reads a dataset."""

from __future__ import annotations

from typing import Protocol

from chatspace.chunking.chunker import Rows
from chatspace.shards.records import ShardSpan


class Reader(Protocol):
    """Reads the rows of a shard."""

    def read(self, span: ShardSpan) -> Rows:
        """Returns the rows of `span`, in input order."""
        ...
