"""Several processes that stage the same source at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatspace.data.staging import stage_split
from chatspace.spec.dataset import DatasetSection
from tests.stores import jsonl_bytes

N_PROCESSES = 3
CODE = """
import sys, time
from pathlib import Path
from chatspace.data.staging import stage_split
from chatspace.spec.dataset import DatasetSection
path, workspace, ready = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
made = DatasetSection(source="jsonl", path=path, name="x")
ready.touch()
while not (ready.parent / "go").exists():
    time.sleep(0.001)
staged = stage_split(made, "train", workspace, "x")
print([(file.stat().st_ino, file.stat().st_mtime_ns) for file in staged.files])
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("is_remote", [False, True])
def test_stage_by_several_processes_at_once_is_done_once(tmp_path: Path, is_remote: bool) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"text": f"row {i} " * 10} for i in range(20_000)]
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl_bytes(rows))
    (tmp_path / "sync").mkdir()
    workspace = tmp_path / "ws"
    with served(tmp_path / "in") as url:
        path = f"{url}/a.jsonl" if is_remote else str(tmp_path / "in" / "a.jsonl")
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CODE, path, workspace, tmp_path / "sync" / str(number)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(N_PROCESSES)
        ]
        stop = time.monotonic() + 60
        while len(list((tmp_path / "sync").iterdir())) < N_PROCESSES:
            assert time.monotonic() < stop
            time.sleep(0.01)
        (tmp_path / "sync" / "go").touch()
        printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * N_PROCESSES
    (part,) = (workspace / "datasets/processed/x/train").glob("*.parquet")
    assert printed == [f"{[(part.stat().st_ino, part.stat().st_mtime_ns)]}\n"] * N_PROCESSES
    assert {path.name for path in part.parent.parent.iterdir()} == {"train"}


@pytest.mark.parametrize("is_moved", [False, True])
def test_stage_touched_or_moved_source_is_noted_so_that_it_is_not_read_again(
    tmp_path: Path, is_moved: bool
) -> None:
    path = tmp_path / "a" / "a.jsonl"
    path.parent.mkdir()
    path.write_bytes(jsonl_bytes([{"text": "a"}]))
    first = stage_split(DatasetSection(source="jsonl", path=str(path)), "train", tmp_path, "x")
    record_path = first.files[0].with_name("dataset.json")
    before = json.loads(record_path.read_text())
    if is_moved:
        path = path.parent.rename(tmp_path / "b") / "a.jsonl"
    else:
        os.utime(path, ns=(1, 10**18))
    again = stage_split(DatasetSection(source="jsonl", path=str(path)), "train", tmp_path, "x")
    assert again == first
    record = json.loads(record_path.read_text())
    assert record["folder"] == str(path.parent)
    assert record["files"][0]["mtime_ns"] == path.stat().st_mtime_ns
    assert {**record, "folder": before["folder"], "files": before["files"]} == before
