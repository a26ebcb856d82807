"""A hub of models and datasets on this machine, with the endpoints that its clients speak to."""

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
from urllib.parse import parse_qs, unquote

Files = dict[str, bytes]
_LFS_ENDINGS = (".safetensors", ".bin", ".onnx", ".parquet")


class Hub:
    """Repositories, and what was asked for. A dataset's repository is called `datasets/org/name`.

    Attributes:
        commits: files by repository and commit.
        refs: commit by repository and branch.
        gated: repositories that nobody may read.
        asked: paths that were asked for, in order.
        fetched: names of the files whose content was sent, in order.
        broken: files whose content is sent with other bytes, until they are taken out.
        held: files whose content waits until `hold` is set.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.broken: set[str] = set()
        self.held: set[str] = set()
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""

    def add(self, name: str, folder: Path, commit: str, **more: bytes) -> None:
        """Adds a folder as a commit of a model, which becomes the main branch."""
        files = {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        self._commit(name, {**files, **more}, commit, "main")

    def add_dataset(self, name: str, files: Files, branch: str = "main") -> str:
        """Adds a commit to a branch of a dataset and returns its hash."""
        content = b"".join(key.encode() + value for key, value in sorted(files.items()))
        commit = hashlib.sha1(name.encode() + branch.encode() + content).hexdigest()
        self._commit(f"datasets/{name}", files, commit, branch)
        return commit

    def commit(self, name: str, revision: str) -> str | None:
        """Returns the commit of a repository that a branch or a commit names."""
        known = self.refs[name].get(revision, revision)
        return known if known in self.commits[name] else None

    def _commit(self, name: str, files: Files, commit: str, branch: str) -> None:
        self.commits.setdefault(name, {})[commit] = files
        self.refs.setdefault(name, {})[branch] = commit


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """Returns what the hub lists of a file; large ones are known by their sha256."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
    if path.endswith(_LFS_ENDINGS):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _tree(files: Files, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    folders: dict[str, dict[str, Any]] = {}
    entries = []
    for path, content in inside.items():
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            folders[name] = _folder(name)
        if recursive or len(parts) == 1:
            entries.append(_entry(path, content))
    return [*folders.values(), *entries]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = json.loads(body) if is_json else parse_qs(body)
        match = re.fullmatch(r"/api/(models|datasets)/(.+?)/paths-info/([^/]+)", self.path)
        files = match and self._files(_repository(match[1], match[2]), unquote(match[3]))
        if files is None:
            return None
        found = []
        for path in asked["paths"]:
            found += [_entry(path, files[path])] if path in files else []
            found += [_folder(path)] if any(n.startswith(f"{path}/") for n in files) else []
        return self._json(found)

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self, with_body: bool) -> None:
        path, _, query = self.path.partition("?")
        self.hub.asked.append(unquote(path))
        if match := re.fullmatch(r"/api/(models|datasets)/(.+?)/tree/([^/]+)(?:/(.*))?", path):
            files = self._files(_repository(match[1], match[2]), unquote(match[3]))
            if files is None:
                return None
            folder = unquote(match[4] or "")
            recursive = parse_qs(query).get("recursive", [""])[0].lower() in ("true", "1")
            tree = _tree(files, folder, recursive=recursive)
            return self._json(tree) if tree or not folder else self._missing("EntryNotFound")
        if match := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/revision/([^/]+))?", path):
            name, revision = _repository(match[1], match[2]), unquote(match[3] or "main")
            if self._files(name, revision) is None:
                return None
            return self._json({"id": unquote(match[2]), "sha": self.hub.commit(name, revision)})
        if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._file(*(unquote(part) for part in match.groups()), with_body)
        return self._missing("RepoNotFound")

    def _files(self, name: str, revision: str) -> Files | None:
        if name in self.hub.gated:
            self._missing("GatedRepo", 403)
        elif name not in self.hub.commits:
            self._missing("RepoNotFound")
        elif (commit := self.hub.commit(name, revision)) is None:
            self._missing("RevisionNotFound")
        else:
            return self.hub.commits[name][commit]
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
            return
        if path not in files:
            self._missing("EntryNotFound")
            return
        content, total = files[path], len(files[path])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        stop = min(int(asked[2] or total - 1) + 1, total) if asked else total
        self.send_response(206 if asked else 200)
        entry = _entry(path, content)
        self.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
        self.send_header("X-Repo-Commit", str(self.hub.commit(name, revision)))
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.end_headers()
        if with_body:
            self.hub.fetched.append(path)
            self._send(path, content[start:stop])

    def _send(self, path: str, content: bytes) -> None:
        """Sends content, as slow and as damaged as the test asked for."""
        if path in self.hub.held:
            self.wfile.write(content[: len(content) // 2])
            self.hub.hold.wait(60)
            content = content[len(content) // 2 :]
        if path in self.hub.broken:
            content = content[:-1] + bytes([content[-1] ^ 1])
        with suppress(OSError):  # whoever asked was killed
            self.wfile.write(content)


def _repository(kind: str, name: str) -> str:
    return unquote(name) if kind == "models" else f"datasets/{unquote(name)}"


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves a hub on a free port of the loopback."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.hold.set()
        server.shutdown()
        server.server_close()
