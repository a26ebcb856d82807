"""A test cluster of its own, one run on it, and the commands that a user types."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))

from tests.slurm.cluster import CLUSTER, cluster_env, cluster_settings  # noqa: E402

COMMAND_TIMEOUT_S = 180
WORDS = ("slurm", "array", "shard", "slice", "encoder", "vector", "token", "gather", "plan")
# Two cores a node and two a task: four tasks at a time, each on a node of its own.
NODE_CORES = "2"


class ArenaError(Exception):
    """The arena itself does not work; says nothing of the project."""


@dataclass(slots=True, kw_only=True)
class Arena:
    """Everything that a round needs.

    Attributes:
        folder: all files lie below it.
        settings: variables that make `hpc/test-cluster/cluster` speak of this cluster.
        env: environment of the user's commands.
        submit_env: what a round adds to it.
        run: folder of the run.
    """

    folder: Path
    settings: dict[str, str]
    n_tasks: int
    rows_per_task: int
    lock: IO[str]
    env: dict[str, str] = field(default_factory=dict)
    submit_env: dict[str, str] = field(default_factory=dict)
    run: Path = Path()

    @classmethod
    def open(cls, version: str, n_tasks: int, rows_per_task: int) -> Arena:
        """Brings the cluster up and plans the run, once for all rounds."""
        folder = Path(tempfile.gettempdir()) / f"chatspace-faults-{version}"
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArenaError(f"{folder}: another process injects faults there") from error
        settings = {
            **cluster_settings(version, folder / "cluster"),
            "CHATSPACE_TEST_CLUSTER_CPUS": NODE_CORES,
        }
        arena = cls(
            folder=folder,
            settings=settings,
            n_tasks=n_tasks,
            rows_per_task=rows_per_task,
            lock=lock,
        )
        arena.heal()
        env = cluster_env({**settings, "PATH": os.environ["PATH"]})
        if env is None:
            raise ArenaError(f"{CLUSTER} came up and does not answer")
        arena.env = {**env, "HF_HUB_OFFLINE": "1"}
        arena._plan_run()
        return arena

    def close(self, *, keep: bool) -> None:
        """Takes the cluster down; removes everything unless `keep`."""
        unmount(self.workspace)
        self._cluster("down" if keep else "clean")
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def workspace(self) -> Path:
        """The run's workspace."""
        return self.folder / "ws"

    @property
    def shards(self) -> list[Path]:
        """The shard files that are there now."""
        return sorted((self.workspace / "embeddings").rglob("shard-*.parquet"))

    @property
    def job_logs(self) -> list[Path]:
        """The logs of this round's jobs."""
        return sorted((self.folder / "logs").glob("*.out"))

    def heal(self) -> None:
        """Starts the daemons that do not run, and resumes nodes."""
        self._cluster("up")

    def chatspace(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as the user types it."""
        return self.call(sys.executable, "-m", "chatspace", *words)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs any command as the user."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.env, **self.submit_env},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    def reset(self) -> None:
        """Ends whatever works on the run, and makes it what it was before its first submission."""
        self.call("scancel", "--state=PENDING")
        self.call("scancel", "--state=RUNNING")
        self.heal()
        self.wait_idle(60)
        unmount(self.workspace)
        for folder in (self.workspace, self.folder / "logs"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "pristine", self.workspace, symlinks=True)
        (self.folder / "logs").mkdir()

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no job is queued or running; returns whether that came true."""
        deadline = time.monotonic() + timeout_s
        while self.queue():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
        return True

    def queue(self) -> str:
        """Returns squeue's lines; not empty while slurmctld does not answer."""
        answer = self.call("squeue", "-h", "-r", "-o", "%i %T %r %N")
        return answer.stdout.strip() if answer.returncode == 0 else f"no answer: {answer.stderr}"

    def keep_failed(self, name: str) -> Path:
        """Copies what a round left behind, to look at; returns where."""
        kept = self.folder / "failed" / name
        shutil.rmtree(kept, ignore_errors=True)
        for part in ("ws", "logs"):
            shutil.copytree(self.folder / part, kept / part, symlinks=True)
        return kept

    def _cluster(self, command: str) -> None:
        done = subprocess.run(
            [str(CLUSTER), command],
            env={**os.environ, **self.settings},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise ArenaError(f"cluster {command}: {done.stderr.strip()[-500:]}")

    def _plan_run(self) -> None:
        unmount(self.workspace)
        for stale in ("ws", "pristine", "data", "model", "logs", "failed"):
            shutil.rmtree(self.folder / stale, ignore_errors=True)
        write_rows(self.folder / "data" / "train.parquet", self.n_tasks * self.rows_per_task)
        self._must(sys.executable, "-m", "tests.models", "bert-mean", str(self.folder / "model"))
        (self.folder / "spec.yaml").write_text(yaml.safe_dump(self._spec()), encoding="utf-8")
        self._must(sys.executable, "-m", "chatspace", "setup", str(self.folder / "spec.yaml"))
        (self.run,) = (self.workspace / "runs").iterdir()
        shutil.copytree(self.workspace, self.folder / "pristine", symlinks=True)
        (self.folder / "logs").mkdir(exist_ok=True)

    def _must(self, *command: str) -> None:
        env = {**self.env, "PYTHONPATH": os.pathsep.join(filter(None, [_import_path()]))}
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ArenaError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")

    def _spec(self) -> dict[str, object]:
        return {
            "kind": "embed",
            "name": "faults",
            "workspace": str(self.workspace),
            "dataset": {"source": "parquet", "path": str(self.folder / "data")},
            "model": {"name": str(self.folder / "model"), "dtype": "float32"},
            "output": {"rows_per_shard": 100},
            "slices": {"count": self.n_tasks},
            "slurm": {
                "profile": "generic",
                "gpus_per_task": 0,
                "partition": "preempt",
                "account": "proj1",
                "time": "00:10:00",
                "grace_s": 8,
                "mem_gb": 2,
                "cpus_per_task": 2,
            },
        }


def write_rows(path: Path, n_rows: int) -> None:
    """Writes texts whose lengths vary widely, always the same ones."""
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(WORDS, k=1 + int(rng.paretovariate(1.2) * 8))) for _ in range(n_rows)
    ]
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=500)


def unmount(folder: Path) -> None:
    """Takes away whatever is mounted on a folder and below it, the latest first."""
    for point in reversed(_mount_points()):
        if folder in (point, *point.parents):
            subprocess.run(["umount", "-l", str(point)], check=True, timeout=30)


def _mount_points() -> list[Path]:
    """Returns where something is mounted; `ismount` overlooks a folder that is bound to itself."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [Path(line.split()[4]) for line in lines]


def _import_path() -> str:
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [given, str(REPOSITORY)]))


def remove_quietly(path: Path) -> None:
    """Removes a file that may be gone already."""
    with suppress(FileNotFoundError):
        path.unlink()
