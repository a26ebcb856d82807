"""Rows that are longer than a chunk become several; each chunk is then embedded like a row.

What is embedded is the chunk's own text, `text[char_start:char_stop]`: its vector is the one that
this text alone would get. A row that fits is one chunk.

Memory: besides what a shard of rows takes, the texts of its chunks (as much as the rows' own, twice
that with the largest overlap), and what the kind keeps of each chunk. The tokenizer sees one
excerpt of a row at a time, of `CHARS_PER_TOKEN * (2 * chunk_tokens + 64)` characters, 65,536 at
least, and takes about a hundred bytes for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from chatspace.chunking.cutting import (
    Chunk,
    Cutter,
    Excerpt,
    IntArray,
    middle_end,
    next_solid,
    trimmed,
)
from chatspace.errors import InputError
from chatspace.shards.table import EmbeddedRows

BoolArray = npt.NDArray[np.bool_]
# What a kind keeps of a text that was tokenised: its ids, or how many they are.
Kept = TypeVar("Kept")
Kept_co = TypeVar("Kept_co", covariant=True)

CHARS_PER_TOKEN = 8  # first guess of how much text is enough; too little is noticed and read on
LEAST_EXCERPT_CHARS = 2**16
# A word may have more tokens where a text begins with it. What is still too long is cut in two.
SLACK_TOKENS = 4
_MOST_METADATA_BYTES = 2**31 - 1  # Arrow counts them in 32 bits


class Rows(EmbeddedRows, Protocol):
    """The rows of a shard as a reader prepares them, and how many it left out, by reason."""

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        ...


class Tokenized(Protocol[Kept_co]):
    """Some texts after the tokenizer."""

    @property
    def truncated(self) -> BoolArray:
        """Which of them are longer than a chunk may be, (n_texts,)."""
        ...

    def row(self, index: int) -> Kept_co:
        """Returns what is kept of one of them."""
        ...


class Tokenizer(Protocol[Kept_co]):
    """Tells how long texts are, and where in them tokens begin."""

    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> Tokenized[Kept_co]:
        """Returns some texts tokenised; calls `check` now and then, which may raise to end it."""
        ...

    def token_starts(self, text: str) -> IntArray:
        """Returns the character at which each token of a text begins, ascending, (n_tokens,)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedRows:
    """The chunks of a shard's rows, in order: what stands in its file.

    Attributes:
        row_index: number of each chunk's row, ascending, (n_chunks,).
        ids: `{id of the row}#{chunk_index}`.
        texts: the chunks' own texts.
        metadata: that of the row, with each of its chunks.
        skipped: rows left out, by reason.
        row: position of each chunk's row in what the reader gave, (n_chunks,).
        chunk_index: counted from 0 in each row, (n_chunks,).
        char_start: first character of each chunk in the row's text, (n_chunks,).
        char_stop: the one after the last, (n_chunks,).
    """

    row_index: IntArray
    ids: pa.Array
    texts: list[str]
    metadata: pa.Array
    skipped: dict[str, int]
    row: IntArray
    chunk_index: IntArray
    char_start: IntArray
    char_stop: IntArray


@dataclass(frozen=True, slots=True)
class Split(Generic[Kept]):
    """The chunks of a shard's rows, and what the tokenizer says of them.

    Attributes:
        kept: what is kept of each chunk, n_chunks of them.
        truncated: chunks that are too long all the same: a single character may be, (n_chunks,).
    """

    rows: ChunkedRows
    kept: list[Kept]
    truncated: BoolArray


class _Piece(NamedTuple, Generic[Kept]):
    """A chunk, what is kept of it, and whether it is too long all the same."""

    chunk: Chunk
    kept: Kept
    is_truncated: bool


@dataclass(slots=True)
class _Pieces(Generic[Kept]):
    """The pieces of a shard, and the row that each is of."""

    row: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    is_truncated: list[bool] = field(default_factory=list)

    def add(self, row: int, piece: _Piece[Kept]) -> None:
        self.row.append(row)
        self.chunks.append(piece.chunk)
        self.kept.append(piece.kept)
        self.is_truncated.append(piece.is_truncated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunker(Generic[Kept]):
    """Makes chunks of rows, each a function of its row alone.

    Attributes:
        tokenizer: its limit is that of a chunk.
        cutter: where a text is cut.
        excerpt_chars: how much of a text is tokenised at once, at least.
    """

    tokenizer: Tokenizer[Kept]
    cutter: Cutter
    excerpt_chars: int = LEAST_EXCERPT_CHARS

    def split(self, rows: Rows, *, check: Callable[[], None] = lambda: None) -> Split[Kept]:
        """Returns the chunks of a shard's rows.

        Args:
            rows: in input order.
            check: called now and then; may raise to end it.

        Raises:
            InputError: the rows' metadata, repeated with each chunk, is too large for a table.
        """
        whole = self.tokenizer.tokenize(rows.texts, check=check)
        pieces: _Pieces[Kept] = _Pieces()
        for index, text in enumerate(rows.texts):
            if whole.truncated[index] and not text.isspace():
                for piece in self._cut(text, check):
                    pieces.add(index, piece)
            else:
                is_truncated = bool(whole.truncated[index])
                pieces.add(index, _Piece(Chunk(0, len(text)), whole.row(index), is_truncated))
        truncated = np.array(pieces.is_truncated, dtype=np.bool_)
        return Split(_chunked(rows, pieces), pieces.kept, truncated)

    def _cut(self, text: str, check: Callable[[], None]) -> Iterator[_Piece[Kept]]:
        """Yields the pieces of a text that is too long."""
        at = next_solid(text, 0)
        while at is not None:
            check()
            chunks, at = self.cutter.cut(self._excerpt(text, at), at)
            yield from self._fitted(text, chunks, check)

    def _excerpt(self, text: str, at: int) -> Excerpt:
        """Returns the tokens of a text from `at` on, enough of them to cut at least one chunk."""
        n_chars = max(self.excerpt_chars, CHARS_PER_TOKEN * self.cutter.excerpt_tokens)
        while True:
            stop = len(text)
            if at + n_chars < len(text):
                space = text.rfind(" ", at, at + n_chars)
                stop = space if space > at else at + n_chars
            starts = self.tokenizer.token_starts(text[at:stop]) + at  # (n_tokens,)
            if stop == len(text) or len(starts) >= self.cutter.excerpt_tokens:
                return Excerpt(text, stop, starts)
            n_chars *= 4

    def _fitted(
        self, text: str, chunks: Sequence[Chunk], check: Callable[[], None]
    ) -> Iterator[_Piece[Kept]]:
        """Yields chunks with what is kept of them; those that are too long after all, in halves."""
        tokens = self.tokenizer.tokenize([text[c.start : c.stop] for c in chunks], check=check)
        for index, chunk in enumerate(chunks):
            is_truncated = bool(tokens.truncated[index])
            if is_truncated and chunk.stop - chunk.start > 1:
                middle = middle_end(text, chunk)
                start = next_solid(text, middle) or middle
                halves = [trimmed(text, chunk.start, middle), Chunk(start, chunk.stop)]
                yield from self._fitted(text, halves, check)
            else:
                yield _Piece(chunk, tokens.row(index), is_truncated)


def make_cutter(room: int, overlap: int) -> Cutter:
    """Returns what cuts a little below the limit, so that few chunks have to be cut again.

    Args:
        room: tokens of text in a chunk, at most.
        overlap: tokens of a chunk that the next begins with, at most; half of `room` or less.
    """
    room -= min(SLACK_TOKENS, room // 16)
    return Cutter(room=room, overlap=min(overlap, room // 2))


def _chunked(rows: Rows, pieces: _Pieces[Kept]) -> ChunkedRows:
    row = np.array(pieces.row, dtype=np.int64)  # (n_chunks,)
    n_chunks = np.bincount(row, minlength=len(rows.texts))  # (n_rows,)
    chunk_index = np.arange(len(row)) - (np.cumsum(n_chunks) - n_chunks)[row]  # (n_chunks,)
    _check_metadata(rows, n_chunks)
    taken = pa.array(row)
    numbers = pa.array(chunk_index).cast(pa.string())
    return ChunkedRows(
        row_index=rows.row_index[row],
        ids=pc.binary_join_element_wise(rows.ids.take(taken), numbers, "#"),
        texts=[
            rows.texts[index][chunk.start : chunk.stop]
            for index, chunk in zip(pieces.row, pieces.chunks, strict=True)
        ],
        metadata=rows.metadata.take(taken),
        skipped=rows.skipped,
        row=row,
        chunk_index=chunk_index,
        char_start=np.array([chunk.start for chunk in pieces.chunks], dtype=np.int64),
        char_stop=np.array([chunk.stop for chunk in pieces.chunks], dtype=np.int64),
    )


def _check_metadata(rows: Rows, n_chunks: IntArray) -> None:
    """Raises unless the metadata of all chunks fits into one column.

    Raises:
        InputError: it does not.
    """
    lengths = np.asarray(pc.fill_null(pc.binary_length(rows.metadata), 0))  # (n_rows,)
    n_bytes = lengths.astype(np.int64) * n_chunks
    if n_bytes.sum() > _MOST_METADATA_BYTES:
        worst = int(n_bytes.argmax())
        raise InputError(
            f"Too much metadata: row_index={rows.row_index[worst]}; {lengths[worst]:,} bytes stand "
            f"with each of its {n_chunks[worst]:,} chunks, and a shard holds 2 GiB. Name fewer "
            f"output.keep_columns, or lower output.rows_per_shard."
        )
