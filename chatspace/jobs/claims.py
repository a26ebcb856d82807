"""Claims: which execution works on a shard now, so that tasks that meet share the work.

    runs/{run_id}/claims/{split}/shard-00042.json      {"attempt", "host", "pid", ..., "beat"}

A claim saves work and proves nothing: that a shard is done once is the shard store's affair, and a
run whose claims cannot be written is as right. The owner counts the beat up while it lives. Whoever
sees one beat for `stale_s` seconds of its own clock takes the claim over, so that neither a dead
task nor clocks that differ between nodes hold a shard for ever. What is known to be dead is taken
over at once: an earlier attempt of the same task, a process of this host that is gone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.jobs.processes import pid_namespace, start_time
from chatspace.plan.work import StopRequest
from chatspace.shards.records import ShardSpan

log = logging.getLogger(__name__)

BEAT_S = 15.0
STALE_S = 90.0
LOOK_S = 1.0
_ATTEMPT = re.compile(r"(?P<task>.+)\.r(?P<restart>\d+)(\.lane\d+)?")


@dataclass(slots=True)
class _Seen:
    """What was seen of another execution's claim."""

    content: bytes
    since_s: float
    is_alive: bool = False


class Claims:
    """The claims of one execution on shards of one split.

    Args:
        folder: `runs/{run_id}/claims/{split}`.
        attempt: name of this execution.
        beat_s: seconds between two beats.
        stale_s: seconds without a beat after which another's claim is taken over.
    """

    def __init__(
        self, folder: Path, attempt: str, *, beat_s: float = BEAT_S, stale_s: float = STALE_S
    ) -> None:
        self.left: list[ShardSpan] = []
        """Shards that `share` passed over because a living execution has them."""
        self._folder, self._attempt = folder, attempt
        self._beat_s, self._stale_s = beat_s, stale_s
        self._held: dict[int, int] = {}  # open files, by shard
        self._seen: dict[int, _Seen] = {}
        self._beat = 0
        # No file is closed while the beat is written to it. A signal's handler may come in between.
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._works = True

    def share(
        self, spans: Sequence[ShardSpan], is_done: Callable[[ShardSpan], bool], stop: StopRequest
    ) -> Iterator[ShardSpan]:
        """Yields the shards that are this execution's to do, each claimed when it is asked for.

        First those that nobody has; then it looks once more at the others, for as long as it takes
        to know whether who has them is alive.

        Args:
            spans: the shards that are wanted.
            is_done: whether a shard is whole by now.
            stop: ends the sharing when requested.
        """
        others = []
        for span in spans:
            if stop.requested:
                return
            if is_done(span):
                continue
            if not self.take(span):
                others.append(span)
            elif is_done(span):  # written since it was looked at
                self.release(span)
            else:
                yield span
        self._seen.clear()  # who is alive is judged by what is seen from now on
        for span in others:
            if self._outlives(span, is_done, stop):
                yield span

    def take(self, span: ShardSpan) -> bool:
        """Claims a shard; False where another execution has it that may be alive."""
        if not self._works:
            return True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._create(span) or (self._displace(span) and self._create(span))
        except OSError as error:
            if error.errno == errno.ESTALE:  # another node removed the file as this one read it
                return False
            self._works = False
            log.warning("shards are not claimed folder=%s error=%s", self._folder, error)
            return True

    def release(self, span: ShardSpan) -> None:
        """Gives a shard back, whole or not."""
        self._release(span.index)

    def close(self) -> None:
        """Gives every shard back and ends the beat."""
        self._closed.set()
        self.give_back()

    def give_back(self) -> None:
        """Gives every shard back; may be called by a signal's handler."""
        for index in list(self._held):
            self._release(index)

    def _outlives(
        self, span: ShardSpan, is_done: Callable[[ShardSpan], bool], stop: StopRequest
    ) -> bool:
        """Returns whether the shard became this execution's, because who had it is dead."""
        while not (stop.requested or self._closed.is_set() or is_done(span)):
            if self.take(span):
                return True
            seen = self._seen.get(span.index)  # gone where another has just displaced the claim
            if seen is not None and seen.is_alive:
                self.left.append(span)
                return False
            self._closed.wait(LOOK_S)
        return False

    def _release(self, index: int) -> None:
        with self._lock:
            descriptor = self._held.pop(index, None)
            if descriptor is None:
                return
            with suppress(OSError):
                path = self._path(index)
                if path.stat().st_ino == os.fstat(descriptor).st_ino:  # else it was taken over
                    path.unlink()
            os.close(descriptor)

    def _create(self, span: ShardSpan) -> bool:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        try:
            descriptor = os.open(self._path(span.index), flags, 0o666)
        except FileExistsError:
            return False
        with self._lock:
            self._held[span.index] = descriptor
            self._write(descriptor)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_beating, name="claims", daemon=True)
            self._thread.start()
        return True

    def _displace(self, span: ShardSpan) -> bool:
        """Moves a dead claim out of the way; of several that try, one succeeds."""
        path = self._path(span.index)
        content = _read(path)
        if content is None:
            return True
        if not self._is_dead(span, content):
            return False
        aside = path.with_name(f".{path.name}.{self._attempt}-{os.getpid()}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        if _read(aside) != content:  # another was faster: this is its claim
            with suppress(FileExistsError):
                path.hardlink_to(aside)
            aside.unlink()
            return False
        aside.unlink()
        self._seen.pop(span.index, None)
        log.info("claim taken over path=%s from=%s", path, content.decode(errors="replace").strip())
        return True

    def _is_dead(self, span: ShardSpan, content: bytes) -> bool:
        owner = _parse(content)
        seen = self._seen.get(span.index)
        if seen is None:
            seen = self._seen[span.index] = _Seen(content, time.monotonic())
        elif seen.content != content:
            same = owner.get("attempt") == _parse(seen.content).get("attempt")
            seen = self._seen[span.index] = _Seen(content, time.monotonic(), is_alive=same)
        return (
            _is_earlier(str(owner.get("attempt")), self._attempt)
            or _has_ended(owner)
            or time.monotonic() - seen.since_s >= self._stale_s
        )

    def _keep_beating(self) -> None:
        while not self._closed.wait(self._beat_s):
            self._beat += 1
            with self._lock:
                for descriptor in self._held.values():
                    with suppress(OSError):
                        self._write(descriptor)

    def _write(self, descriptor: int) -> None:
        facts = {
            "attempt": self._attempt,
            "host": platform.node(),
            "pid": os.getpid(),
            "pid_namespace": pid_namespace(),
            "started": start_time(os.getpid()),
            "beat": f"{self._beat:08d}",  # the same length each time: no remnant of a longer one
        }
        os.pwrite(descriptor, json.dumps(facts).encode() + b"\n", 0)
        os.fsync(descriptor)  # other nodes of a network file system see it only then

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index:05d}.json"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> dict[str, Any]:
    """Returns what a claim says; nothing where its owner was killed as it wrote."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_earlier(theirs: str, ours: str) -> bool:
    """Tells whether an attempt is one before ours of the same task; SLURM runs one at a time."""
    a, b = _ATTEMPT.fullmatch(theirs), _ATTEMPT.fullmatch(ours)
    return bool(a and b and a["task"] == b["task"] and int(a["restart"]) < int(b["restart"]))


def _has_ended(owner: dict[str, Any]) -> bool:
    """Tells whether a claim's owner is a process of this host that is there no more."""
    here = (platform.node(), pid_namespace())
    if pid_namespace() is None or (owner.get("host"), owner.get("pid_namespace")) != here:
        return False
    pid = owner.get("pid")
    return not isinstance(pid, int) or start_time(pid) != owner.get("started")
