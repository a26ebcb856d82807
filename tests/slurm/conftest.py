"""The test cluster: brought up once a session, where it is installed, and taken down again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import absent, texts, write_parquet
from tests.slurm.cluster import CLUSTER, CONTAINER, cluster_env, cluster_settings

UP_TIMEOUT_S = 120
# Debian's own, and the one of a newer release that hpc/newer-slurm makes run here.
VERSIONS = ("debian", "newer")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs everything on both SLURMs, but for what is marked `one_slurm`."""
    if "slurm" in metafunc.fixturenames:
        is_one = metafunc.definition.get_closest_marker("one_slurm") is not None
        versions = VERSIONS[:1] if is_one else VERSIONS
        metafunc.parametrize("slurm", versions, indirect=True, scope="session")


@pytest.fixture(scope="session")
def slurm(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Environment in which sbatch reaches a running test cluster."""
    settings = cluster_settings(request.param)
    was_up = cluster_env(settings) is not None
    if not was_up:
        done = _try([str(CLUSTER), "up"], settings)
        if done.returncode != 0:
            absent(f"no SLURM test cluster ({request.param}): {done.stderr.strip()[-300:]}")
    env = cluster_env(settings)
    assert env is not None, "the cluster came up but does not answer"
    yield env
    if not was_up:
        _try([str(CLUSTER), "down"], settings)


@pytest.fixture(scope="session")
def sif(slurm: dict[str, str]) -> Path:
    """A container image with a real runtime on the cluster's PATH."""
    done = _try([str(CONTAINER), "image"])
    if done.returncode != 0:
        absent(f"no container image: {done.stderr.strip()[-300:]}")
    env = cluster_env(slurm)
    assert env is not None
    slurm.update({key: env[key] for key in ("PATH", "CHATSPACE_TEST_SIF")})
    return Path(env["CHATSPACE_TEST_SIF"])


@dataclass(frozen=True)
class Project:
    """A user's folder: data, a model, a spec, and the commands that are typed in it."""

    folder: Path
    env: dict[str, str]
    model: Path

    def write_spec(self, **sections: Any) -> Path:
        profile = self.folder / "no_gpus.yaml"
        profile.write_text("name: no_gpus\ngpus_per_task: 0\ngpu_directive: none\n")
        values: dict[str, Any] = {
            "kind": "embed",
            "name": "docs",
            "workspace": str(self.folder / "ws"),
            "dataset": {"source": "parquet", "path": str(self.folder / "data")},
            "model": {"name": str(self.model), "dtype": "float32"},
            "output": {"rows_per_shard": 40},
            "slurm": {
                "profile": str(profile),
                "partition": "cpu",
                "account": "proj1",
                "time": "00:10:00",
                "mem_gb": 2,
                "cpus_per_task": 1,
            },
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        path = self.folder / "spec.yaml"
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        return path

    def chatspace(self, *words: str, code: int = 0) -> str:
        """Runs a command as the user types it and returns what it printed."""
        command = [sys.executable, "-m", "chatspace", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout if code == 0 else done.stderr

    def logs(self) -> str:
        """Everything that jobs have written, for the message of a failed assertion."""
        paths = sorted(self.folder.rglob("*.out"))
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')}" for p in paths)


@pytest.fixture
def project(tmp_path: Path, slurm: dict[str, str], tiny_model: Path) -> Callable[..., Project]:
    """Returns a maker of user folders; the name may be hostile."""

    def make(name: str = "project", splits: Sequence[str] = ("train",), rows: int = 400) -> Project:
        folder = tmp_path / name
        for seed, split in enumerate(splits):
            write_parquet(folder / "data" / f"{split}.parquet", {"text": texts(rows, seed)})
        return Project(folder, {**os.environ, **slurm}, tiny_model)

    return make


def _try(
    command: Sequence[str], settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **(settings or {})},
        capture_output=True,
        text=True,
        timeout=UP_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
