"""Datasets behind plain web servers, and a process that is killed while it fetches."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatspace.data import remote_fetch
from tests.stores import gzip_bytes, jsonl_bytes, parquet_bytes
from tests.test_data_remote import ROWS, refused, stage, texts


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_stage_http_server_that_knows_no_ranges(tmp_path: Path, version: str) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.jsonl.gz").write_bytes(gzip_bytes(jsonl_bytes(ROWS)))
    (tmp_path / "www" / "b.parquet").write_bytes(parquet_bytes(ROWS))

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = version

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        staged = stage(f"{url}/a.jsonl.gz", tmp_path, "jsonl")
        assert texts(staged) == [row["text"] for row in ROWS]
        assert stage(f"{url}/a.jsonl.gz", tmp_path, "jsonl") == staged
        raw = stage(f"{url}/b.parquet", tmp_path)
        assert raw.files == [tmp_path / "datasets/raw/http/b/train/b.parquet"]
        assert refused(f"{url}/c.parquet", tmp_path).startswith("2 No such file or folder: ")
    finally:
        server.shutdown()
        server.server_close()


def test_stage_process_that_was_killed_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_fetch, "LEASE_S", 1.0)
    content = {f"/{name}.jsonl": jsonl_bytes(ROWS) for name in ("a", "b")}
    sent: list[str] = []
    halfway, released = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(only_head=True)

        def do_GET(self, only_head: bool = False) -> None:
            body = content.get(self.path)
            if body is None:
                listed = "".join(f'<a href="{name}">{name}</a>' for name in content)
                body = listed.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "text/html" if self.path == "/" else "text/plain")
            self.send_header("ETag", '"1"')
            self.end_headers()
            if only_head:
                return
            sent.append(self.path)
            if self.path == "/b.jsonl" and not halfway.is_set():
                self.wfile.write(body[:40])
                halfway.set()
                released.wait(30)
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    code = (
        "import sys; from pathlib import Path\n"
        "from chatspace.data import remote_fetch; remote_fetch._THREADS = 1\n"
        "from chatspace.data.staging import stage_split\n"
        "from chatspace.spec.dataset import DatasetSection\n"
        "made = DatasetSection(source='jsonl', path=sys.argv[1], name='x')\n"
        "stage_split(made, 'train', Path(sys.argv[2]), 'x')"
    )
    try:
        process = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)])
        assert halfway.wait(60)
        process.kill()
        process.wait(20)
        released.set()
        assert not list(tmp_path.rglob("dataset.json"))
        staged = stage(url, tmp_path, "jsonl", name="x")
    finally:
        released.set()
        server.shutdown()
        server.server_close()
    assert texts(staged) == [row["text"] for row in ROWS] * 2
    assert sent.count("/a.jsonl") == 1
    assert {path.name for path in (tmp_path / "datasets/processed/x").iterdir()} == {"train"}
