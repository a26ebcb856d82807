"""How long `chatspace status` takes for a large run: the whole command, as it is typed.

    python benchmarks/status.py [--tasks 10000] [--shards 100000] [--repeats 5]

A run is simulated in a temporary folder, which is removed at the end: its plan, empty files with
the names of shards, an event log for each task, and a `squeue` and a `sacct` on the PATH that print
an element for each task. The clusters' own time to answer is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chatspace.data.inputs import InputFile
from chatspace.jobs.submissions import Submission
from chatspace.layout import Layout
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.store import save_plan
from chatspace.shards.records import shard_file_name
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.loading import spec_from_mapping

ROWS_PER_SHARD = 1000
JOB_ID = 4711
N_PROGRESS = 240  # two minutes of a log: more than status reads of it


def main() -> None:
    """Builds the run, times the commands, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chatspace-status-") as folder:
        plan = simulated_run(Path(folder), options.tasks, options.shards)
        fake_slurm(Path(folder) / "bin", states(options.tasks))
        broken_slurm(Path(folder) / "silent")
        print(table(Path(folder), plan, options.repeats))


def table(folder: Path, plan: Plan, repeats: int) -> str:
    """Returns the medians as Markdown."""
    run = str(Layout(folder).run(plan.run_id).folder)
    n_tasks, n_shards = len(plan.splits[0].slices), plan.splits[0].n_shards
    commands = {
        "status RUN": (["status", run], "bin"),
        "status RUN --json": (["status", run, "--json"], "bin"),
        "status RUN, SLURM silent": (["status", run], "silent"),
        "status (all runs)": (["status", "--workspace", str(folder)], "bin"),
        "version (start of Python)": (["version"], "bin"),
    }
    lines = [
        f"{n_tasks:,} tasks, {n_shards:,} shards; median and range of {repeats} calls",
        "",
        "| command | median, s | fastest | slowest | CPU, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (words, slurm) in commands.items():
        calls = [seconds_of(words, folder / slurm) for _ in range(repeats)]
        seconds = [elapsed for elapsed, _ in calls]
        median, cpu = statistics.median(seconds), statistics.median(used for _, used in calls)
        spread = f"{min(seconds):.2f} | {max(seconds):.2f}"
        lines.append(f"| {name} | {median:.2f} | {spread} | {cpu:.2f} |")
    return "\n".join(lines)


def seconds_of(words: Sequence[str], slurm: Path) -> tuple[float, float]:
    """Returns the wall time of one call, and the CPU time, which other work does not change."""
    env = {**os.environ, "PATH": f"{slurm}:{os.environ['PATH']}", "COLUMNS": "80"}
    started, before = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-m", "chatspace", *words]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    """Returns the CPU time of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def states(n_tasks: int) -> list[str]:
    """Returns SLURM's state of each task: half done, some failed, a tenth running, others wait."""
    n_running, n_ended = n_tasks // 10, n_tasks // 2
    ended = ["OUT_OF_MEMORY" if i % 50 == 0 else "COMPLETED" for i in range(n_ended)]
    return ended + ["RUNNING"] * n_running + ["PENDING"] * (n_tasks - n_ended - n_running)


def simulated_run(workspace: Path, n_tasks: int, n_shards: int) -> Plan:
    """Returns a run that is halfway, with everything that status looks at on disk."""
    plan = make_plan(workspace, n_tasks, n_shards)
    run, split = Layout(workspace).run(plan.run_id), plan.splits[0]
    save_plan(plan, run.plan)
    job = Submission(
        job_id=str(JOB_ID),
        executor="sbatch",
        submitted_at=now().isoformat(),
        split=split.name,
        offset=0,
        count=n_tasks,
        script="embed.slurm",
    )
    run.submissions.write_text(json.dumps(asdict(job)) + "\n", encoding="utf-8")
    shards = workspace / split.output_dir
    shards.mkdir(parents=True)
    run.events.mkdir(parents=True)
    for slice_, state in zip(split.slices, states(n_tasks), strict=True):
        if state == "PENDING":
            continue
        lines = "".join(json.dumps(event) + "\n" for event in events(slice_.index, state))
        run.event_log(split.name, slice_.index).write_text(lines, encoding="utf-8")
        n_done = slice_.shard_stop - slice_.shard_start
        n_done = n_done if state == "COMPLETED" else n_done // 2
        for index in range(slice_.shard_start, slice_.shard_start + n_done):
            (shards / shard_file_name(index)).touch()
    return plan


def make_plan(workspace: Path, n_tasks: int, n_shards: int) -> Plan:
    """Returns a plan with evenly divided shards."""
    values = {
        "kind": "embed",
        "name": "large",
        "workspace": str(workspace),
        "dataset": {"source": "parquet", "path": "/data/large"},
        "slurm": {"gpus_per_task": 1},
    }
    spec = spec_from_mapping(values, "benchmark")
    edges = [n_shards * i // n_tasks for i in range(n_tasks + 1)]
    rows = n_shards * ROWS_PER_SHARD
    file = InputFile(
        path="/data/large/train.parquet",
        bytes=rows,
        mtime_ns=0,
        rows=rows,
        row_groups=(rows,),
        text_bytes=(rows,),
    )
    split = SplitPlan(
        name="train",
        dataset="large",
        revision=None,
        rows=rows,
        rows_per_shard=ROWS_PER_SHARD,
        text_bytes=rows,
        files=(file,),
        identity=({"name": "train.parquet"},),
        slices=tuple(
            Slice(index=i, shard_start=edges[i], shard_stop=edges[i + 1], text_bytes=1)
            for i in range(n_tasks)
        ),
        output_dir="embeddings/tiny/large/train",
        manifest="indexes/tiny/large/train/manifest.json",
    )
    cluster: dict[str, Any] = {**asdict(resolve_cluster(spec)), "log_dir": str(workspace / "logs")}
    return Plan(
        kind="embed",
        name="large",
        run_id="large-01234567",
        plan_sha256="0" * 64,
        created_at=now().isoformat(),
        workspace=str(workspace),
        spec=spec.science(),
        model={"name": "tiny", "label": "tiny", "path": None, "fingerprint": {}},
        splits=(split,),
        cluster=cluster,
    )


def events(index: int, state: str) -> Iterator[dict[str, Any]]:
    """Yields the events of one task, as it would have written them until now."""
    attempt, begun = f"{JOB_ID}_{index}.r0", now() - timedelta(seconds=N_PROGRESS)
    yield {"time": begun.isoformat(), "event": "started", "attempt": attempt, "rows_done": 0}
    for second in range(N_PROGRESS):
        yield {
            "time": (begun + timedelta(seconds=second)).isoformat(),
            "event": "progress",
            "attempt": attempt,
            "elapsed_s": float(second),
            "rows": 50 * second,
            "n_tokens": 6000 * second,
            "n_padded_tokens": 6000 * second,
            "stage": "embedding",
        }
    if state == "COMPLETED":
        yield {"time": now().isoformat(), "event": "finished", "attempt": attempt, "notes": []}
    if state == "OUT_OF_MEMORY":
        ended = {"event": "ended", "attempt": attempt, "host": "n1", "exit_code": 137}
        yield {"time": now().isoformat(), **ended}


def fake_slurm(folder: Path, by_task: Sequence[str]) -> None:
    """Writes a squeue and a sacct that print what a cluster would of one array."""
    active = [f"{JOB_ID}_{i}|{s}" for i, s in enumerate(by_task) if s == "RUNNING"]
    active += [f"{JOB_ID}_{i}|{s}" for i, s in enumerate(by_task) if s == "PENDING"]
    all_of_them = [f"{JOB_ID}_{i}|{s}|0:0" for i, s in enumerate(by_task)]
    write_command(folder, "squeue", [f"{line}|large-01234567" for line in active])
    write_command(folder, "sacct", all_of_them)


def broken_slurm(folder: Path) -> None:
    """Writes a squeue and a sacct that fail."""
    for name in ("squeue", "sacct"):
        write_command(folder, name, [], code=1)


def write_command(folder: Path, name: str, lines: Sequence[str], code: int = 0) -> None:
    """Writes a command that prints lines."""
    folder.mkdir(exist_ok=True)
    answer = folder / f"{name}.txt"
    answer.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    script = folder / name
    script.write_text(f"#!/bin/sh\ncat {shlex.quote(str(answer))}\nexit {code}\n", encoding="utf-8")
    script.chmod(0o755)


def now() -> datetime:
    """Returns the time, UTC."""
    return datetime.now(UTC)


if __name__ == "__main__":
    main()
