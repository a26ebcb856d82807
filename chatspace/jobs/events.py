"""Event logs: what a slice says while it works, one JSON line an event."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class EventLog:
    """Appends events to `runs/{run_id}/events/{split}-{slice:05d}.jsonl`.

    No event is worth a failed task: a file that cannot be written is logged once, and the work goes
    on. Each event is one `write` to a file opened for appending, so that a killed task leaves at
    most one torn line, at the end. Not covered: two tasks that write one log at the same time on a
    network file system, where appends may overwrite each other.

    Args:
        path: the file; made where it is missing, with its folder.
        attempt: name of the execution that writes, told by each event [none].
    """

    def __init__(self, path: Path, attempt: str | None = None) -> None:
        self._path = path
        self._told = {} if attempt is None else {"attempt": attempt}
        self._warned = False
        self._descriptor: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._torn = _ends_torn(path)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._warn(error)

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event with the time; fields are plain JSON values."""
        if self._descriptor is None:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **self._told, **fields}).encode() + b"\n"
        # A line that was cut short is closed first, or it would swallow this one.
        data = b"\n" + line if self._torn else line
        try:
            self._torn = os.write(self._descriptor, data) < len(data)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Closes the file; later events are dropped."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("event log cannot be written: path=%s error=%s", self._path, error)


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the whole events after `offset`, and the offset to go on from.

    A last line without its end is left for the next call; a torn line in the middle, which a killed
    task left behind, is passed over. A file that is missing or cannot be read has no events yet.

    Args:
        path: an event log.
        offset: bytes read before; a file shorter than that was replaced and is read from its start.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < offset:
                offset = 0
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    events = [event for line in whole.split(b"\n") if (event := _parse(line)) is not None]
    return events, offset + len(whole)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _ends_torn(path: Path) -> bool:
    """Whether an attempt before this one was killed in the middle of a line."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
