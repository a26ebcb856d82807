"""Mode batch: each shard is a batch of the Batch API, made once, and asked for until it is done.

A shard with more than one batch may have gets them one after another.
The endpoint works while nobody is here: a task that is stopped, killed or asleep finds its batches
again by their ids. Memory is bounded by one shard: texts are read again when its batch is done.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chatspace.errors import InputError, ModelError, UnfitEnvironmentError
from chatspace.openai_embed.answers import BadAnswerError
from chatspace.openai_embed.asking import Inputs
from chatspace.openai_embed.client import Client, is_too_long, request_body
from chatspace.openai_embed.grouping import group
from chatspace.openai_embed.journal import Record
from chatspace.openai_embed.ledger import TOKEN, Ledger, new_ledger, read_ledger, write_ledger
from chatspace.openai_embed.limits import Halted
from chatspace.openai_embed.shard import FILES, LEDGER, Shard, unknown_length
from chatspace.openai_embed.slice_run import TICK_S, SliceRun
from chatspace.openai_embed.uploads import note_files
from chatspace.shards.records import ShardSpan

log = logging.getLogger(__name__)

# Source: https://platform.openai.com/docs/guides/batch#rate-limits
MAX_BATCH_INPUTS = 50_000
MAX_BATCH_BYTES = 200 * 10**6
MAX_ATTEMPTS = 5
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_FULL_QUEUE = "token_limit_exceeded"


@dataclass(slots=True, kw_only=True)
class BatchRun(SliceRun):
    """One execution of a slice in mode batch."""

    client: Client
    _batches: dict[int, tuple[ShardSpan, Ledger]] = field(default_factory=dict)
    _again: deque[tuple[ShardSpan, int]] = field(default_factory=deque)
    _room: int = 0

    def run(self) -> None:
        """Does the shards of the slice; returns early if a stop is requested.

        Raises:
            ChatspaceError: the endpoint or a row cannot be used, or a shard cannot be written.
        """
        self._room = self.requests.max_batches
        driver = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.report()  # from now on a stop waits for the request under way
        try:
            driving: Future[None] = driver.submit(self._drive)
            while not wait([driving], timeout=TICK_S).done:
                self.report("waiting for batches")
                if self.work.stop.requested:
                    self.asker.limiter.halt.set()
            with suppress(Halted):
                driving.result()
        finally:
            self.asker.limiter.halt.set()
            driver.shutdown(wait=False, cancel_futures=True)

    def _drive(self) -> None:
        spans = self.work.shards()
        while not self.asker.limiter.halt.is_set():
            self._fill(spans)
            if not self._batches and not self._again:
                if self._held:
                    raise unknown_length(self._held[0])
                self.is_done = True
                return
            ended = [index for index in list(self._batches) if self._look(index)]
            if not ended:
                self._pause()

    def _pause(self) -> None:
        start = time.perf_counter()
        try:
            self.asker.limiter.pause(self.requests.poll_s)
        finally:
            self.counters.stages["requests"].idle_s += time.perf_counter() - start

    def _fill(self, spans: Iterator[ShardSpan]) -> None:
        """Makes batches of further shards while there is room for them."""
        while len(self._batches) < self._room:
            if self._again:
                span, attempt = self._again.popleft()
            elif self._held and self.asker.dim:
                span, attempt = self._held.popleft(), 1
            elif (span_ := next(spans, None)) is not None:
                span, attempt = span_, 1
            else:
                return
            self._begin(span, attempt)

    def _begin(self, span: ShardSpan, attempt: int) -> None:
        shard = self._open(span)
        if not shard.inputs.rows:
            self._commit(shard)
            return
        plan_sha256 = self.work.plan.plan_sha256
        ledger = read_ledger(self._path(span), plan_sha256)
        try:
            texts_sha256 = shard.journal.texts_sha256
            if ledger is None:
                ledger = new_ledger(plan_sha256, texts_sha256, self._groups(shard), attempt)
                write_ledger(self._path(span), ledger)
                ledger = self._make(shard, ledger, is_new=True)
            elif not ledger.is_about(texts_sha256):
                raise InputError(
                    f"Batch of other texts: shard {span.index}; {ledger.batch_id or 'it'} was made "
                    f"of rows that are cut in other places here, by another version of chatspace "
                    f"or tiktoken. Go on with that one, or remove {self._path(span)}, and its rows "
                    "are asked, and paid, for again."
                )
            elif ledger.batch_id is None:
                ledger = self._make(shard, ledger, is_new=False)
        finally:
            shard.journal.close()
        self._batches[span.index] = (span, ledger)

    def _open(self, span: ShardSpan) -> Shard:
        start = time.perf_counter()
        shard = self.opener.open(span, self.asker.dim)
        self.counters.stages["loader"].busy_s += time.perf_counter() - start
        self.asker.dim = self.asker.dim or shard.journal.answers.dim
        return shard

    def _make(self, shard: Shard, ledger: Ledger, *, is_new: bool) -> Ledger:
        """Returns the ledger with the id of its batch, which is made unless it is there."""
        may_be_there = not is_new
        file_id: str | None = None

        def attempt() -> Any:
            nonlocal may_be_there, file_id
            if may_be_there:
                found = self.client.find_batch(TOKEN, ledger.token, ledger.since)
                if found is not None:
                    return found
            if file_id is None:
                file_id = self.client.upload(self._content(shard, ledger))
                note_files(self.opener.path(shard.span, FILES), [file_id])
            may_be_there = True  # from here on an answer may be lost
            self.asker.tally.add(requests=1)
            return self.client.create_batch(file_id, self._metadata(shard, ledger))

        batch = self.asker.patiently(attempt)
        ledger = ledger.made(str(batch.id))
        write_ledger(self._path(shard.span), ledger)
        log.info("batch id=%s shard=%d", batch.id, shard.span.index)
        return ledger

    def _groups(self, shard: Shard) -> list[Inputs]:
        """Returns as many requests as one batch takes; the next batch has what is left."""
        name, dimensions = self.asker.name, self.asker.dimensions

        def n_bytes(inputs: Inputs) -> int:
            return len(batch_line(MAX_BATCH_INPUTS, request_body(name, inputs.texts, dimensions)))

        return one_batch(group(shard.inputs, self.requests), n_bytes)

    def _content(self, shard: Shard, ledger: Ledger) -> bytes:
        texts = dict(zip(shard.inputs.rows, shard.inputs.texts, strict=True))
        bodies = []
        for rows in ledger.groups:
            sent = [texts.get(row, shard.rows.texts[row]) for row in rows]
            bodies.append(request_body(self.asker.name, sent, self.asker.dimensions))
        return batch_file(bodies, shard.span.index)

    def _metadata(self, shard: Shard, ledger: Ledger) -> dict[str, str]:
        place = f"{self.work.split.name} {shard.span.index} {ledger.attempt}"
        return {TOKEN: ledger.token, "run": self.work.plan.run_id, "shard": place[:512]}

    def _look(self, index: int) -> bool:
        """Returns whether a batch has ended; then what it made is kept."""
        span, ledger = self._batches[index]
        assert ledger.batch_id is not None
        batch_id = ledger.batch_id
        try:
            batch = self.asker.patiently(lambda: self.client.batch(batch_id))
        except ModelError as error:
            raise ModelError(
                f"Batch not found: {batch_id}; {error} If the account has it no longer, remove "
                f"{self._path(span)}, and its rows are asked, and paid, for again."
            ) from None
        if batch.status not in _ENDED:
            return False
        start = time.perf_counter()
        self._finish(span, ledger, batch)
        del self._batches[index]
        self.counters.stages["requests"].busy_s += time.perf_counter() - start
        return True

    def _finish(self, span: ShardSpan, ledger: Ledger, batch: Any) -> None:
        shard = self._open(span)
        refused: list[tuple[int, ...]] = []
        files = (batch.input_file_id, batch.output_file_id, batch.error_file_id)
        note_files(self.opener.path(span, FILES), files)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = self.asker.patiently(partial(self.client.download, str(file_id)))
            refused += self._keep(shard, ledger, content)
        # Only now: whoever is killed before finds the batch again and fetches it again.
        self._path(span).unlink(missing_ok=True)
        self._ask_directly(shard, {row for rows in refused for row in rows})
        if shard.journal.answers.is_whole:
            self._commit(shard)
            return
        shard.journal.close()
        asked = {row for rows in ledger.groups for row in rows}
        if asked.isdisjoint(shard.journal.answers.left):
            self._again.append((span, 1))
        else:
            self._ask_again(span, ledger, batch)

    def _keep(self, shard: Shard, ledger: Ledger, content: bytes) -> list[tuple[int, ...]]:
        """Journals the answers of a file; returns the requests refused for their length."""
        refused = []
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            item = json.loads(line)
            rows = ledger.groups[int(item["custom_id"])]
            response = item.get("response") or {}
            said = json.dumps(response.get("body") or item.get("error") or "")
            if response.get("status_code") == 200:
                self._keep_answer(shard, ledger, rows, response["body"])
            elif _is_refused_for_length(response.get("body")):
                refused.append(rows)
            else:
                log.warning("request of a batch failed rows=%d answer=%.200s", len(rows), said)
        return refused

    def _keep_answer(
        self, shard: Shard, ledger: Ledger, rows: tuple[int, ...], body: dict[str, Any]
    ) -> None:
        if shard.journal.answers.is_known[list(rows)].all():
            return  # fetched before, by an execution that was killed then
        try:
            answer = self.asker.read(body, len(rows))
        except BadAnswerError as error:
            log.warning("wrong answer in a batch: %s", error)
            return
        cut = sorted(set(ledger.cut) & set(rows))
        n_tokens = answer.n_tokens or 0
        record = Record(rows=rows, vectors=answer.vectors, cut=cut, n_tokens=n_tokens)
        shard.journal.add(record)
        self.asker.tally.add(n_tokens=record.n_tokens)
        self.counters.add(n_tokens=record.n_tokens)

    def _ask_directly(self, shard: Shard, rows: set[int]) -> None:
        """Asks for rows among which some are too long, as mode direct does."""
        at = [i for i, row in enumerate(shard.inputs.rows) if row in rows]
        for inputs in group(shard.inputs.chosen(at), self.requests):
            for record in self.asker.records(inputs, shard.row_index):
                shard.journal.add(record)
                self.counters.add(n_tokens=record.n_tokens)

    def _ask_again(self, span: ShardSpan, ledger: Ledger, batch: Any) -> None:
        """Plans another batch for what a batch has left undone, or gives up."""
        errors = list((batch.errors.data if batch.errors else None) or [])
        if any(error.code == _FULL_QUEUE for error in errors):
            # The account's queue is full: wait for what is in it, and put less into it.
            self._room = max(1, len(self._batches) - 1)
            self._again.append((span, ledger.attempt))
            if len(self._batches) <= 1:
                self._pause()
            return
        if batch.status == "cancelled" and ledger.is_cancelled:
            self._again.append((span, ledger.attempt))
            return
        why = f"{errors[0].code}: {errors[0].message}" if errors else batch.status
        if batch.status == "failed":
            raise ModelError(f"Batch refused: {batch.id}; {why}. Change what it names.")
        if batch.status == "cancelled" or ledger.attempt >= MAX_ATTEMPTS:
            raise UnfitEnvironmentError(
                f"Batch not finished: {batch.id}; {why}, attempt {ledger.attempt}. What it did is "
                "kept; run it again for the rest."
            )
        self._again.append((span, ledger.attempt + 1))

    def _commit(self, shard: Shard) -> None:
        if self._write(shard):
            self._path(shard.span).unlink(missing_ok=True)
            self.counters.add(rows=shard.span.n_rows)

    def _path(self, span: ShardSpan) -> Path:
        return self.opener.path(span, LEDGER)


def _is_refused_for_length(body: Any) -> bool:
    """Returns whether an answer in a batch refuses its inputs for their length."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    said, code = str(error.get("message") or ""), str(error.get("code") or "")
    return is_too_long(said, code, error.get("param"))


def one_batch(
    groups: Iterable[Inputs],
    n_bytes: Callable[[Inputs], int],
    *,
    max_inputs: int = MAX_BATCH_INPUTS,
    max_bytes: int = MAX_BATCH_BYTES,
) -> list[Inputs]:
    """Returns requests from the first on, as many as a batch may have and at least one.

    Args:
        groups: inputs of each request.
        n_bytes: size of a request in the file of a batch.
        max_inputs: of all requests together.
        max_bytes: of the file.
    """
    taken: list[Inputs] = []
    for inputs in groups:
        max_inputs -= len(inputs.rows)
        max_bytes -= n_bytes(inputs)
        if taken and (max_inputs < 0 or max_bytes < 0):
            break
        taken.append(inputs)
    return taken


def batch_line(number: int, body: dict[str, Any]) -> bytes:
    """Returns a request as a line of the file of a batch."""
    line = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def batch_file(
    bodies: Sequence[dict[str, Any]], shard: int, max_bytes: int = MAX_BATCH_BYTES
) -> bytes:
    """Returns the file of a batch: a request a line, numbered from 0.

    Raises:
        InputError: it is larger than an endpoint takes.
    """
    content = b"".join(batch_line(number, body) for number, body in enumerate(bodies))
    if len(content) > max_bytes:
        raise InputError(
            f"Row too large for a batch: shard {shard} has a request of {len(content):,} bytes; "
            f"limit {max_bytes:,}. Set requests.mode: direct."
        )
    return content
