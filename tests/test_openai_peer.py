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
def test_vectors_of_infinity_are_those_of_the_local_encoder(
    infinity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_parquet(tmp_path / "docs.parquet", {"text": TEXTS})
    common: dict[str, Any] = {
        "workspace": str(tmp_path / "ws"),
        "dataset": {"source": "parquet", "path": str(data)},
        "slurm": {"profile": "local", "log_dir": str(tmp_path / "logs")},
    }
    there = {
        **common, "kind": "embed_openai", "name": "there",
        "model": {"name": "minilm", "base_url": infinity},
        "requests": {"max_inputs": 16}, "spending": {"execute": True},
    }  # fmt: skip
    here = {
        **common, "kind": "embed", "name": "here",
        "model": {"name": str(packaged_model()), "dtype": "float32", "device": "cpu"},
    }  # fmt: skip
    vectors = []
    for spec in (there, here):
        run = chatspace.submit(spec, executor="local")
        run.wait(timeout_min=3)
        vectors.append(run.vectors().astype(np.float64))
    theirs, ours = vectors
    assert theirs.shape == ours.shape == (len(TEXTS), 384)
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosines = (theirs * ours).sum(axis=1) / lengths
    assert cosines.min() >= 0.999
