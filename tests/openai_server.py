"""An OpenAI-compatible server on this machine, with faults on request, that counts what it serves.

Its vectors are a function of the text, so that one that ends up at another row is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

KEY = "sk-test-0123456789abcdefSECRET"


def vector_of(text: str, dim: int) -> np.ndarray:
    """A vector of length one that only this text has, (dim,)."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(max(64, dim))[:dim]
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def n_tokens_of(text: str) -> int:
    return len(text.split())


@dataclass
class Fault:
    """What the next request gets instead of, or done to, an answer.

    Kinds: status (with `status`, `headers`, `code`), hang, drop, drop_after (the answer was made,
    and charged, but is not sent), short, shuffle, wrong_dim, nan, no_json.
    """

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = "as asked"


@dataclass
class FakeOpenAI:
    """The server's state.

    Attributes:
        faults: what happens to the next requests for vectors, in order.
        served: how often the vector of a text was made: what is charged.
        requests: inputs of each request for vectors, in order, failed ones too.
        times: when each came.
        limit: longest input, in words.
        polls: looks at a batch before it is done.
        failing_looks: how many of the next looks at a batch or its files fail.
        batch_ends: what the next batches end as; completed where nothing is said.
        model: what the answers call the model; what the request calls it where nothing is said.
        deleted: files that were deleted, in order.
        on_delete: called before each is.
        failing_deletes: how many of the next deletions fail.
    """

    dim: int = 16
    key: str | None = KEY
    limit: int = 10**9
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    served: Counter[str] = field(default_factory=Counter)
    requests: list[list[str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls: int = 1
    batch_ends: deque[str] = field(default_factory=deque)
    lose_batch_answer: bool = False
    failing_looks: int = 0
    model: str | None = None
    deleted: list[str] = field(default_factory=list)
    on_delete: Callable[[], object] = lambda: None
    failing_deletes: int = 0
    most_at_once: int = 0
    url: str = ""
    under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def n_requests(self) -> int:
        return len(self.requests)

    def vectors(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON for a request body, as it is answered directly or in a batch."""
        texts = body["input"]
        longest = max(map(n_tokens_of, texts))
        if longest > self.limit:
            said = (
                f"This model's maximum context length is {self.limit} tokens, however you "
                f"requested {longest} tokens. Please reduce your prompt."
            )
            return 400, {"error": {"message": said, "type": "invalid_request_error"}}
        dim = body.get("dimensions") or self.dim
        with self.lock:
            self.served.update(texts)
        data = [
            {"object": "embedding", "index": i, "embedding": encoded(vector_of(text, dim), body)}
            for i, text in enumerate(texts)
        ]
        n_tokens = sum(map(n_tokens_of, texts))
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        model = self.model or body["model"]
        return 200, {"object": "list", "data": data, "model": model, "usage": usage}

    def make_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": "24h",
            "created_at": int(time.time()),
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "status": "in_progress",
            "looks": 0,
        }
        return self.batches[name]

    def look_at_batch(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch["looks"] += 1
        if batch["status"] == "cancelling":
            self._end_batch(batch, "cancelled")
        elif batch["status"] == "in_progress" and batch["looks"] >= self.polls:
            self._end_batch(batch, self.batch_ends.popleft() if self.batch_ends else "completed")
        return batch

    def cancel_batch(self, name: str) -> tuple[int, dict[str, Any]]:
        batch = self.batches[name]
        if batch["status"] != "in_progress":
            said = f"Cannot cancel a batch with status '{batch['status']}'."
            return 409, {"error": {"message": said}}
        batch["status"] = "cancelling"
        return 200, batch

    def _end_batch(self, batch: dict[str, Any], status: str) -> None:
        batch["status"], _, code = status.partition(":")
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": "no"}]}
            return
        lines = self.files[batch["input_file_id"]].splitlines()
        # What expires or is cancelled was done in half.
        lines = lines if status == "completed" else lines[: len(lines) // 2]
        good, bad = [], []
        for line in map(json.loads, lines):
            code, answer = self.vectors(line["body"])
            item = {
                "custom_id": line["custom_id"],
                "response": {"status_code": code, "body": answer},
                "error": None,
            }
            (good if code == 200 else bad).append(json.dumps(item))
        for key, items in (("output_file_id", good[::-1]), ("error_file_id", bad)):
            if items:
                batch[key] = self.keep_file("\n".join(items).encode())

    def keep_file(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name


def encoded(vector: np.ndarray, body: dict[str, Any]) -> Any:
    if body.get("encoding_format") == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


@contextmanager
def serving(server: FakeOpenAI | None = None) -> Iterator[FakeOpenAI]:
    """Serves on a free port of the loopback."""
    state = server or FakeOpenAI()

    class Handler(_Handler):
        fake = state

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAI
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        self.fake.paths.append(self.path)
        if not self._may():
            return
        if path.endswith("/embeddings"):
            self._embeddings(json.loads(raw))
        elif path == "/v1/files":
            content = self._upload(raw)
            self._json(200, {"id": self.fake.keep_file(content), "object": "file"})
        elif path == "/v1/batches":
            with self.fake.lock:
                batch = self.fake.make_batch(json.loads(raw))
            if self.fake.lose_batch_answer:
                self.fake.lose_batch_answer = False
                self._drop()
            else:
                self._json(200, batch)
        elif match := re.fullmatch(r"/v1/batches/(.+)/cancel", path):
            if match[1] in self.fake.batches:
                self._json(*self.fake.cancel_batch(match[1]))
            else:
                self._json(404, {"error": {"message": f"no {match[1]}"}})
        else:
            self._json(404, {"error": {"message": f"no {path}"}})

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.fake.paths.append(self.path)
        if not self._may():
            return
        if self.fake.failing_looks > 0:
            self.fake.failing_looks -= 1
            self._json(502, {"error": {"message": "bad gateway"}})
        elif path == "/v1/batches":
            data = list(self.fake.batches.values())[::-1]
            self._json(200, {"object": "list", "data": data, "has_more": False})
        elif (match := re.fullmatch(r"/v1/batches/(.+)", path)) and match[1] in self.fake.batches:
            self._json(200, self.fake.look_at_batch(match[1]))
        elif match := re.fullmatch(r"/v1/files/(.+)/content", path):
            self._send(200, self.fake.files[match[1]], {})
        else:
            self._json(404, {"error": {"message": f"no {path}"}})

    def do_DELETE(self) -> None:
        self.fake.paths.append(self.path)
        name = self.path.removeprefix("/v1/files/")
        if not self._may():
            return
        if self.fake.failing_deletes > 0:
            self.fake.failing_deletes -= 1
            self._json(500, {"error": {"message": "not now"}})
        elif name not in self.fake.files or name in self.fake.deleted:
            self._json(404, {"error": {"message": f"no {name}"}})
        else:
            self.fake.on_delete()
            self.fake.deleted.append(name)
            self._json(200, {"id": name, "object": "file", "deleted": True})

    def _may(self) -> bool:
        given = self.headers.get("api-key") or self.headers.get("Authorization", "")[7:]
        if self.fake.key is None or given == self.fake.key:
            return True
        # As the real one does, it repeats what it was given.
        said = f"Incorrect API key provided: {given}. You can find your API key elsewhere."
        self._json(401, {"error": {"message": said, "code": "invalid_api_key"}})
        return False

    def _embeddings(self, body: dict[str, Any]) -> None:
        fake = self.fake
        with fake.lock:
            fake.requests.append(list(body["input"]))
            fake.bodies.append({key: value for key, value in body.items() if key != "input"})
            fake.times.append(time.monotonic())
            fault = fake.faults.popleft() if fake.faults else None
            fake.under_way += 1
            fake.most_at_once = max(fake.most_at_once, fake.under_way)
        try:
            time.sleep(fake.delay_s)
            self._answer(body, fault)
        finally:
            with fake.lock:
                fake.under_way -= 1

    def _answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            error = {"message": fault.message, "code": fault.code, "type": "error"}
            return self._json(fault.status, {"error": error}, fault.headers)
        if kind == "hang":
            time.sleep(3)
            return self._drop()
        if kind == "drop":
            return self._drop()
        status, answer = self.fake.vectors(body)
        if kind == "drop_after":
            return self._drop()
        if kind == "no_json":
            return self._send(200, b"<html>", {})
        if kind:
            self._spoil(kind, answer["data"], body)
        return self._json(status, answer, self.fake.headers)

    def _spoil(self, kind: str, data: list[dict[str, Any]], body: dict[str, Any]) -> None:
        if kind == "short":
            data.pop()
        elif kind == "shuffle":
            data.reverse()
        elif kind == "twice":
            data[-1]["index"] = 0
        elif kind == "wrong_dim":
            for item in data:
                item["embedding"] = encoded(np.ones(3, np.float32), body)
        elif kind == "nan":
            data[0]["embedding"] = encoded(np.full(self.fake.dim, np.nan, np.float32), body)
        else:
            raise AssertionError(kind)

    def _upload(self, raw: bytes) -> bytes:
        boundary = self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
        for part in raw.split(b"--" + boundary):
            head, _, content = part.partition(b"\r\n\r\n")
            if b"filename=" in head:
                return content.removesuffix(b"\r\n")
        raise AssertionError("no file was uploaded")

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        with suppress(OSError):  # whoever asked was killed
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
