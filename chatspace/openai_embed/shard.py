"""A shard on its way: its rows, the answers that came, and the table that they become."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chatspace.chunking.chunker import ChunkedRows, Chunker, Rows
from chatspace.chunking.cutting import IntArray
from chatspace.chunking.documents import chunk_table, document_vectors
from chatspace.chunking.rows_left import RowsLeft
from chatspace.data.rows import PreparedRows, SplitReader
from chatspace.errors import ModelError
from chatspace.layout import Layout
from chatspace.openai_embed.answers import FloatArray
from chatspace.openai_embed.asking import Inputs
from chatspace.openai_embed.chunking import make_chunker
from chatspace.openai_embed.grouping import open_inputs
from chatspace.openai_embed.journal import Journal, Record
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import Counts, TokenCounter
from chatspace.openai_embed.uploads import delete_files
from chatspace.plan.work import SliceWork
from chatspace.shards.records import ShardSpan
from chatspace.shards.table import embedding_table
from chatspace.shards.vectors import finite_floats
from chatspace.spec.output import OutputSection

log = logging.getLogger(__name__)

TOO_LONG = "too_long"
MOST_TOLD = 20  # chunks that were cut, in the log of a task; the manifest counts them all
# What the names of a shard's files in the folder of requests end in.
JOURNAL, LEDGER, FILES = "journal", "batch.json", "files"
_UNIT = 1e-3  # how far from one the length of a vector may be that its model scaled to one


@dataclass(slots=True, kw_only=True)
class Shard:
    """A shard in hand; its rows are chunks where long ones are cut into them.

    Attributes:
        inputs: rows that had no vector when it was opened.
        n_tokens: of each chunk, (n_chunks,); None where rows are whole.
        n_open: requests that have not been answered.
    """

    span: ShardSpan
    rows: Rows
    journal: Journal
    inputs: Inputs
    n_tokens: Counts | None = None
    n_open: int = 0
    row_index: list[int] = field(init=False)  # number in the split of each text's row
    input_row: IntArray = field(init=False)  # position among them of each text's, (n_texts,)
    _rows_left: RowsLeft = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        rows, n_texts = self.rows, len(self.rows.texts)
        self.row_index = rows.row_index.tolist()
        self.input_row = rows.row if isinstance(rows, ChunkedRows) else np.arange(n_texts)
        is_open = np.isin(np.arange(n_texts), self.inputs.rows)  # (n_texts,)
        self._rows_left = RowsLeft(self.input_row, is_open)

    @property
    def rows_left(self) -> int:
        """Input rows that want a vector, or one for some of their chunks."""
        return self._rows_left.n_left

    def add(self, record: Record) -> int:
        """Journals an answer; returns how many input rows are done with it.

        Raises:
            OutputError: the disk is full or the folder is gone.
            ModelError: its vectors are of another length than those that are there.
        """
        self.journal.add(record)
        with self._lock:
            return self._rows_left.finish(record.rows)

    def has_length(self, dim: int | None) -> bool:
        """Returns whether the length of its vectors is known, from elsewhere or from its own."""
        return bool(dim or self.journal.answers.dim)


@dataclass(slots=True)
class Opener:
    """Reads shards, opens their journals, and commits them; one thread at a time.

    Args:
        work: the slice.
        model: what the spec says of the model.
        counter: counts tokens.
        delete: deletes a file at the endpoint.
        check: raises where the slice is to end now.
    """

    work: SliceWork
    model: ModelSection
    counter: TokenCounter
    delete: Callable[[str], None]
    check: Callable[[], None]
    reader: SplitReader = field(init=False)
    chunker: Chunker[int] | None = field(init=False)
    _n_told: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.reader = self.work.reader()
        self.chunker = make_chunker(self.model, self.counter)

    def open(self, span: ShardSpan, dim: int | None) -> Shard:
        """Returns a shard with what was already answered of it.

        Args:
            span: the shard.
            dim: length of its vectors, None where it is not known.
        """
        rows: Rows
        n_tokens = None
        with self._lock:
            rows = self.reader.read(span)
        if self.chunker is not None:
            split = self.chunker.split(rows, check=self.check)
            rows, n_tokens = split.rows, np.array(split.kept, np.int64)
        owner = self.work.plan.plan_sha256
        journal = Journal(self.path(span, JOURNAL), owner, rows.texts, dim)
        inputs = open_inputs(
            journal,
            rows.texts,
            model=self.model,
            counter=self.counter,
            row_index=rows.row_index.tolist(),
            known=n_tokens,
        )
        return Shard(span=span, rows=rows, journal=journal, inputs=inputs, n_tokens=n_tokens)

    def commit(self, shard: Shard, dim: int | None) -> None:
        """Writes the shard; its journal, and its files at the endpoint, go once it is there.

        Raises:
            ModelError: the vectors cannot be stored as the spec says.
        """
        answers, skipped = shard.journal.answers, dict(shard.rows.skipped)
        assert answers.is_whole and shard.has_length(dim)
        if answers.skipped:
            skipped[TOO_LONG] = len(answers.skipped)
        kept = np.array([r not in answers.skipped for r in range(answers.n_texts)], np.bool_)
        vectors = answers.vectors
        if vectors is None:
            vectors = np.zeros((answers.n_texts, dim or 0), np.float32)
        table = self._table(shard, _kept_rows(shard.rows, kept), vectors[kept])
        truncated = len(np.unique(shard.input_row[sorted(answers.cut)]))
        self.work.commit(shard.span, table, skipped=skipped, truncated=truncated)
        shard.journal.close(remove=True)
        delete_files(self.path(shard.span, FILES), self.delete)

    def path(self, span: ShardSpan, suffix: str) -> Path:
        """Returns a file of the run about one shard."""
        plan = self.work.plan
        folder = Layout(Path(plan.workspace)).run(plan.run_id).requests(self.work.split.name)
        return folder / f"shard-{span.index:05d}.{suffix}"

    def remove_leftovers(self) -> None:
        """Removes what is left of shards that were committed just before their task was killed."""
        split = self.work.split
        folder = self.path(split.span(0), JOURNAL).parent
        for path in folder.glob("shard-*") if folder.is_dir() else ():
            span = split.span(int(path.name.split(".")[0].removeprefix("shard-")))
            if self._shard_file(span).exists():
                delete_files(self.path(span, FILES), self.delete)
                path.unlink(missing_ok=True)

    def _shard_file(self, span: ShardSpan) -> Path:
        return Path(self.work.plan.workspace) / self.work.split.output_dir / span.file_name

    def _table(self, shard: Shard, rows: Rows, vectors: FloatArray) -> pa.Table:
        plan, split = self.work.plan, self.work.split
        output = OutputSection.model_validate(plan.spec["output"])
        vectors, n_tokens = cut(vectors, output), shard.n_tokens
        if isinstance(rows, ChunkedRows) and (n_chars := shard.journal.answers.n_chars):
            self._tell_cut(rows, n_chars)
            rows, n_tokens = self._as_sent(rows, n_tokens, n_chars)
        table = embedding_table(
            rows=rows,
            vectors=finite_floats(vectors, output.dtype, rows.row_index),
            source=plan.spec["dataset"]["source"],
            dataset=split.dataset,
            split=split.name,
            model=plan.model["name"],
            created_at=plan.created_at,
            run_id=plan.run_id,
            keep_text=output.keep_text,
            dtype=output.dtype,
        )
        if not isinstance(rows, ChunkedRows):
            return table
        documents = None
        if self.model.document_vector:
            assert n_tokens is not None
            documents = document_vectors(vectors, rows.row, n_tokens)
        return chunk_table(table, rows, documents)

    def _as_sent(
        self, rows: ChunkedRows, n_tokens: Counts | None, n_chars: Mapping[int, int]
    ) -> tuple[ChunkedRows, Counts | None]:
        """Returns chunks, and their tokens, as they were embedded.

        Args:
            rows: as they were cut here.
            n_tokens: of each, (n_chunks,).
            n_chars: how much was sent of those that the endpoint found too long.
        """
        at, texts, char_stop = list(n_chars), list(rows.texts), rows.char_stop.copy()
        for index, sent in n_chars.items():
            texts[index] = texts[index][:sent]
        char_stop[at] = rows.char_start[at] + list(n_chars.values())
        if n_tokens is not None:
            n_tokens = n_tokens.copy()
            n_tokens[at] = self.counter.count([texts[index] for index in at])
        return replace(rows, texts=texts, char_stop=char_stop), n_tokens

    def _tell_cut(self, rows: ChunkedRows, n_chars: Mapping[int, int]) -> None:
        for index in sorted(n_chars)[: MOST_TOLD - self._n_told]:
            log.warning(
                "chunk cut row_index=%d chunk_index=%d chars=%d of %d: too long for the endpoint",
                rows.row_index[index], rows.chunk_index[index],
                n_chars[index], len(rows.texts[index]),
            )  # fmt: skip
            self._n_told += 1
            if self._n_told == MOST_TOLD:
                log.warning("chunk cut: further ones are counted in rows_truncated alone")


def unknown_length(span: ShardSpan) -> ModelError:
    """Returns the error for shards without any vector in a slice without any answer."""
    return ModelError(
        f"Length of the vectors is not known: shard {span.index} has no row that could be sent, "
        "and no other has one. Set model.dimensions, or leave those rows out."
    )


def cut(vectors: FloatArray, output: OutputSection) -> FloatArray:
    """Returns vectors cut as the output section says.

    Those of length one are of length one again after they are cut.

    Raises:
        ModelError: they are shorter than they are to be cut to.
    """
    dim, wanted = vectors.shape[1], output.truncate_dim
    if wanted is not None and wanted > dim:
        raise ModelError(
            f"Vectors too short: output.truncate_dim={wanted}; the endpoint's have {dim} numbers. "
            "Lower it or leave it out."
        )
    if wanted is not None and wanted < dim:
        is_unit = np.abs(np.linalg.norm(vectors, axis=1) - 1) < _UNIT  # (n_rows,)
        vectors = np.ascontiguousarray(vectors[:, :wanted])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n_rows, 1)
        vectors = np.where(
            is_unit[:, None] & (norms > 0), vectors / np.maximum(norms, 1e-30), vectors
        )
    return vectors


def _kept_rows(rows: Rows, kept: npt.NDArray[np.bool_]) -> Rows:
    if kept.all():
        return rows
    mask: Any = pa.array(kept)
    return PreparedRows(
        row_index=rows.row_index[kept],
        ids=rows.ids.filter(mask),
        texts=[text for text, keep in zip(rows.texts, kept, strict=True) if keep],
        metadata=rows.metadata.filter(mask),
        skipped=rows.skipped,
    )
