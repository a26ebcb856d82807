"""Hub models without a hub: a cache made by code, and a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from chatspace.errors import ModelError
from chatspace.hf_embed.hub import HubAnswer, ask_hub, cached_snapshot
from chatspace.hf_embed.resolve import resolve_model
from tests.test_hf_embed_resolve import spec_of

OLD, NEW = "a" * 40, "b" * 40


def cache_model(cache: Path, commit: str, name: str = "org/name", ref: str = "main") -> Path:
    """Puts a model into a hub cache, as a download does, and returns its snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text(json.dumps({"hidden_size": 64}))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SENTENCE_TRANSFORMERS_HOME", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


class FakeHub(BaseHTTPRequestHandler):
    """Knows `org/name` at one commit; is unwell when asked for `org/unwell`; counts questions."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if "/models/" in self.path:  # the library has questions of its own
            self.asked.append(self.path)
        code, body = 404, b"{}"
        if self.path.startswith("/api/models/org/name"):
            code, body = 200, json.dumps({"id": "org/name", "sha": NEW}).encode()
        elif "unwell" in self.path:
            code = 503
        elif "slow" in self.path:
            time.sleep(3)
        self.send_response(code)
        if code == 404:
            missing = "RevisionNotFound" if "gone" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", missing)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    FakeHub.asked = []
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_resolve_model_in_the_cache_is_pinned_to_its_commit(cache: Path) -> None:
    cache_model(cache, OLD)
    found = resolve_model(spec_of("org/name"))
    assert (found["revision"], found["embedding_dim"]) == (OLD, 64)
    assert found["fingerprint"] == {"hub": "org/name", "revision": OLD}
    cache_model(cache, NEW)  # main moved
    assert resolve_model(spec_of("org/name"))["fingerprint"]["revision"] == NEW
    assert resolve_model(spec_of("org/name", revision=OLD))["revision"] == OLD
    cache_model(cache, OLD, ref="v1")
    assert resolve_model(spec_of("org/name", revision="v1"))["revision"] == OLD


def test_resolve_model_offline_and_not_cached_stays_as_the_spec_says(cache: Path) -> None:
    found = resolve_model(spec_of("org/name"))
    assert found["revision"] is None
    assert found["fingerprint"] == {"hub": "org/name", "revision": None}
    assert "embedding_dim" not in found


def test_cached_snapshot_in_the_home_of_the_tasks_and_of_short_names(
    cache: Path, tmp_path: Path
) -> None:
    snapshot = cache_model(tmp_path / "home" / "hub", OLD)
    assert cached_snapshot("org/name", None) is None
    assert cached_snapshot("org/name", None, str(tmp_path / "home")) == snapshot
    short = cache_model(cache, OLD, "sentence-transformers/tiny")
    assert cached_snapshot("tiny", None) == short
    (cache / "models--org--ref" / "refs").mkdir(parents=True)
    (cache / "models--org--ref" / "refs" / "main").write_text(OLD)  # asked for, never fetched
    assert cached_snapshot("org/ref", None) is None


def test_resolve_model_on_the_hub_is_pinned_with_one_question(hub: type[FakeHub]) -> None:
    found = resolve_model(spec_of("org/name", revision="v2"))
    assert found["revision"] == found["fingerprint"]["revision"] == NEW
    assert hub.asked == ["/api/models/org/name/revision/v2"]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("org/nothing", None, r"model.name=org/nothing; the hub has no model of that name"),
        ("org/gone", "x", r"model.name=org/gone, model.revision=x; the hub has no such revision"),
        ("nothing", None, r"model.name=nothing; the hub has no model"),
        ("org/bad name", None, r"model.name=org/bad name; "),
    ],
)
@pytest.mark.usefixtures("hub")
def test_resolve_model_that_the_hub_does_not_know_is_refused(
    name: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(spec_of(name, **({"revision": revision} if revision else {})))
    assert "\n" not in str(caught.value)


def test_ask_hub_unwell_slow_or_away_says_so_and_raises_nothing(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_hub("org/unwell", None) == HubAnswer(reached=True)
    assert len(hub.asked) == 1
    monkeypatch.setattr("chatspace.hf_embed.hub.TIMEOUT_S", 0.2)
    assert ask_hub("org/slow", None) == HubAnswer(reached=False)
    monkeypatch.setattr("chatspace.hf_embed.hub.TIMEOUT_S", 5)
    monkeypatch.setattr("chatspace.hf_embed.hub._HARD_TIMEOUT_S", 0.2)
    assert ask_hub("org/slow", None) == HubAnswer(reached=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert ask_hub("org/name", None) == HubAnswer(reached=False)


LOAD = """
import logging, sys, time
from types import SimpleNamespace
logging.basicConfig(level=logging.INFO)
from chatspace.errors import ModelError
from chatspace.hf_embed import work
from chatspace.hf_embed.metrics import Counters
model = {"name": "org/name", "dtype": "float32", "device": "cpu"}
plan = SimpleNamespace(
    spec={"model": model, "encode": {}, "output": {}},
    model={"path": None, "revision": sys.argv[1] or None},
)
work.prepare_process(1)
started = time.monotonic()
try:
    encoder = work._encoder(SimpleNamespace(plan=plan, threads=1, spans=()), Counters())
    print("dim", encoder.dim)
except ModelError as error:
    print("error", error)
print("took", round(time.monotonic() - started))
"""


def load(home: Path, revision: str = "", **env: str) -> tuple[list[str], str]:
    """Loads `org/name` as a task does; returns the lines of its output, and of its log."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, revision],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_load_encoder_pinned_commit_of_the_cache_without_noise(
    env: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    snapshot = cache_model(tmp_path / "hub", OLD)
    shutil.copytree(tiny_model, snapshot, dirs_exist_ok=True)
    cache_model(tmp_path / "hub", NEW)  # main moved, to a commit that is not whole
    out, log = load(tmp_path, OLD, **env)
    assert out[0] == "dim 64"
    assert log == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "reason"),
    [({}, "the hub is out of reach"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_load_encoder_out_of_reach_fails_soon_with_one_line(
    env: dict[str, str], reason: str, tmp_path: Path
) -> None:
    (error, took), log = load(tmp_path, **env)
    assert error.startswith(f"error Model cannot be loaded: model.name=org/name; {reason}")
    assert log == ""
    assert int(took.split()[1]) <= 30  # imports of a cold machine among them
