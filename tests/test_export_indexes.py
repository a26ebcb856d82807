"""Indexes made part by part: what they find, where they can be moved, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatspace.errors import UnfitEnvironmentError
from chatspace.export.formats import Export
from chatspace.export.memory import available_bytes
from chatspace.export.source import VectorSource, open_source, unit_rows
from chatspace.plan.model import Plan
from tests.vector_runs import random_vectors, vector_run

ROWS, DIM, K = 3000, 16, 10
VECTORS = random_vectors(ROWS, DIM)
UNIT = unit_rows(VECTORS)
EXACT = np.argsort(-(UNIT[:200] @ UNIT.T), axis=1)[:, :K]
PART_BYTES = 50_000  # of 72 bytes a row in FAISS, 332 in usearch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return vector_run(tmp_path_factory.mktemp("run"), VECTORS, rows_per_shard=500)


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("bits")
    return vector_run(folder, VECTORS, dtype="binary", rows_per_shard=500)


def in_parts(source: VectorSource, to: str, out: Path, **options: Any) -> Export:
    export = Export(to=to, out=out, **{"part_bytes": PART_BYTES, **options})
    export.write(source)
    return export


def recall(found: Any) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(EXACT, found, strict=True)]))


def searched(line: str, cwd: Path, n_probe: int) -> list[list[int]]:
    """Returns what a new process finds that opens an export by a line of Python."""
    code = (
        "import json, sys, glob, numpy\n"
        f"{'import faiss' if 'faiss.' in line else 'import usearch.index'}\n"
        f"index = {line}\n"
        "queries = numpy.load(sys.argv[1])\n"
        f"if 'faiss' in globals(): faiss.extract_index_ivf(index).nprobe = {n_probe}\n"
        f"found = index.search(queries, {K})\n"
        "print(json.dumps((found[1] if isinstance(found, tuple) else found.keys).tolist()))\n"
    )
    queries = cwd / "queries.npy"
    np.save(queries, UNIT[:200])
    done = subprocess.run(
        [sys.executable, "-c", code, str(queries)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("to", "index", "n_files", "least"),
    [("faiss", "ivf", 4, 0.999), ("faiss", "PCA16,IVF20,SQ8", 4, 0.9), ("usearch", None, 22, 0.97)],
)
def test_index_in_parts_finds_what_the_exact_search_finds_wherever_it_lies(
    run: Plan, tmp_path: Path, to: str, index: str | None, n_files: int, least: float
) -> None:
    out = tmp_path / "an [export]"
    export = in_parts(open_source(run), to, out, index=index)
    assert len(list(out.iterdir())) == n_files
    first = searched(export.how_to_read(), tmp_path, 10_000)
    assert recall(first) >= least
    moved = tmp_path / "elsewhere"
    out.rename(moved)
    other = tmp_path / "cwd"
    other.mkdir()
    again = Export(to=to, out=moved).how_to_read()
    assert str(moved) in again and searched(again, other, 10_000) == first
    note = json.loads((moved / "export.json").read_text())
    assert searched(note["read"], moved, 10_000) == first


def test_faiss_in_parts_is_the_index_made_at_once(run: Plan, tmp_path: Path) -> None:
    faiss: Any = pytest.importorskip("faiss")

    in_parts(open_source(run), "faiss", tmp_path / "parts", index="ivf")
    in_parts(open_source(run), "faiss", tmp_path / "whole", index="ivf", part_bytes=10**9)
    whole = faiss.read_index(str(tmp_path / "whole" / "index.faiss"))
    parts = faiss.read_index(str(tmp_path / "parts" / "index.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    assert not (tmp_path / "whole" / "index.ivfdata").exists()
    assert (parts.ntotal, parts.nlist) == (whole.ntotal, whole.nlist)
    for n_probe in (1, 5):
        parts.nprobe = whole.nprobe = n_probe
        for ours, theirs in zip(parts.search(UNIT, 3), whole.search(UNIT, 3), strict=True):
            assert np.array_equal(ours, theirs)


def test_faiss_of_bits_in_parts_finds_equal_bits(bits: Plan, tmp_path: Path) -> None:
    import faiss

    out = tmp_path / "b"
    options = {"index": "ivf", "metric": "hamming", "part_bytes": 5000}
    export = in_parts(open_source(bits), "faiss", out, **options)
    assert (out / "index.ivfdata").exists() and "read_index_binary" in export.how_to_read()
    index = faiss.read_index_binary(str(out / "index.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    distances, _ = index.search(np.packbits(VECTORS[:50] > 0, axis=1), 1)
    assert index.ntotal == ROWS and not distances.any()


def test_usearch_parts_are_opened_one_by_one_too(run: Plan, tmp_path: Path) -> None:
    from usearch.index import Index

    in_parts(open_source(run), "usearch", tmp_path / "u")
    files = sorted((tmp_path / "u").glob("index-*.usearch"))
    keys = [key for file in files for key in sorted(Index.restore(str(file)).keys)]  # type: ignore[union-attr]
    assert len(files) == 20 and keys == list(range(ROWS))


@pytest.mark.parametrize(("to", "index"), [("faiss", "ivf"), ("usearch", None)])
def test_index_in_parts_that_is_killed_leaves_nothing_half_written(
    run: Plan, tmp_path: Path, to: str, index: str | None
) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from chatspace.api import open_run\n"
        "from chatspace.export.formats import Export\n"
        "from chatspace.export.source import VectorSource, open_source\n"
        "whole = open_source(open_run(sys.argv[1]).plan)\n"
        "seen = []\n"
        "def read(shard, columns, batch_rows):\n"
        "    seen.append(shard)\n"
        "    if 'id' in columns and shard == whole.shards[-1]: os._exit(9)\n"
        "    yield from whole.read(shard, columns, batch_rows)\n"
        "source = VectorSource(plan=whole.plan, shards=whole.shards, schema=whole.schema,"
        " read=read)\n"
        f"Export(to={to!r}, out=Path(sys.argv[2]), index={index!r},"
        f" part_bytes={PART_BYTES}).write(source)\n"
    )
    out = tmp_path / "out"
    folder = str(Path(run.workspace) / "runs" / run.run_id)
    words = [sys.executable, "-c", code, folder, str(out)]
    assert subprocess.run(words, timeout=60).returncode == 9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.") and os.listdir(tmp_path / left)
    in_parts(open_source(run), to, out, index=index)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("index", ["hnsw", "HNSW16,SQ8", "IVF8,Flat,RFlat"])
def test_faiss_index_larger_than_memory_is_refused(run: Plan, tmp_path: Path, index: str) -> None:
    with pytest.raises(UnfitEnvironmentError) as error:
        in_parts(open_source(run), "faiss", tmp_path / "f", index=index, free_bytes=10_000)
    line = str(error.value)
    assert line.startswith(f"Too little memory: --index {index} takes about 0.0 GB for 3,000 rows")
    assert "--index ivf" in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []
    in_parts(open_source(run), "faiss", tmp_path / "f", index=index, free_bytes=10_000_000)


def test_available_bytes_is_the_least_of_machine_and_cgroups(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    assert available_bytes(proc, mount) == 8000 * 1024
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    step = mount / "job" / "step"
    step.mkdir(parents=True)
    (step / "memory.max").write_text("max\n")
    (step / "memory.current").write_text("100\n")
    assert available_bytes(proc, mount) == 8000 * 1024
    (step.parent / "memory.max").write_text("1000\n")
    (step.parent / "memory.current").write_text("700\n")
    (step.parent / "memory.stat").write_text("anon 300\ninactive_file 400\n")
    assert available_bytes(proc, mount) == 700


def test_available_bytes_reads_cgroups_of_version_1(tmp_path: Path) -> None:
    proc, folder = tmp_path / "proc", tmp_path / "cgroup" / "memory"
    (proc / "self").mkdir(parents=True)
    folder.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/slurm/job_1\n")
    (folder / "memory.limit_in_bytes").write_text("5000\n")
    (folder / "memory.usage_in_bytes").write_text("2000\n")
    assert available_bytes(proc, tmp_path / "cgroup") == 3000
    assert available_bytes(tmp_path / "nowhere", tmp_path / "cgroup") is None


def test_available_bytes_here_is_some() -> None:
    assert (available_bytes() or 0) > 2**20
