from __future__ import annotations

import hashlib
import inspect
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiktoken_ext.openai_public as public
from tiktoken.load import read_file_cached

from chatspace.kinds import KINDS
from chatspace.openai_embed.encodings import (
    FILES,
    EncodingFile,
    NotFetchedError,
    fetch,
    folder_of,
    kept_in,
    workspace_folder,
)
from chatspace.openai_embed.stage import stage_model
from tests.openai_runs import spec_of
from tests.openai_server import FakeOpenAI

CONTENT = b"dGhl 0\n" * 40_000  # several blocks


@dataclass
class Store:
    """A server of one file.

    Attributes:
        asked: how often it was asked for.
        content: what it sends.
        silent: never answers until it is set.
    """

    asked: int = 0
    status: int = 200
    content: bytes = CONTENT
    silent: threading.Event | None = None
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def file(self) -> EncodingFile:
        return EncodingFile(url=self.url, sha256=hashlib.sha256(CONTENT).hexdigest())


@contextmanager
def storing(store: Store) -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            with store.lock:
                store.asked += 1
            if store.silent is not None:
                store.silent.wait(30)
                return
            self.send_response(store.status)
            self.send_header("Content-Length", str(len(store.content)))
            self.end_headers()
            self.wfile.write(store.content)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{http.server_port}/tiny.tiktoken"
    try:
        yield store
    finally:
        if store.silent is not None:
            store.silent.set()
        http.shutdown()
        http.server_close()


@pytest.fixture
def store() -> Iterator[Store]:
    with storing(Store()) as made:
        yield made


@pytest.mark.parametrize("encoding", [name for name in FILES if name != "o200k_harmony"])
def test_files_are_those_that_tiktoken_asks_for(encoding: str) -> None:
    source = inspect.getsource(public.ENCODING_CONSTRUCTORS[encoding])
    assert re.findall(r'"(https://[^"]+)"', source) == [file.url for file in FILES[encoding]]
    assert re.findall(r'hash="(\w{64})"', source) == [file.sha256 for file in FILES[encoding]]


def test_files_are_known_of_every_encoding_of_tiktoken() -> None:
    assert set(FILES) == set(public.ENCODING_CONSTRUCTORS)
    assert "base_enc = o200k_base()" in inspect.getsource(public.o200k_harmony)
    assert FILES["o200k_harmony"] == FILES["o200k_base"]


def test_fetch_brings_what_tiktoken_then_finds_without_a_network(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with storing(Store()) as store:
        file, folder = store.file, tmp_path / "cache" / "tiktoken"
        for _ in range(2):
            fetch("tiny", folder, files={"tiny": [file]}, report=lambda *a: told.append(a))
    assert store.asked == 1
    assert told == [("fetching tiktoken's tiny", len(CONTENT), len(CONTENT))]
    with kept_in(folder):
        assert read_file_cached(file.url, file.sha256) == CONTENT
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_fetch_replaces_a_damaged_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / store.file.name).write_bytes(CONTENT[:100])
    assert folder_of([store.file], [tmp_path]) is None
    fetch("tiny", tmp_path, files={"tiny": [store.file]})
    assert folder_of([store.file], [tmp_path / "none", tmp_path]) == tmp_path


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Store(status=404), "127.0.0.1:.* answers 404"),
        (Store(content=b"<html>sign in</html>"), "what 127.0.0.1:.* sends is not the file"),
        (Store(silent=threading.Event()), r"127.0.0.1:.* does not answer within 0\.5 s"),
    ],
    ids=["missing", "other", "silent"],
)
def test_fetch_that_fails_says_why_soon_and_leaves_nothing(
    tmp_path: Path, fault: Store, said: str
) -> None:
    with storing(fault) as store:
        began_s = time.monotonic()
        with pytest.raises(NotFetchedError, match=said):
            fetch("tiny", tmp_path, files={"tiny": [store.file]}, answer_s=0.5)
        assert time.monotonic() - began_s < 10
    assert list(tmp_path.iterdir()) == []


def test_fetch_where_nobody_listens_or_nothing_can_be_written_says_so(
    store: Store, tmp_path: Path
) -> None:
    nobody = EncodingFile(url="http://127.0.0.1:9/x", sha256="0" * 64)
    with pytest.raises(NotFetchedError, match=r"127\.0\.0\.1:9 cannot be reached"):
        fetch("tiny", tmp_path, files={"tiny": [nobody]})
    (tmp_path / "a-file").write_text("")
    with pytest.raises(NotFetchedError, match=r"Cannot write: .*a-file"):
        fetch("tiny", tmp_path / "a-file", files={"tiny": [store.file]})


def staged(folder: Path, store: Store) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    spec = spec_of(folder, FakeOpenAI(url="http://127.0.0.1:9/v1"), model={"encoding": "r50k_base"})
    found = stage_model(
        spec, folder / "hub", lambda *a: told.append(a), files={"r50k_base": [store.file]}
    )
    assert found == []
    return told


def test_stage_brings_the_encoding_to_the_workspace_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "mine"))
    assert len(staged(tmp_path, store)) == 1
    assert staged(tmp_path, store) == []
    assert store.asked == 1
    folder = workspace_folder(tmp_path / "ws")
    assert folder_of([store.file], [folder]) == folder


def test_stage_copies_what_this_machine_has(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / store.file.name).write_bytes(CONTENT)
    assert staged(tmp_path, store) == []
    assert store.asked == 0
    assert (workspace_folder(tmp_path / "ws") / store.file.name).read_bytes() == CONTENT


def test_stage_that_cannot_fetch_says_so_and_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "mine"))
    store.status = 503
    with caplog.at_level(logging.WARNING):
        assert staged(tmp_path, store) == []
    assert "r50k_base: 127.0.0.1" in caplog.text and "answers 503" in caplog.text
    assert KINDS["embed_openai"].stage_model() is stage_model
