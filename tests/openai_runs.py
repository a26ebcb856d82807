"""Runs of `kind: embed_openai` against a server on this machine."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from chatspace.jobs.events import read_events
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.task_manifest import read_task_manifest
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import spec_from_mapping
from tests.conftest import texts, write_parquet
from tests.openai_server import FakeOpenAI, vector_of

N_ROWS = 60


def spec_values(folder: Path, server: FakeOpenAI, **sections: Any) -> dict[str, Any]:
    """Values of a spec over 60 rows in 3 shards, 5 rows a request; sections are merged."""
    data = folder / "data" / "docs.parquet"
    if not data.exists():
        write_parquet(data, {"text": texts(N_ROWS)})
    values: dict[str, Any] = {
        "kind": "embed_openai",
        "name": "docs",
        "workspace": str(folder / "ws"),
        "dataset": {"source": "parquet", "path": str(data)},
        "model": {"name": "tiny", "base_url": server.url},
        "requests": {"max_inputs": 5, "concurrency": 2, "poll_s": 0.05, "timeout_s": 2},
        "output": {"rows_per_shard": 20},
        "spending": {"execute": True},
        "slurm": {"profile": "local", "log_dir": str(folder / "logs")},
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


def spec_of(folder: Path, server: FakeOpenAI, **sections: Any) -> RunSpec:
    return spec_from_mapping(spec_values(folder, server, **sections), "test")


def plan_of(folder: Path, server: FakeOpenAI, **sections: Any) -> Plan:
    return set_up(spec_of(folder, server, **sections)).plan


def plan_path(plan: Plan) -> Path:
    return Layout(Path(plan.workspace)).run(plan.run_id).plan


def run_here(plan: Plan) -> None:
    """Does the one slice of a run in this process."""
    run_task(plan_path(plan), "train", 0)


def start_task(plan: Plan) -> subprocess.Popen[bytes]:
    words = ["task", "--plan", str(plan_path(plan)), "--split", "train", "--slice", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "chatspace", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """All rows of all shards, in order."""
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    paths = sorted(folder.glob("shard-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def check_vectors(plan: Plan, dim: int = 16) -> None:
    """Every row has the vector of its own text."""
    rows = rows_of(plan)
    assert [row["row_index"] for row in rows] == list(range(plan.splits[0].rows))
    for row in rows:
        np.testing.assert_allclose(row["embedding"], vector_of(row["text"], dim), atol=1e-6)


def request_files(plan: Plan) -> list[str]:
    """What is left in the folder of answers that stand in no shard yet."""
    folder = Layout(Path(plan.workspace)).run(plan.run_id).requests("train")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def stages_told(plan: Plan) -> list[str]:
    """What the task said it was at, a word for each change."""
    log = Layout(Path(plan.workspace)).run(plan.run_id).event_log("train", 0)
    events, _ = read_events(log, 0)
    stages = [event["stage"] for event in events if event["event"] == "progress"]
    return [stage for stage, _ in itertools.groupby(stages)]


def runtime_of(plan: Plan) -> dict[str, Any]:
    """What the last execution said of itself."""
    (path,) = Layout(Path(plan.workspace)).run(plan.run_id).tasks.iterdir()
    manifest = read_task_manifest(path)
    assert manifest is not None
    runtime: dict[str, Any] = manifest.attempts[-1]["runtime"]
    return runtime


def long_rows(folder: Path) -> dict[str, Any]:
    """Sixty rows, two of which have more words than the server takes."""
    rows = [f"row {i} has a few words" for i in range(N_ROWS)]
    for i in (7, 33):
        rows[i] = " ".join(f"word{i}x{k}" for k in range(50))
    path = write_parquet(folder / "long.parquet", {"text": rows})
    return {"source": "parquet", "path": str(path)}


def empty_at_first(folder: Path, n_full: int = 20) -> dict[str, Any]:
    """Rows whose first shards have nothing to send, as many as are in hand at once and one more."""
    rows = [""] * N_ROWS + [f"row {i}" for i in range(n_full)]
    return {"source": "parquet", "path": str(write_parquet(folder / "e.parquet", {"text": rows}))}
