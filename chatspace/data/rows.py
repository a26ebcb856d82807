"""The rows of a shard, read from Parquet and made ready for a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.data.cursor import Chunk, Cursor
from chatspace.data.inputs import InputFile
from chatspace.data.inventory import id_strings
from chatspace.data.jsonable import json_objects, python_values
from chatspace.data.selection import Selection
from chatspace.data.texts import row_texts
from chatspace.errors import InputError
from chatspace.shards.records import ShardSpan
from chatspace.spec.dataset import DatasetSection


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRows:
    """The rows of a span that can be embedded, in input order, and why the others cannot.

    Attributes:
        row_index: (n_kept,) int64, the rows' numbers in the split.
        ids: (n_kept,) strings.
        texts: (n_kept,) what is embedded; never blank.
        metadata: (n_kept,) strings, a JSON object each.
        skipped: rows left out, by reason, as `RowText` lists them.
    """

    row_index: npt.NDArray[np.int64]
    ids: pa.Array
    texts: list[str]
    metadata: pa.Array
    skipped: dict[str, int]


class SplitReader:
    """Reads the spans of one split; consecutive spans stream through the files once.

    Any span can be read at any time; one that does not follow the last begins with a seek to its
    row group. Used by one thread at a time.
    """

    def __init__(
        self,
        dataset: DatasetSection,
        *,
        label: str,
        split: str,
        files: Sequence[InputFile],
        selection: Selection,
        keep_columns: Sequence[str],
    ) -> None:
        self._dataset = dataset
        self._id_prefix = f"{label}/{split}/"
        self._keep_columns = tuple(keep_columns)
        self._files = tuple(files)
        self._selection = selection
        self._cursor = self._cursor_at(0)

    def read(self, span: ShardSpan) -> PreparedRows:
        """Returns the rows of `span`.

        Raises:
            InputError: a file is missing, damaged, or not the one that was planned with.
        """
        if self._cursor.position != span.row_start:
            self._cursor.close()
            self._cursor = self._cursor_at(span.row_start)
        rows = _Rows()
        try:
            for chunk in self._cursor.take(span.n_rows):
                self._prepare(chunk, rows)
        except BaseException:
            # The generator behind the cursor is finished now; the next read starts anew.
            self._cursor = self._cursor_at(0)
            raise
        return rows.joined(span)

    def _cursor_at(self, position: int) -> Cursor:
        return Cursor(self._files, self._selection, position, self._dataset, self._keep_columns)

    def _prepare(self, chunk: Chunk, rows: _Rows) -> None:
        kept: list[int] = []
        conversations: list[Any] = []
        for offset, row in enumerate(
            row_texts(self._dataset, chunk.batch, chunk.path, chunk.place)
        ):
            if row.text is None:
                rows.skipped[row.reason] += 1
                continue
            kept.append(offset)
            rows.texts.append(row.text)
            conversations.append(row.original)
        offsets = np.array(kept, dtype=np.int64)
        rows.row_index.append(chunk.rows[offsets])  # (n_kept,)
        rows.ids.append(self._ids(chunk, offsets))
        rows.metadata.append(self._metadata(chunk, conversations, kept))

    def _ids(self, chunk: Chunk, offsets: npt.NDArray[np.int64]) -> pa.Array:
        name = self._dataset.id_field
        if name is None:
            rows = chunk.rows[offsets].tolist()
            return pa.array([f"{self._id_prefix}{row}" for row in rows], pa.string())
        ids = id_strings(chunk.batch.column(name), name, chunk.path, chunk.place)
        return ids.take(pa.array(offsets))

    def _metadata(self, chunk: Chunk, conversations: list[Any], kept: list[int]) -> pa.Array:
        wanted = {}
        for name in self._keep_columns:
            values = python_values(chunk.batch.column(name))
            wanted[name] = [values[at] for at in kept]
        if self._dataset.turns is not None:
            wanted[self._dataset.text_field] = conversations
        if not wanted:
            return pa.repeat(pa.scalar("{}"), len(kept))
        return pa.array(json_objects(wanted, len(kept)), pa.string())


@dataclass(slots=True)
class _Rows:
    """What the batches of one span add up to."""

    row_index: list[npt.NDArray[np.int64]] = field(default_factory=list)
    ids: list[pa.Array] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    metadata: list[pa.Array] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def joined(self, span: ShardSpan) -> PreparedRows:
        return PreparedRows(
            row_index=np.concatenate([np.empty(0, dtype=np.int64), *self.row_index]),
            ids=_concatenated(self.ids, span),
            texts=self.texts,
            metadata=_concatenated(self.metadata, span),
            skipped=dict(sorted(self.skipped.items())),
        )


def _concatenated(parts: list[pa.Array], span: ShardSpan) -> pa.Array:
    try:
        return pa.concat_arrays([pa.array([], pa.string()), *parts])
    except pa.ArrowInvalid as error:  # 32-bit offsets
        raise InputError(
            f"Rows too large: rows {span.row_start} to {span.row_stop} have more than 2 GiB of ids "
            "or metadata. Lower output.rows_per_shard."
        ) from error
