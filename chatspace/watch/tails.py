"""The ends of event logs: how far a task is, how fast, and how it ended; the rest is not read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from chatspace.layout import RunLayout

ENDINGS = ("finished", "failed", "interrupted", "ended")
READ_THREADS = 16
READ_AT_ONCE = 64
# All logs together; a long end gives a steadier rate, and 64 KiB hold three to four minutes.
BUDGET_BYTES = 32 << 20
SHORTEST_BYTES, LONGEST_BYTES = 4 << 10, 64 << 10
LEAST_SPAN_S = 2.0
_STARTED = b'"event": "started"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What the end of one task's event log says of its latest execution.

    Attributes:
        attempt: its name without the lane, None where no event tells it.
        ending: its last event if nothing more is to be expected: one of `ENDINGS`; a `failed` goes
            before the `ended` that the batch script writes below it.
        seen_s: Unix time of the last event, by the clock of the node that wrote it.
        log: file of the job's output, where the end of the log tells it.
        stage: what it is at, in the words of its kind; None before its first progress.
        rows_per_s: over the last minutes; None before rows flow.
    """

    attempt: str | None
    ending: dict[str, Any] | None
    seen_s: float
    log: str | None = None
    stage: str | None = None
    rows_per_s: float | None = None
    tokens_per_s: float | None = None


def read_tails(run: RunLayout) -> dict[str, Tail]:
    """Returns the tails of all tasks of a run, by the name of the event log without its suffix.

    The lanes of a task, which have a log each, are one tail.
    """
    paths = _event_logs(run.events)
    n_bytes = BUDGET_BYTES // max(1, len(paths))
    n_bytes = min(max(n_bytes, SHORTEST_BYTES), LONGEST_BYTES)
    parts = [paths[first : first + READ_AT_ONCE] for first in range(0, len(paths), READ_AT_ONCE)]

    def read(part: Sequence[str]) -> list[Tail | None]:
        return [read_tail(path, n_bytes) for path in part]

    with ThreadPoolExecutor(READ_THREADS) as pool:  # what costs is a network file system's latency
        tails = list(chain.from_iterable(pool.map(read, parts)))
    lanes: dict[str, list[Tail]] = {}
    for path, tail in zip(paths, tails, strict=True):
        if tail is not None:
            name = os.path.basename(path).removesuffix(".jsonl")  # noqa: PTH119  # thousands of them
            lanes.setdefault(name.partition(".lane")[0], []).append(tail)
    return {name: _joined(found) for name, found in lanes.items()}


def read_tail(path: Path | str, n_bytes: int = LONGEST_BYTES) -> Tail | None:
    """Returns what the last `n_bytes` of an event log say, None where there is no event."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # thousands of them
            size = os.fstat(file.fileno()).st_size
            data = os.pread(file.fileno(), n_bytes, max(0, size - n_bytes))
            tail = _parsed(data)
            if tail is None and size > n_bytes:
                tail = _parsed(os.pread(file.fileno(), 16 * n_bytes, max(0, size - 16 * n_bytes)))
            if tail is not None and tail.attempt is None and size > n_bytes:
                head = _event(os.pread(file.fileno(), n_bytes, 0).partition(b"\n")[0]) or {}
                tail = replace(tail, attempt=_attempt(head), log=head.get("log"))
    except OSError:
        return None
    return tail


def _event_logs(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.name.endswith(".jsonl"))
    except OSError:
        return []


def _parsed(data: bytes) -> Tail | None:
    start = data.rfind(b"\n", 0, max(data.rfind(_STARTED), 0)) + 1
    lines = data[start:].split(b"\n")  # of the latest execution, as far as they are in the data
    place, last = _last(lines, len(lines))
    if last is None:
        return None
    first = next((event for line in lines if (event := _event(line)) is not None), last)
    started = first if first["event"] == "started" else {}
    tail = Tail(
        attempt=_attempt(last) or _attempt(started),
        ending=last if last["event"] in ENDINGS else None,
        seen_s=_unix_s(last),
        log=started.get("log"),
    )
    if last["event"] == "ended":
        _, before = _last(lines, place)
        # `ended` stands below what the task said of itself, if it came to say it.
        if before is not None and before["event"] in ENDINGS and _is_same(before, last):
            return replace(tail, ending={**last, **before})
    return tail if tail.ending else _with_rate(tail, lines)


def _with_rate(tail: Tail, lines: Sequence[bytes]) -> Tail:
    """Returns the tail with the speed between the first and the last progress of one stage."""
    place, event = _last(lines, len(lines), "progress")
    newest = _point(event)
    if newest is None:
        return tail
    tail = replace(tail, stage=newest.stage)
    for line in lines[:place]:
        point = _point(_event(line))
        if point is None or point.stage != newest.stage:
            continue
        span_s, n_rows = newest.elapsed_s - point.elapsed_s, newest.rows - point.rows
        if span_s < LEAST_SPAN_S or n_rows <= 0:
            return tail
        n_tokens = newest.n_tokens - point.n_tokens
        return replace(tail, rows_per_s=n_rows / span_s, tokens_per_s=n_tokens / span_s)
    return tail


@dataclass(frozen=True, slots=True)
class _Point:
    stage: str
    elapsed_s: float
    rows: int
    n_tokens: int


def _point(event: Mapping[str, Any] | None) -> _Point | None:
    """Returns the counters of a progress event, None for any other."""
    if event is None or event["event"] != "progress":
        return None
    try:
        stage, elapsed_s = str(event["stage"]), float(event["elapsed_s"])
        return _Point(stage, elapsed_s, int(event["rows"]), int(event["n_tokens"]))
    except (KeyError, TypeError, ValueError):
        return None


def _joined(lanes: Sequence[Tail]) -> Tail:
    """Returns one tail of the lanes of a task; those of an earlier attempt are passed over."""
    if len(lanes) == 1:
        return lanes[0]
    newest = max(lanes, key=lambda tail: tail.seen_s)
    lanes = [tail for tail in lanes if tail.attempt == newest.attempt]
    endings = [tail.ending for tail in lanes]
    by_name = {ending["event"]: ending for ending in endings if ending is not None}
    decided = by_name.get("failed") or by_name.get("ended")
    if decided is None and None not in endings:
        decided = by_name.get("interrupted") or by_name["finished"]
    return replace(
        newest,
        ending=decided,
        log=next((tail.log for tail in lanes if tail.log), None),
        rows_per_s=_sum(tail.rows_per_s for tail in lanes if tail.rows_per_s is not None),
        tokens_per_s=_sum(tail.tokens_per_s for tail in lanes if tail.tokens_per_s is not None),
    )


def _sum(rates: Any) -> float | None:
    known = list(rates)
    return sum(known) if known else None


def _last(
    lines: Sequence[bytes], stop: int, name: str | None = None
) -> tuple[int, dict[str, Any] | None]:
    """Returns place and content of the last event before `stop`, of one name or of any."""
    for place in range(stop - 1, -1, -1):
        event = _event(lines[place])
        if event is not None and name in (None, event["event"]):
            return place, event
    return 0, None


def _event(line: bytes) -> dict[str, Any] | None:
    """Returns an event, None for what a killed task cut short."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _attempt(event: Mapping[str, Any]) -> str | None:
    name = event.get("attempt")
    return name.partition(".lane")[0] if isinstance(name, str) else None


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = {_attempt(one), _attempt(other)} - {None}
    return len(names) <= 1


def _unix_s(event: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return 0.0
