"""A hub of datasets on this machine: the endpoints that `datasets` and `hf://` speak to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub import git_sha1

Files = dict[str, bytes]


class DatasetHub:
    """Dataset repositories, and what was asked for.

    Attributes:
        commits: files by repository and commit.
        refs: commit by repository and branch.
        gated: repositories that nobody may read.
        fetched: paths whose content was sent, in order.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.url = ""

    def add(self, name: str, files: Files, branch: str = "main") -> str:
        """Adds a commit to a branch and returns its hash."""
        content = b"".join(key.encode() + value for key, value in sorted(files.items()))
        commit = hashlib.sha1(name.encode() + branch.encode() + content).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.refs.setdefault(name, {})[branch] = commit
        return commit

    def commit(self, name: str, revision: str) -> str | None:
        """Returns the commit that a branch or a commit names."""
        known = self.refs[name].get(revision, revision)
        return known if known in self.commits[name] else None


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = git_sha1(content)
    if path.endswith(".parquet"):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def _tree(files: Files, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    folders: dict[str, dict[str, Any]] = {}
    entries = []
    for path, content in inside.items():
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            oid = hashlib.sha1(name.encode()).hexdigest()
            folders[name] = {"type": "directory", "path": name, "size": 0, "oid": oid}
        if recursive or len(parts) == 1:
            entries.append(_entry(path, content))
    return [*folders.values(), *entries]


@contextmanager
def serving(hub: DatasetHub) -> Iterator[DatasetHub]:
    """Serves a hub on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            is_json = "json" in (self.headers.get("Content-Type") or "")
            asked = json.loads(body) if is_json else parse_qs(body)
            match = re.fullmatch(r"/api/datasets/(.+?)/paths-info/([^/]+)", self.path)
            files = match and self._files(unquote(match[1]), unquote(match[2]))
            if files is None:
                return None
            found = []
            for path in asked["paths"]:
                found += [_entry(path, files[path])] if path in files else []
                if any(name.startswith(f"{path}/") for name in files):
                    oid = hashlib.sha1(path.encode()).hexdigest()
                    found.append({"type": "directory", "path": path, "size": 0, "oid": oid})
            return self._json(found)

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, with_body: bool) -> None:
            path, _, query = self.path.partition("?")
            if match := re.fullmatch(r"/api/datasets/(.+?)/tree/([^/]+)(?:/(.*))?", path):
                files = self._files(unquote(match[1]), unquote(match[2]))
                if files is None:
                    return None
                folder = unquote(match[3] or "")
                recursive = parse_qs(query).get("recursive", [""])[0].lower() in ("true", "1")
                tree = _tree(files, folder, recursive=recursive)
                return self._json(tree) if tree or not folder else self._missing("EntryNotFound")
            if match := re.fullmatch(r"/api/datasets/(.+?)(?:/revision/([^/]+))?", path):
                name, revision = unquote(match[1]), unquote(match[2] or "main")
                if self._files(name, revision) is None:
                    return None
                return self._json({"id": name, "sha": hub.commit(name, revision)})
            if match := re.fullmatch(r"/datasets/(.+?)/resolve/([^/]+)/(.+)", path):
                return self._file(*(unquote(part) for part in match.groups()), with_body)
            return self._missing("RepoNotFound")

        def _files(self, name: str, revision: str) -> Files | None:
            if name in hub.gated:
                self._missing("GatedRepo", 403)
            elif name not in hub.commits:
                self._missing("RepoNotFound")
            elif (commit := hub.commit(name, revision)) is None:
                self._missing("RevisionNotFound")
            else:
                return hub.commits[name][commit]
            return None

        def _json(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _missing(self, code: str, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, name: str, revision: str, path: str, with_body: bool) -> None:
            files = self._files(name, revision)
            if files is None:
                return None
            if path not in files:
                return self._missing("EntryNotFound")
            content, total = files[path], len(files[path])
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            start = int(asked[1]) if asked else 0
            stop = min(int(asked[2] or total - 1) + 1, total) if asked else total
            self.send_response(206 if asked else 200)
            entry = _entry(path, content)
            self.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
            self.send_header("X-Repo-Commit", str(hub.commit(name, revision)))
            self.send_header("Content-Length", str(stop - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            self.end_headers()
            if with_body:
                hub.fetched.append(path)
                self.wfile.write(content[start:stop])
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
