"""One slice in three overlapped stages: read and tokenise, encode, write.

    loader (thread)  ──tokens──▶  encoder (calling thread, and its workers)  ──vectors──▶  writer

What is handed on are whole shards. Memory is bounded by the one that is read, `prefetch_shards`
that wait, those whose batches the workers have (one or two, unless shards are smaller than
batches), one that waits to be written and one that is written.
A shard's vectors depend on that shard alone: nothing is carried over between shards, and no batch
mixes them; but while the last batches of a shard are encoded, those of the next begin.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from chatspace.chunking.chunker import ChunkedRows, Rows
from chatspace.chunking.documents import chunk_table, document_vectors
from chatspace.chunking.rows_left import RowsLeft
from chatspace.errors import InputError
from chatspace.hf_embed.bucketing import Batch, IntArray
from chatspace.hf_embed.chunking import TokenChunker
from chatspace.hf_embed.encoder import Encoder, FloatArray
from chatspace.hf_embed.flow import POLL_S, Channel, Flow
from chatspace.hf_embed.metrics import Counters, StageClock
from chatspace.hf_embed.reading import Reader
from chatspace.hf_embed.tokens import Tokens
from chatspace.plan.work import Commit, StopRequest
from chatspace.shards.records import ShardSpan
from chatspace.shards.table import Vectors
from chatspace.shards.vectors import finite_floats

WRITE_AHEAD_SHARDS = 1
LEAVE_S = 5.0  # how long an ending slice waits for a stage that is in the middle of something


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run spec says of the pipeline.

    Attributes:
        prefetch_shards: shards that wait, tokenised, for the encoder.
        refuse_too_long: a row above the model's limit is an error.
        dtype: how vectors are stored; `float16` is made here, so that what it cannot hold shows.
        document_vectors: rows that are cut into chunks get a vector of their own.
    """

    prefetch_shards: int
    refuse_too_long: bool
    dtype: str
    document_vectors: bool = False


@dataclass(slots=True, kw_only=True)
class _Shard:
    """A shard on its way through the stages; its rows are chunks where long ones are cut."""

    span: ShardSpan
    rows: Rows
    tokens: Tokens
    batches: Sequence[Batch]
    vectors: FloatArray  # (n_rows, dim)
    input_row: IntArray  # (n_rows,)
    rows_left: RowsLeft
    n_padded_left: int
    n_batches_done: int = 0

    @property
    def is_whole(self) -> bool:
        return self.n_batches_done == len(self.batches)

    def finish(self, batch: Batch, vectors: FloatArray) -> int:
        """Takes the vectors of a batch, and returns how many input rows are done with it."""
        self.vectors[batch.rows] = vectors
        self.n_batches_done += 1
        self.n_padded_left -= batch.n_padded_tokens
        return self.rows_left.finish(batch.rows)


@dataclass(frozen=True, slots=True)
class _Started:
    """A batch that a worker of the encoder has."""

    shard: _Shard
    batch: Batch
    vectors: Future[FloatArray]


@dataclass(kw_only=True)
class Pipeline:
    """The stages of one slice.

    Attributes:
        to_table: makes the table of a shard from its rows and vectors.
        commit: writes a shard.
        chunker: cuts rows that are too long; None leaves them whole.
        flow: what the stages share; the caller may have begun it earlier.
        n_taken: shards begun so far.
        n_committed: shards written so far.
        is_exhausted: whether there are no more shards to begin.
    """

    encoder: Encoder
    reader: Reader
    to_table: Callable[[Rows, Vectors], pa.Table]
    commit: Commit
    stop: StopRequest
    settings: Settings
    counters: Counters
    chunker: TokenChunker | None = None
    flow: Flow = field(default_factory=Flow)
    n_taken: int = 0
    n_committed: int = 0
    is_exhausted: bool = False
    clocks: dict[str, StageClock] = field(
        default_factory=lambda: {name: StageClock() for name in ("loader", "encoder", "writer")}
    )
    _commit_s: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether every shard was written."""
        return self.is_exhausted and self.n_committed == self.n_taken

    def run(self, spans: Iterable[ShardSpan]) -> None:
        """Does the shards in order, until the last or until a stop is requested.

        Raises:
            BaseException: the first error of any stage, as it was raised there.
        """
        size = self.settings.prefetch_shards
        self._loaded: Channel[_Shard | None] = Channel(self.flow, "tokens", size)
        self._encoded: Channel[_Shard | None] = Channel(self.flow, "vectors", WRITE_AHEAD_SHARDS)
        threads = [
            self._start("loader", lambda: self._load(spans)),
            self._start("writer", self._write),
        ]
        try:
            self._encode()
            self._encoded.put(None, self.clocks["encoder"])
            self.flow.join(threads[1], self.clocks["encoder"])
        except BaseException as error:
            self.flow.fail(error)
        self.flow.close()
        leave_by = time.perf_counter() + LEAVE_S
        self.encoder.close(LEAVE_S)
        for thread in threads:  # daemons: one that is stuck does not keep the process
            thread.join(max(0.0, leave_by - time.perf_counter()))
        if self.flow.error is not None:
            raise self.flow.error

    def _start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # the encoder's thread raises it
                self.flow.fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    # Loader

    def _load(self, spans: Iterable[ShardSpan]) -> None:
        clock = self.clocks["loader"]
        for span in spans:
            self.n_taken += 1
            if self.stop.requested:
                break
            with clock.busy():
                shard = self._load_shard(span)
            self._loaded.put(shard, clock)
        else:
            self.is_exhausted = True
        self._loaded.put(None, clock)

    def _load_shard(self, span: ShardSpan) -> _Shard:
        rows, tokens = self._tokenized(self.reader.read(span))
        if self.settings.refuse_too_long and tokens.truncated.any():
            raise self._too_long(rows, int(np.flatnonzero(tokens.truncated)[0]))
        batches = self.encoder.plan(tokens)
        input_row = rows.row if isinstance(rows, ChunkedRows) else np.arange(len(rows.texts))
        return _Shard(
            span=span,
            rows=rows,
            tokens=tokens,
            batches=batches,
            vectors=np.zeros((len(rows.texts), self.encoder.dim), np.float32),
            input_row=input_row,
            rows_left=RowsLeft(input_row, tokens.lengths > 0),
            n_padded_left=sum(batch.n_padded_tokens for batch in batches),
        )

    def _tokenized(self, rows: Rows) -> tuple[Rows, Tokens]:
        if self.chunker is not None:
            return self.chunker.split(rows, check=self.flow.check)
        return rows, self.encoder.tokenizer.tokenize(rows.texts, check=self.flow.check)

    def _too_long(self, rows: Rows, row: int) -> InputError:
        n_tokens = self.encoder.tokenizer.count(rows.texts[row])
        return InputError(
            f"Row too long: row_index={rows.row_index[row]}; {n_tokens} tokens, "
            f"limit {self.encoder.max_tokens}. "
            f"Set model.long_text: truncate or chunk, or raise model.max_tokens if the model can."
        )

    # Encoder

    def _encode(self) -> None:
        self._started: deque[_Started] = deque()
        while (shard := self._next_shard()) is not None:
            n_without_tokens = shard.rows_left.n_done  # no batch is begun yet
            self.counters.rows += sum(shard.rows.skipped.values()) + n_without_tokens
            if shard.is_whole:
                self._encoded.put(shard, self.clocks["encoder"])
            self._start_batches(shard)
            del shard  # else it lives on while the next one is waited for
        while self._started and not self._must_stop(self._started[0].shard):
            self._finish_batch()

    def _next_shard(self) -> _Shard | None:
        """Returns the next shard; finishes what is started rather than wait for one."""
        while self._started and self._loaded.is_empty and not self.stop.requested:
            self._finish_batch()
        clock = self.clocks["encoder"]
        return self._loaded.get(clock, give_up=lambda: self.stop.requested)

    def _start_batches(self, shard: _Shard) -> None:
        """Hands the batches of a shard to the workers, a few ahead of what they can do."""
        for batch in shard.batches:
            if self._must_stop(shard):
                return
            vectors = self.encoder.start(shard.tokens, batch)
            self._started.append(_Started(shard, batch, vectors))
            while len(self._started) > self.encoder.workers:
                self._finish_batch()

    def _finish_batch(self) -> None:
        """Takes the vectors of the batch that was started first."""
        with self.clocks["encoder"].busy():
            started = self._started.popleft()
            shard, batch = started.shard, started.batch
            self.counters.rows += shard.finish(batch, self._wait(started.vectors))
            self.counters.n_tokens += int(shard.tokens.lengths[batch.rows].sum())
            self.counters.n_padded_tokens += batch.n_padded_tokens
        self.flow.moved()
        if shard.is_whole:
            self._encoded.put(shard, self.clocks["encoder"])

    def _wait(self, vectors: Future[FloatArray]) -> FloatArray:
        while not wait([vectors], timeout=POLL_S).done:
            self.flow.wait("waiting for a forward pass")
        return vectors.result()

    def _must_stop(self, shard: _Shard) -> bool:
        """Returns whether a stop is requested and the shard cannot be finished in time."""
        if not self.stop.requested:
            return False
        busy_s, n_done = self.clocks["encoder"].times.busy_s, self.counters.n_padded_tokens
        if n_done == 0:
            return True
        needed_s = shard.n_padded_left * busy_s / n_done + self._commit_s
        return needed_s > self.stop.remaining_s

    # Writer

    def _write(self) -> None:
        clock = self.clocks["writer"]
        while (shard := self._encoded.get(clock)) is not None:
            with clock.busy():
                start = time.perf_counter()
                self._write_shard(shard)
                self._commit_s = time.perf_counter() - start
            del shard
            self.flow.moved()

    def _write_shard(self, shard: _Shard) -> None:
        vectors = finite_floats(shard.vectors, self.settings.dtype, shard.rows.row_index)
        self.commit(
            shard.span,
            self._table(shard, vectors),
            skipped=dict(shard.rows.skipped),
            truncated=len(np.unique(shard.input_row[shard.tokens.truncated])),
        )
        self.n_committed += 1

    def _table(self, shard: _Shard, vectors: Vectors) -> pa.Table:
        table, rows = self.to_table(shard.rows, vectors), shard.rows
        if not isinstance(rows, ChunkedRows):
            return table
        documents = None
        if self.settings.document_vectors:
            documents = document_vectors(shard.vectors, rows.row, shard.tokens.lengths)
        return chunk_table(table, rows, documents)
