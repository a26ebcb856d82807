"""What both modes of a slice have in common: what they work with, and how a shard is ended."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from chatspace.openai_embed.asking import Asker
from chatspace.openai_embed.shard import Opener, Shard
from chatspace.openai_embed.spec import RequestsSection
from chatspace.plan.work import Progress, SliceWork, StageTimes
from chatspace.shards.records import ShardSpan

TICK_S = 0.25
REPORT_EVERY_S = 0.5
STAGES = ("loader", "requests", "writer")


@dataclass(slots=True, kw_only=True)
class Counters:
    """How far a slice is; several threads add to it.

    Attributes:
        rows: input rows dealt with.
        n_tokens: tokens of answers that came.
        n_tokens_done: tokens of committed shards, also those answered by an earlier execution.
    """

    rows: int = 0
    n_tokens: int = 0
    n_tokens_done: int = 0
    stages: dict[str, StageTimes] = field(
        default_factory=lambda: {name: StageTimes() for name in STAGES}
    )

    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, rows: int = 0, n_tokens: int = 0) -> None:
        """Counts rows and tokens of an answer."""
        with self._lock:
            self.rows += rows
            self.n_tokens += n_tokens


@dataclass(slots=True, kw_only=True)
class SliceRun:
    """One execution of a slice.

    Attributes:
        is_done: whether every shard that was this execution's is committed.
    """

    work: SliceWork
    opener: Opener
    asker: Asker
    requests: RequestsSection
    counters: Counters = field(default_factory=Counters)
    is_done: bool = False
    # Shards without a vector, until the length is known that theirs would have.
    _held: deque[ShardSpan] = field(default_factory=deque)
    _told_stage: str = ""
    _told_at_s: float = 0.0

    def report(self, stage: str = "embedding") -> None:
        """Tells the task how far the slice is, now and then, and whenever the stage is another.

        Args:
            stage: what it is at, unless the endpoint was last asked in vain.
        """
        stage, now_s = self.asker.stage or stage, time.monotonic()
        if stage == self._told_stage and now_s < self._told_at_s + REPORT_EVERY_S:
            return
        self._told_stage, self._told_at_s = stage, now_s
        rows, n_tokens = self.counters.rows, self.counters.n_tokens
        # What the endpoint pads is not known.
        self.work.report(Progress(rows=rows, n_tokens=n_tokens, n_padded_tokens=0, stage=stage))

    def _write(self, shard: Shard) -> bool:
        """Writes a shard, unless it has to wait; returns whether it did.

        Raises:
            ModelError: the vectors cannot be stored as the spec says.
        """
        if not shard.has_length(self.asker.dim):
            shard.journal.close()
            self._held.append(shard.span)
            return False
        start = time.perf_counter()
        self.opener.commit(shard, self.asker.dim)
        self.counters.n_tokens_done += shard.journal.answers.n_tokens
        self.counters.stages["writer"].busy_s += time.perf_counter() - start
        return True
