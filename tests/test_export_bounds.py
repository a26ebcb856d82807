"""Memory of streaming exports: that of a few blocks, however many rows there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROWS_PER_SHARD, DIM = 50_000, 64
# Exports one shard again and again, and prints the most memory that it had of its own, in bytes;
# pages of files that are mapped belong to the system.
CHILD = """
import sys, threading
from dataclasses import replace
from pathlib import Path
from chatspace.export.formats import Export
from chatspace.export.source import open_source
from tests.vector_runs import random_vectors, vector_run

def memory():
    words = Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()
    return 1024 * int(words[0])

folder, to, rows, shard_rows, dim = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
plan = vector_run(folder, random_vectors(shard_rows, dim), rows_per_shard=shard_rows)
one = open_source(plan)
source = replace(one, shards=one.shards * (rows // shard_rows))
Export(to=to, out=folder / "warm").write(one)
peak, done = memory(), threading.Event()

def look():
    global peak
    while not done.wait(0.01):
        peak = max(peak, memory())

thread = threading.Thread(target=look)
thread.start()
Export(to=to, out=folder / "out").write(source)
done.set()
thread.join()
print(source.rows, peak)
"""


@pytest.mark.parametrize("to", ["numpy", "faiss"])
def test_export_of_ten_times_the_rows_takes_no_more_memory(tmp_path: Path, to: str) -> None:
    peaks = []
    for rows in (4 * ROWS_PER_SHARD, 40 * ROWS_PER_SHARD):
        numbers = map(str, (rows, ROWS_PER_SHARD, DIM))
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path / str(rows)), to, *numbers],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        exported, peak = map(int, done.stdout.split())
        assert exported == rows
        peaks.append(peak)
    more_data = 36 * ROWS_PER_SHARD * DIM * 4  # 461 MB
    assert peaks[1] - peaks[0] < more_data / 4
