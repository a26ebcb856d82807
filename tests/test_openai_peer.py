"""Against a server of others that serves a real model: Infinity, in an environment of its own."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chatspace
from chatspace.demo.model import packaged_model
from tests.conftest import write_parquet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXTS = [
    "Shards are the atom.",
    "A slice is a run of consecutive shards, given to one array task.",
    "naïve café, 北京, 🙂",
    "def encode(rows): return [model(row) for row in rows]",
    *(
        f"Passage {i} speaks of {'encoders and vectors ' * (i % 9)}and of nothing else."
        for i in range(60)
    ),
]


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Infinity, serving the real all-MiniLM-L6-v2 as `minilm`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        environments: Any = importlib.import_module("environments")
    made = environments.Environments(folder=environments.default_folder())
    python = made.python("infinity-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(python.with_name("infinity_emb")), "v2", "--model-id", str(packaged_model()),
        "--served-model-name", "minilm", "--engine", "torch", "--device", "cpu",
        "--dtype", "float32", "--no-bettertransformer", "--no-model-warmup",
        "--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("infinity") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait_for(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"Infinity does not answer: {log.read_text()[-2000:]}")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("long_text", "n_vectors"),
    [({}, len(TEXTS)), ({"long_text": "chunk", "chunk_tokens": 20}, 128)],
)
def test_vectors_of_infinity_are_those_of_the_local_encoder(
    infinity: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    long_text: dict[str, Any],
    n_vectors: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    common: dict[str, Any] = {
        "workspace": str(tmp_path / "ws"),
        "slurm": {"profile": "local", "log_dir": str(tmp_path / "logs")},
    }
    there = {
        **common, "kind": "embed_openai", "name": "there",
        "dataset": dataset_of(tmp_path / "rows.parquet", TEXTS),
        "model": {"name": "minilm", "base_url": infinity, **long_text},
        "requests": {"max_inputs": 16}, "spending": {"execute": True},
    }  # fmt: skip
    asked = chatspace.submit(there, executor="local")
    asked.wait(timeout_min=3)
    sent = asked.dataset().to_table()["text"].to_pylist()
    assert len(sent) == n_vectors
    here = {
        **common, "kind": "embed", "name": "here",
        "dataset": dataset_of(tmp_path / "sent.parquet", sent),
        "model": {"name": str(packaged_model()), "dtype": "float32", "device": "cpu"},
    }  # fmt: skip
    encoded = chatspace.submit(here, executor="local")
    encoded.wait(timeout_min=3)
    theirs, ours = (run.vectors().astype(np.float64) for run in (asked, encoded))
    assert theirs.shape == ours.shape == (n_vectors, 384)
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosines = (theirs * ours).sum(axis=1) / lengths
    assert cosines.min() >= 0.999


def dataset_of(path: Path, texts: list[str]) -> dict[str, Any]:
    return {"source": "parquet", "path": str(write_parquet(path, {"text": texts}))}
