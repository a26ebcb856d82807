"""What exports, search and duplicates cost in time and memory, over a run that is simulated.

    python benchmarks/export.py [--quick] [--rows 10000000] [--only numpy,search]
    python benchmarks/export.py --run RUN      # what each dtype would cost that run in accuracy

Rows are 384 random numbers in float32, one in a hundred nearly a copy of another. Exports and
search read four real shards again and again; duplicates, for which vectors must differ, make each
shard when it is read. Each line is measured in a process of its own, and told on stderr when it is
there; peak memory is that of the process, beside what it had when its imports were done. Graphs,
which are slow to build, get `--index-rows`, and the comparison of all pairs `--exact-rows`. Indexes
are made in parts of `--part-mb`; a small one shows the bound with fewer rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from report import hardware, print_table, versions

import chatspace
from chatspace.export.arrays import PART_BYTES
from chatspace.export.duplicates import Wanted, find_duplicates
from chatspace.export.formats import Export
from chatspace.export.search import nearest_rows
from chatspace.export.source import SourceShard, VectorSource, shard_schema, unit_rows
from chatspace.plan.model import Plan
from chatspace.shards.records import Owner, ShardSpan
from chatspace.shards.store import ShardStore
from chatspace.shards.table import embedding_table
from chatspace.shards.vectors import Encoding, dequantised, quantised

DIM = 384
ROWS_PER_SHARD = 8192
N_FILES = 4
COPY_EVERY = 100
NOISE = 0.008  # of a copy, a number: its cosine with the original is about 0.99
THRESHOLD = 0.95
TIMEOUT_S = 3 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        rows: which of the sizes it takes: `rows`, `index_rows` or `exact_rows`.
        to: format of an export; None for search and duplicates.
    """

    rows: str
    to: str | None = None
    index: str | None = None


CASES = {
    "parquet": Case(rows="rows", to="parquet"),
    "datasets": Case(rows="rows", to="datasets"),
    "numpy": Case(rows="rows", to="numpy"),
    "lancedb": Case(rows="rows", to="lancedb"),
    "faiss flat": Case(rows="rows", to="faiss", index="flat"),
    "faiss ivf": Case(rows="rows", to="faiss", index="ivf"),
    "faiss hnsw": Case(rows="index_rows", to="faiss", index="hnsw"),
    "usearch": Case(rows="index_rows", to="usearch"),
    "search": Case(rows="rows"),
    "duplicates": Case(rows="exact_rows"),
    "duplicates --approximate": Case(rows="rows"),
}


@dataclass(slots=True)
class Rows:
    """Rows that have a vector, as a shard's table is made of them."""

    row_index: Any
    ids: Any
    texts: list[str]
    metadata: Any


def shard_table(index: int, plan: Plan) -> pa.Table:
    """Returns the rows of a shard; those of an odd one have near-copies from the one before."""
    places = np.arange(index * ROWS_PER_SHARD, (index + 1) * ROWS_PER_SHARD)
    rows = Rows(
        row_index=places,
        ids=pa.array([f"simulated/train/{place}" for place in places]),
        texts=[f"This is what stands in row {place} of the simulated run." for place in places],
        metadata=pa.array(["{}"] * len(places)),
    )
    return embedding_table(
        rows=rows,
        vectors=shard_vectors(index),
        source="parquet",
        dataset="simulated",
        split="train",
        model="simulated",
        created_at=plan.created_at,
        run_id=plan.run_id,
        keep_text=True,
    )


def shard_vectors(index: int) -> Any:
    """Returns the vectors of a shard, of length one, (ROWS_PER_SHARD, DIM)."""
    random = np.random.default_rng(index)
    vectors = random.standard_normal((ROWS_PER_SHARD, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if index % 2:
        copied = shard_vectors(index - 1)[::COPY_EVERY]
        noise = NOISE * random.standard_normal(copied.shape, np.float32)
        vectors[::COPY_EVERY] = unit_rows(copied + noise)
    return vectors


def simulated(folder: Path, rows: int, *, distinct: bool) -> VectorSource:
    """Returns a run of so many rows, in whole shards.

    Args:
        folder: where the shards are written that are read again and again.
        rows: rounded up.
        distinct: make each shard when it is read, instead.
    """
    plan = Plan(
        kind="embed",
        name="simulated",
        run_id="simulated-00000000",
        plan_sha256="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        workspace=str(folder),
        spec={},
        model={"name": "simulated"},
        splits=(),
    )
    owner = Owner(plan_sha256=plan.plan_sha256, run_id=plan.run_id, split="train")
    store = ShardStore(folder=folder / "shards", place="shards", owner=owner)
    files = []
    for index in range(1 if distinct else N_FILES):
        start = index * ROWS_PER_SHARD
        span = ShardSpan(index=index, row_start=start, row_stop=start + ROWS_PER_SHARD)
        store.commit(span, shard_table(index, plan), skipped={}, truncated=0)
        files.append(store.path(span))

    def make(
        shard: SourceShard, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        table = shard_table(int(shard.path.name), plan).select(list(columns))
        yield from table.to_batches(max_chunksize=batch_rows)

    n_shards = -(-rows // ROWS_PER_SHARD)
    paths = [Path(str(i)) if distinct else files[i % N_FILES] for i in range(n_shards)]
    source = VectorSource(
        plan=plan,
        shards=tuple(SourceShard(split="train", path=p, rows=ROWS_PER_SHARD) for p in paths),
        schema=shard_schema(files[0]),
    )
    return replace(source, read=make) if distinct else source


def measure(name: str, rows: int, scratch: Path, part_mb: int) -> dict[str, Any]:
    """Returns seconds, memory, size on disk and what came out of one case, in this process."""
    case, out = CASES[name], scratch / "out"
    source = simulated(scratch, rows, distinct=name.startswith("duplicates"))
    if case.to in ("faiss", "usearch", "lancedb", "datasets"):  # what is imported is not measured
        for library in {"faiss": ["faiss"], "usearch": ["usearch.index"]}.get(case.to, [case.to]):
            __import__(library)
    memory, before_mb, note, start = Memory(), memory_mb(), "", time.perf_counter()
    if case.to is not None:
        export = Export(to=case.to, out=out, index=case.index, part_bytes=part_mb * 2**20)
        export.write(source)
        note = note_of(export)
    elif name == "search":
        hits = nearest_rows(source, unit_rows(shard_vectors(0)[7:8])[0], k=10)
        note = f"best {hits[0].score:.4f}"
    else:
        approximate = name.endswith("approximate")
        wanted = Wanted(threshold=THRESHOLD, approximate=approximate)
        found = find_duplicates(source, wanted, scratch=scratch)
        note = f"{len(found.pairs):,} pairs"
        if found.sampled:
            note += f", {(found.sampled_found or 0) / found.sampled:.1%} of a sample's"
    seconds = time.perf_counter() - start
    return {
        "rows": source.rows,
        "seconds": seconds,
        "before_mb": before_mb,
        "peak_mb": memory.peak_mb(),
        "disk_mb": size_of(out) / 1e6 if case.to else None,
        "note": note,
    }


def note_of(export: Export) -> str:
    """Returns how many parts a usearch index has, and whether a FAISS index stays on disk."""
    n_parts = len(list(export.out.glob("index-*.usearch")))
    if n_parts:
        return f"{n_parts} parts"
    return "cells on disk" if (export.out / "index.ivfdata").exists() else ""


class Memory:
    """Looks twenty times a second how much memory this process has."""

    def __init__(self) -> None:
        self._seen, self._end = memory_mb(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def peak_mb(self) -> float:
        """Returns the most that was seen, and stops looking."""
        self._end.set()
        self._thread.join()
        return self._seen

    def _look(self) -> None:
        while not self._end.wait(0.05):
            self._seen = max(self._seen, memory_mb())


def memory_mb() -> float:
    """Returns the memory of this process.

    Pages of files that it mapped are not counted: the system takes them back when it needs them.
    """
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


def measured(name: str, rows: int, part_mb: int) -> list[object]:
    """Returns the line of a case, which a new process measures."""
    needed = rows * DIM * 4 * (2.2 if name == "faiss ivf" else 1.1)
    with tempfile.TemporaryDirectory(prefix="chatspace-export-") as folder:
        if shutil.disk_usage(folder).free < needed:
            return [name, rows, *[None] * 5, f"needs {needed / 1e9:.0f} GB of disk"]
        words = ["--child", name, "--rows", str(rows), "--scratch", folder]
        words += ["--part-mb", str(part_mb)]
        done = subprocess.run(
            [sys.executable, __file__, *words],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
    if done.returncode:
        return [name, rows, *[None] * 5, f"ended with code {done.returncode}"]
    facts = json.loads(done.stdout.splitlines()[-1])
    return [
        name,
        facts["rows"],
        facts["seconds"],
        round(facts["rows"] / facts["seconds"]),
        round(facts["peak_mb"]),
        round(facts["peak_mb"] - facts["before_mb"]),
        facts["disk_mb"],
        facts["note"],
    ]


def print_accuracy(run: str) -> None:
    """Prints what is left of a run's vectors in each dtype: cosine, and the ten nearest rows."""
    vectors = np.asarray(chatspace.open_run(run).vectors(), np.float32)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    asked = np.linspace(0, len(vectors) - 1, min(500, len(vectors))).astype(int)
    expected = nearest(vectors, vectors, asked)
    rows: list[list[object]] = []
    for dtype in ("float32", "float16", "int8", "binary"):
        encoding = Encoding(dtype=dtype, dim=vectors.shape[1])
        if encoding.is_quantised:
            stored = dequantised(*quantised(vectors, dtype), encoding)
        else:
            stored = vectors.astype(dtype).astype(np.float32)
        cosines = (unit_rows(stored) * unit_rows(vectors)).sum(axis=1)
        found = nearest(stored, vectors, asked)
        kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected, found, strict=True)])
        rows.append([dtype, encoding.n_bytes, f"{cosines.mean():.5f}", f"{kept:.1%}"])
    print(f"{len(vectors):,} vectors of {vectors.shape[1]}, {len(asked)} of them asked for\n")
    print_table(["dtype", "bytes", "mean cosine", "of the 10 nearest"], rows)


def nearest(stored: Any, vectors: Any, asked: Any) -> Any:
    """Returns the ten rows of `stored` nearest to each asked vector, itself left out."""
    scores = unit_rows(vectors[asked]) @ unit_rows(stored).T
    scores[np.arange(len(asked)), asked] = -np.inf
    return np.argsort(-scores, axis=1)[:, :10]


def main() -> None:
    """Prints the table, or measures the case that a table's process asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--index-rows", type=int, default=500_000)
    parser.add_argument("--exact-rows", type=int, default=200_000)
    parser.add_argument("--part-mb", type=int, default=PART_BYTES // 2**20)
    parser.add_argument("--quick", action="store_true", help="20,000 rows of all")
    parser.add_argument("--only", default=",".join(CASES), metavar="A,B")
    parser.add_argument("--run", help="a finished run, for the accuracy of each dtype")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.rows, options.scratch, options.part_mb)))
        return
    if options.quick:
        options.rows = options.index_rows = options.exact_rows = 20_000
    names = options.only.split(",")
    if unknown := [name for name in names if name not in CASES]:
        raise SystemExit(f"Unknown case: {unknown[0]}; known: {', '.join(CASES)}.")
    print("\n".join([*hardware(), f"- {versions('numpy', 'pyarrow', 'faiss-cpu', 'lancedb')}", ""]))
    if options.run:
        print_accuracy(options.run)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    columns = ["target", "rows", "s", "rows/s", "peak MB", "above imports", "disk MB", ""]
    lines = []
    for name in names:
        line = measured(name, getattr(options, CASES[name].rows), options.part_mb)
        lines.append(line)
        words = (f"{cell:,.0f}" if isinstance(cell, float) else str(cell) for cell in line)
        print(" | ".join(words), file=sys.stderr, flush=True)
    print_table(columns, lines)


if __name__ == "__main__":
    main()
