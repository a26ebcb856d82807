from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from chatspace.jobs.events import EventLog, read_events


def test_event_log_written_events_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events" / "train-00000.jsonl"
    with EventLog(path) as log:
        log.write("started", rows_done=3)
        log.write("progress", rows=8, stage="embedding")
    events, offset = read_events(path)
    assert [event["event"] for event in events] == ["started", "progress"]
    assert events[1]["stage"] == "embedding"
    assert events[0]["time"].endswith("+00:00")
    assert offset == path.stat().st_size


def test_read_events_goes_on_from_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.write("started")
    _, offset = read_events(path)
    assert read_events(path, offset) == ([], offset)
    log.write("finished")
    events, _ = read_events(path, offset)
    assert [event["event"] for event in events] == ["finished"]


def test_read_events_leaves_a_torn_last_line_for_later(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"event": "started"}\n{"event": "prog')
    events, offset = read_events(path)
    assert [event["event"] for event in events] == ["started"]
    with path.open("ab") as file:
        file.write(b'ress"}\n')
    assert read_events(path, offset)[0] == [{"event": "progress"}]


def test_event_log_after_a_killed_attempt_starts_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"event": "started"}\n{"event": "prog')
    with EventLog(path) as log:
        log.write("started", attempt=2)
        log.write("finished")
    assert [event["event"] for event in read_events(path)[0]] == ["started", "started", "finished"]


@pytest.mark.parametrize("line", [b"[]", b"1", b'{"no": "event"}', b"\xff\xfe", b""])
def test_read_events_passes_over_lines_that_are_no_events(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(line + b'\n{"event": "finished"}\n')
    assert [event["event"] for event in read_events(path)[0]] == ["finished"]


def test_read_events_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl") == ([], 0)


def test_read_events_of_a_file_that_was_replaced_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"event": "started"}\n')
    assert len(read_events(path, offset=1000)[0]) == 1


def test_event_log_on_a_full_disk_warns_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = EventLog(tmp_path / "e.jsonl")
    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING):
        log.write("progress")
        log.write("progress")
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_event_log_on_a_disk_that_takes_half_a_line_closes_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "e.jsonl", os.write
    log = EventLog(path)
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:9]))
    log.write("progress")
    monkeypatch.setattr(os, "write", write)
    log.write("finished")
    assert [event["event"] for event in read_events(path)[0]] == ["finished"]


def test_event_log_that_cannot_be_opened_warns_and_drops_events(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with EventLog(tmp_path / "file" / "e.jsonl") as log:
        log.write("started")
    assert len(caplog.records) == 1
