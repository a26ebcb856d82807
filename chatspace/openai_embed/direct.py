"""Mode direct: the requests of a few shards at a time, many of them under way at once.

    loader (thread)  ──inputs──▶  requests (threads)  ──journal──▶  writer (calling thread)

Memory is bounded by the shards in hand, at most `AHEAD_SHARDS` and the one that is read: their rows
and their vectors. While the last requests of a shard are under way, those of the next begin.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chatspace.errors import InputError
from chatspace.openai_embed.asking import Inputs
from chatspace.openai_embed.grouping import group
from chatspace.openai_embed.limits import Halted
from chatspace.openai_embed.shard import LEDGER, Shard, unknown_length
from chatspace.openai_embed.slice_run import TICK_S, SliceRun
from chatspace.shards.records import ShardSpan

AHEAD_SHARDS = 2
FINISH_S = 30.0  # how long a slice that fails waits for answers that are charged anyway


@dataclass(slots=True, kw_only=True)
class DirectRun(SliceRun):
    """One execution of a slice in mode direct."""

    _shards: dict[int, Shard] = field(default_factory=dict)
    _requests: dict[Future[None], Shard] = field(default_factory=dict)
    _opening: Future[Shard] | None = None
    _failure: BaseException | None = None
    _is_exhausted: bool = False

    def run(self) -> None:
        """Does the shards of the slice; returns early if a stop is requested.

        Raises:
            ChatspaceError: the endpoint or a row cannot be used, or a shard cannot be written.
        """
        spans = self.work.shards()
        loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        askers = ThreadPoolExecutor(self.requests.concurrency, thread_name_prefix="asker")
        self.report()  # from now on a stop waits for the requests under way
        try:
            while not self.work.stop.requested:
                self._begin(spans, loader)
                if self._is_exhausted and not self._shards and self._opening is None:
                    if self._held:
                        raise unknown_length(self._held[0])
                    self.is_done = True
                    break
                self._tick(askers)
                self.report()
            self._finish_under_way(self.work.stop.remaining_s)
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._finish_under_way(FINISH_S)
            raise
        finally:
            self.asker.limiter.halt.set()
            askers.shutdown(wait=False, cancel_futures=True)
            loader.shutdown(wait=True, cancel_futures=True)
            for shard in self._shards.values():
                if not any(other is shard for other in self._requests.values()):
                    shard.journal.close()

    def _begin(self, spans: Iterator[ShardSpan], loader: ThreadPoolExecutor) -> None:
        """Has the next shard read, if there is room for it."""
        has_room = len(self._shards) < AHEAD_SHARDS and self._opening is None
        if has_room and (span := self._next(spans)) is not None:
            self._opening = loader.submit(self._open, span)

    def _next(self, spans: Iterator[ShardSpan]) -> ShardSpan | None:
        """Returns the shard to read next, None where there is none by now."""
        if self._held and self.asker.dim:
            return self._held.popleft()
        span = None if self._is_exhausted else next(spans, None)
        self._is_exhausted = span is None
        return span

    def _open(self, span: ShardSpan) -> Shard:
        start = time.perf_counter()
        ledger = self.opener.path(span, LEDGER)
        if ledger.exists():
            raise InputError(
                f"Batch under way: shard {span.index}; requests.mode=direct would pay for it "
                "twice. Run it with requests.mode: batch, or cancel the batch (`chatspace cancel "
                f"RUN --batches`) and remove {ledger}: what it did is then paid for again."
            )
        try:
            return self.opener.open(span, self.asker.dim)
        finally:
            self.counters.stages["loader"].busy_s += time.perf_counter() - start

    def _tick(self, askers: ThreadPoolExecutor) -> None:
        """Waits for something to happen, at most for a moment, and goes on with it."""
        start = time.perf_counter()
        waited: set[Future[Any]] = {*self._requests}
        if self._opening is not None:
            waited.add(self._opening)
        wait(waited, timeout=TICK_S, return_when=FIRST_COMPLETED)
        times = self.counters.stages["requests"]
        if self._requests:
            times.busy_s += time.perf_counter() - start
        else:
            times.idle_s += time.perf_counter() - start
        if self._opening is not None and self._opening.done():
            shard, self._opening = self._opening.result(), None
            self._send(shard, askers)
        self._collect()

    def _send(self, shard: Shard, askers: ThreadPoolExecutor) -> None:
        """Queues the requests of a shard."""
        self._shards[shard.span.index] = shard
        self.asker.dim = self.asker.dim or shard.journal.answers.dim
        self.counters.add(rows=shard.span.n_rows - shard.rows_left)
        for inputs in group(shard.inputs, self.requests):
            shard.n_open += 1
            self._requests[askers.submit(self._ask, shard, inputs)] = shard
        if shard.n_open == 0:
            self._commit(shard)

    def _ask(self, shard: Shard, inputs: Inputs) -> None:
        try:
            for record in self.asker.records(inputs, shard.row_index):
                self.counters.add(rows=shard.add(record), n_tokens=record.n_tokens)
        except Halted:
            return
        except BaseException as error:
            self._failure = self._failure or error
            self.asker.limiter.halt.set()  # at once: no other request is begun

    def _collect(self) -> None:
        """Takes finished requests out, and commits shards that are whole."""
        for request in [request for request in self._requests if request.done()]:
            shard = self._requests.pop(request)
            if self._failure is not None:
                raise self._failure
            shard.n_open -= 1
            if shard.n_open == 0:
                self._commit(shard)

    def _commit(self, shard: Shard) -> None:
        if not self._write(shard):
            self.counters.add(rows=-shard.span.n_rows)  # they count when it is read again
        del self._shards[shard.span.index]

    def _finish_under_way(self, grace_s: float) -> None:
        """Waits for the requests that were sent, which are charged anyway; starts no other."""
        end_s = time.monotonic() + grace_s
        self.asker.limiter.halt.set()
        for request in list(self._requests):
            if request.cancel():
                del self._requests[request]
        while self._requests and time.monotonic() < end_s:
            wait(self._requests, timeout=TICK_S)
            for request in [request for request in self._requests if request.done()]:
                del self._requests[request]
            self.report()
        if self._failure is not None:
            raise self._failure
