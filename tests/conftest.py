"""What many tests need: a tiny model, datasets and run specs."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.spec.base import RunSpec
from chatspace.spec.loading import spec_from_mapping

if TYPE_CHECKING:
    from tests.openai_server import FakeOpenAI

# No test may reach a model hub, and none may take the workspace of the person who runs it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("CHATSPACE_WORKSPACE", None)

WORDS = ["slurm", "array", "shard", "slice", "encoder", "vector", "token", "gather", "plan"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes, those of a file, or of a SLURM cluster, share one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            version = re.search(r"^tests/slurm/.*\[(debian|newer)\b", nodeid)
            return version[1] if version else nodeid.partition("::")[0]

    return ByCluster(config, log)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mean-pooling BERT of about one megabyte."""
    from tests import models

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    models.build("bert-mean", folder)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    """An endpoint on this machine that speaks OpenAI's API, and a key for it."""
    from tests.openai_server import KEY, serving

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs this
    with serving() as fake:
        yield fake


@pytest.fixture
def chatspace(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: gives the exit code, what it said, and its errors."""
    from chatspace.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["chatspace", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        said, errors = capfd.readouterr()
        return int(end.value.code or 0), said, errors

    return run


def absent(reason: str) -> None:
    """Fails in CI, skips elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def texts(n: int, seed: int = 0) -> list[str]:
    """Texts with a heavy-tailed length, the same for the same seed."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(WORDS, k=1 + int(rng.paretovariate(1.2) * 4) % 120)) for _ in range(n)
    ]


def write_parquet(path: Path, columns: dict[str, Sequence[Any]], row_group_size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """For root, becomes a user who may not write everywhere; others are that already."""
    is_root = os.getuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    yield
    if is_root:
        os.setresuid(0, 0, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Returns a maker of a file system of so many KiB; needs root, as mounting does."""
    if os.getuid() != 0:
        pytest.skip("mounts a tmpfs, which only root may")
    folder = tmp_path / "small"

    def make(kib: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, timeout=20, capture_output=True).returncode:
            pytest.skip("may not mount here")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


SpecMaker = Callable[..., RunSpec]


@pytest.fixture
def make_spec(tmp_path: Path, tiny_model: Path) -> SpecMaker:
    """Returns a maker of run specs over 300 rows; sections are merged over the defaults."""
    data = write_parquet(tmp_path / "data" / "docs.parquet", {"text": texts(300)})

    def make(**sections: Any) -> RunSpec:
        values: dict[str, Any] = {
            "kind": "embed",
            "name": "test",
            "workspace": str(tmp_path / "ws"),
            "dataset": {"source": "parquet", "path": str(data)},
            "model": {"name": str(tiny_model), "dtype": "float32", "device": "cpu"},
            "output": {"rows_per_shard": 32},
            "slurm": {"profile": "local", "log_dir": str(tmp_path / "logs")},
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        return spec_from_mapping(values, "test")

    return make
