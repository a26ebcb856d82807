"""A model hub on this machine, as far as downloading a model goes, for tests of staging."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class Hub:
    """Repositories, and what was asked for.

    Attributes:
        files: content by repository, commit and file name.
        heads: commit of the main branch by repository.
        fetched: names of the files whose content was sent, in order.
        broken: files whose content is sent with other bytes, until they are taken out.
        held: files whose content waits until `hold` is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, str] = {}
        self.fetched: list[str] = []
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.held: set[str] = set()
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""

    def add(self, name: str, folder: Path, commit: str, **more: bytes) -> None:
        """Adds a commit of a repository, which becomes the main branch."""
        content = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.files.setdefault(name, {})[commit] = {**content, **more}
        self.heads[name] = commit

    def tree(self, name: str, commit: str) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_sha1(content),
                **({"lfs": _lfs(content)} if is_lfs(path) else {}),
            }
            for path, content in self.files[name][commit].items()
        ]


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".onnx"))


def _lfs(content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"oid": digest, "size": len(content), "pointerSize": 134}


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves a hub on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, with_body: bool) -> None:
            path = unquote(self.path.split("?")[0])
            hub.asked.append(path)
            if match := re.fullmatch(r"/api/models/(.+?)/tree/(\w+)", path):
                if match[2] not in hub.files.get(match[1], {}):
                    return self._missing()
                return self._json(hub.tree(match[1], match[2]))
            if match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(\w+))?", path):
                name, revision = match[1], match[2]
                commit = hub.heads.get(name) if revision in (None, "main") else revision
                if name not in hub.heads or commit not in hub.files[name]:
                    return self._missing("RevisionNotFound" if name in hub.heads else None)
                return self._json({"id": name, "sha": commit})
            if match := re.fullmatch(r"/(.+?)/resolve/(\w+)/(.+)", path):
                return self._file(match[1], match[2], match[3], with_body)
            return self._missing()

        def _json(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _missing(self, code: str | None = None) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code or "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, name: str, commit: str, path: str, with_body: bool) -> None:
            content = hub.files.get(name, {}).get(commit, {}).get(path)
            if content is None:
                return self._missing("EntryNotFound")
            etag = _lfs(content)["oid"] if is_lfs(path) else git_sha1(content)
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not with_body:
                return None
            hub.fetched.append(path)
            if path in hub.held:
                self.wfile.write(content[: len(content) // 2])
                hub.hold.wait(60)
                content = content[len(content) // 2 :]
            if path in hub.broken:
                content = content[:-1] + bytes([content[-1] ^ 1])
            with suppress(OSError):  # whoever asked was killed
                self.wfile.write(content)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
