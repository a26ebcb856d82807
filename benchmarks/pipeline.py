"""Parquet to Parquet against the encoder alone: what reading, tokenising and writing cost.

    python benchmarks/pipeline.py                              # MiniLM, 4,000 passages
    python benchmarks/pipeline.py --model FOLDER --device cuda --rows 200000 --rows-per-shard 8192
    python benchmarks/pipeline.py --rows 1000000 --simulate    # no forward pass: bounds the memory

Each figure comes from processes of their own, in turn: one does what an array task does, from its
plan to its shards; one begins as such a task and has the same rows read and tokenised before its
clock starts, so that it is the encoder at its best: batches follow each other without a pause, and
nothing is written. Seconds begin when the model is ready; the start is split up below them.

With `--simulate` the model is loaded and every row is read, tokenised and written, and the forward
pass gives random vectors at once, so that rows pile up wherever they can.

Needs Linux: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from corpora import SHAPES, corpus
from gpu_load import NOT_TOLD
from report import hardware, least_cosine, median_ratio, print_table, versions
from watched_task import Facts, run_as_child

from chatspace.demo.model import MODEL_NAME, packaged_model
from chatspace.jobs.setup import set_up
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.table import embedding_matrix
from chatspace.shards.vectors import VECTOR_COLUMN
from chatspace.spec.loading import spec_from_mapping

PACKAGES = ("chatspace", "torch", "transformers", "sentence-transformers", "pyarrow", "numpy")
MEMORY_LIMIT_MB = 2048
"""How much more than the loaded model a task may hold."""
ROUNDS, QUICK_ROWS = 3, 200
ROWS_PER_GROUP = 50_000
LIMIT_S = 7200
PEERS = ("alone", "whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is embedded, and how.

    Attributes:
        data: a Parquet file with a column `text`.
        folder: where workspaces are made and removed.
        sections: further sections of the run spec, `model` with its name among them.
        simulate: random vectors instead of a forward pass.
    """

    data: Path
    folder: Path
    sections: Facts
    rows_per_shard: int
    simulate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the processes found, one entry a round; `alone` is empty where nothing was compared."""

    alone: list[Facts]
    whole: list[Facts]


# What is measured, in processes of their own


def measure(job: Job, rounds: int) -> Measured:
    """Returns the figures of `rounds` rounds, the two in turn."""
    found: dict[str, list[Facts]] = {name: [] for name in PEERS}
    peers = PEERS[1:] if job.simulate else PEERS
    for index in range(rounds):
        for name in peers if index % 2 == 0 else peers[::-1]:
            print(f"round {index + 1} of {rounds}: {name}", file=sys.stderr)
            found[name].append(_run_child(job, name))
    return Measured(**found)


def _run_child(job: Job, name: str) -> Facts:
    workspace = Path(tempfile.mkdtemp(prefix="workspace-", dir=job.folder))
    report = workspace / "child.json"
    try:
        plan = _plan(job, workspace)
        run = Layout(workspace).run(plan.run_id)
        alone = job.folder / "alone.npy"
        options = ["--simulate"] if job.simulate else []
        options += ["--vectors", str(alone)] if name == "alone" else []
        words = ["--child", "--plan", str(run.plan), "--report", str(report)]
        command = [sys.executable, str(Path(__file__).resolve()), *words, *options]
        started = time.time()
        done = subprocess.run(
            [*command, "--started", str(started)], check=False, stdout=sys.stderr, timeout=LIMIT_S
        )
        if done.returncode != 0:
            raise SystemExit(f"The process of {name} ended with code {done.returncode}.")
        facts: Facts = json.loads(report.read_text(encoding="utf-8"))
        if name == "whole" and not job.simulate:
            shards = workspace / plan.splits[0].output_dir
            facts["cosine"] = least_cosine(written_vectors(shards), np.load(alone))
        return _attempt(run.tasks) | facts | {"rows": plan.splits[0].rows}
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _plan(job: Job, workspace: Path) -> Plan:
    spec = {
        "kind": "embed",
        "name": "benchmark",
        "workspace": str(workspace),
        "dataset": {"source": "parquet", "path": str(job.data)},
        "output": {"rows_per_shard": job.rows_per_shard},
        "slices": {"count": 1},
        "slurm": {"profile": "local", "log_dir": str(workspace / "logs")},
        **job.sections,
    }
    return set_up(spec_from_mapping(spec, "benchmarks/pipeline.py")).plan


def written_vectors(folder: Path) -> npt.NDArray[np.float32]:
    """Returns the vectors of all shards in a folder, in the order of the rows, (n_rows, dim)."""
    files = sorted(folder.glob("*.parquet"))
    tables = (pq.read_table(path, columns=[VECTOR_COLUMN]) for path in files)
    parts = [embedding_matrix(table[VECTOR_COLUMN]) for table in tables]
    return np.concatenate(parts).astype(np.float32, copy=False)


def _attempt(tasks: Path) -> Facts:
    """Returns what the task itself wrote about its execution."""
    (path,) = tasks.glob("**/*.json")
    attempt: Facts = json.loads(path.read_text(encoding="utf-8"))["attempts"][-1]
    return attempt | {"seconds": attempt["elapsed_s"] - attempt["setup_s"]}


# The table


def table(found: Measured) -> list[list[object]]:
    """Returns measure, encoder alone, Parquet to Parquet; medians of the rounds."""
    alone, whole = found.alone, found.whole
    rows = [
        _pair("rows", alone, whole, lambda f: int(f["rows"])),
        _pair("real tokens", alone, whole, lambda f: whole[0]["n_tokens"]),
        _pair("seconds", alone, whole, lambda f: f["seconds"]),
        _pair("rows/s", alone, whole, lambda f: f["rows"] / f["seconds"]),
        _pair("tokens/s", alone, whole, lambda f: whole[0]["n_tokens"] / f["seconds"]),
    ]
    if alone:
        ratio = median_ratio([f["seconds"] for f in whole], [f["seconds"] for f in alone])
        rows.append(["overhead over the encoder alone", None, f"{100 * (ratio - 1):.1f} %"])
        cosine = min(f["cosine"] for f in whole)
        rows.append(["min cosine to the encoder alone", None, f"{cosine:.6f}"])
    for name in ("loader", "encoder", "writer"):
        busy, idle = (
            _median(whole, lambda f, k=key, n=name: f["stages"][n][k])
            for key in ("busy_s", "idle_s")
        )
        rows.append([f"{name}: busy / idle s", None, f"{busy:.2f} / {idle:.2f}"])
    if whole[0]["runtime"]["device"].startswith("cuda"):
        rows.append(["GPU busy share", _busy(alone) if alone else None, _busy(whole)])
    return [*rows, *_memory_rows(alone, whole), *_start_rows(alone, whole)]


def _busy(facts: list[Facts]) -> object:
    busy = _median(facts, lambda f: f["gpu_busy"])
    return NOT_TOLD if busy is None else busy


def _memory_rows(alone: list[Facts], whole: list[Facts]) -> Iterator[list[object]]:
    yield _pair("memory with the model loaded, MB", alone, whole, lambda f: f["loaded_mb"])
    extra = "peak memory above it, MB"
    yield _pair(extra, alone, whole, lambda f: f["peak_mb"] - f["loaded_mb"])
    highest = max(f["peak_mb"] - f["loaded_mb"] for f in whole)
    verdict = "yes" if highest < MEMORY_LIMIT_MB else "NO"
    yield [f"always below {MEMORY_LIMIT_MB:,} MB", None, verdict]


def _start_rows(alone: list[Facts], whole: list[Facts]) -> Iterator[list[object]]:
    steps = {
        "start: interpreter and imports s": ("started", "imported"),
        "start: model load s": ("imported", "loaded"),
        "start: warming up and tuning s": ("loaded", "ready"),
        "start: first shard read and tokenised s": ("ready", "first batch"),
        "start: process to first batch s": ("started", "first batch"),
    }
    for name, (begin, end) in steps.items():
        yield [name, None, _median(whole, lambda f, b=begin, e=end: f[e] - f[b])]


def _pair(
    name: str, alone: list[Facts], whole: list[Facts], figure: Callable[[Facts], Any]
) -> list[object]:
    return [name, _median(alone, figure) if alone else None, _median(whole, figure)]


def _median(facts: Sequence[Facts], figure: Callable[[Facts], Any]) -> Any:
    """Returns the median; a count stays a whole number."""
    found = [value for f in facts if (value := figure(f)) is not None]
    return statistics.median_low(found) if found else None


def print_report(title: str, job: Job, found: Measured, *, model: str, data: str) -> None:
    """Prints machine, versions, settings and table."""
    runtime = found.whole[0]["runtime"]
    names = ("batching", "tokens_per_batch", "dtype", "attention_impl", "device", "threads")
    print(f"# {title}\n")
    print("\n".join(hardware()))
    print(f"- Versions: {versions(*PACKAGES)}")
    print(f"- Model: {model}")
    print(f"- Encoder: {', '.join(f'{n} {runtime[n]}' for n in names if n in runtime)}")
    print(f"- Data: {data}; shards of {job.rows_per_shard:,} rows")
    print(f"- Rounds: {len(found.whole)}, medians; each a process of its own, in turn\n")
    print_table(["measure", "encoder alone", "Parquet to Parquet"], table(found))


# What is embedded


def passages(model: Path, shape: str, n_rows: int) -> list[str]:
    """Returns rows of English whose lengths in tokens of the model follow `SHAPES[shape]`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    mean = SHAPES[shape].median * math.exp(SHAPES[shape].sigma ** 2 / 2)
    texts = corpus(
        shape, n_tokens=math.ceil(n_rows * mean), count=lambda text: len(tokenizer.encode(text).ids)
    )
    return texts[:n_rows]


def many(texts: Sequence[str], n_rows: int) -> Iterator[list[str]]:
    """Yields `n_rows` rows in pieces, drawn from some, so that only a piece is in memory."""
    rng = random.Random(0)
    for start in range(0, n_rows, ROWS_PER_GROUP):
        yield rng.choices(texts, k=min(ROWS_PER_GROUP, n_rows - start))


def write_rows(path: Path, pieces: Iterator[list[str]] | list[list[str]]) -> Path:
    """Writes rows as Parquet, one row group for each piece."""
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for piece in pieces:
            writer.write_table(pa.table({"text": piece}))
    return path


def write_data(arguments: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """Writes the rows that the arguments ask for; returns the file and what is in it."""
    path = folder / "rows.parquet"
    if arguments.simulate:
        some = passages(arguments.model, "chat-like", min(5000, arguments.rows))
        write_rows(path, many(some, arguments.rows))
        return path, f"{arguments.rows:,} rows of chat-like length, drawn from {len(some):,}"
    texts = passages(arguments.model, "passages", arguments.rows)
    write_rows(path, [texts])
    return path, f"{len(texts):,} passages out of Python's documentation"


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """Gives a folder that is removed at the end, inside `folder` or where temporary files are."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chatspace-", dir=folder) as made:
        yield Path(made)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="sentence-transformers folder [MiniLM]")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rows-per-shard", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--simulate", action="store_true", help="random vectors, no forward pass")
    parser.add_argument("--folder", type=Path, help="where to work [the system's temporary folder]")
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_ROWS} rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    for name in ("--plan", "--report", "--vectors", "--started"):
        kind = float if name == "--started" else Path
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = QUICK_ROWS, 1
    arguments.rounds = arguments.rounds or (1 if arguments.simulate else ROUNDS)
    if arguments.rows_per_shard is None:  # about eight shards, so that the stages overlap
        arguments.rows_per_shard = max(1, min(8192, -(-arguments.rows // 8)))
    return arguments


def main() -> None:
    """Prints the table."""
    arguments = _arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.child:
        run_as_child(arguments)
        return
    label = arguments.model.name if arguments.model else MODEL_NAME
    arguments.model = arguments.model or packaged_model()
    with scratch(arguments.folder) as folder:
        data, what = write_data(arguments, folder)
        model = {"name": str(arguments.model.resolve())}
        model |= {"dtype": arguments.dtype, "device": arguments.device}
        job = Job(
            data=data,
            folder=folder,
            sections={"model": model},
            rows_per_shard=arguments.rows_per_shard,
            simulate=arguments.simulate,
        )
        found = measure(job, arguments.rounds)
        title = "no forward pass" if job.simulate else "against the encoder alone"
        print_report(f"Parquet to Parquet, {title}", job, found, model=label, data=what)


if __name__ == "__main__":
    main()
