"""The benchmark of exports runs and says what it should; how fast anything is, no test asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from chatspace.layout import Layout
from tests.vector_runs import random_vectors, vector_run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "export.py", *words],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(text: str) -> list[list[str]]:
    table = text[text.index("\n| ") :].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_export_prints_a_line_for_each_target() -> None:
    sizes = ["--rows", "9000", "--exact-rows", "9000"]
    heading, _, numpy, found = cells(benchmark(*sizes, "--only", "numpy,duplicates --approximate"))
    assert heading[:4] == ["target", "rows", "s", "rows/s"]
    assert numpy[:2] == ["numpy", "16,384"] and float(numpy[6]) > 25
    assert found[-1] == "82 pairs, 100.0% of a sample's"


def test_export_of_a_run_prints_what_each_dtype_keeps(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(300, 64))
    _, _, *rows = cells(benchmark("--run", str(Layout(tmp_path).run(plan.run_id).folder)))
    assert [row[:2] for row in rows] == [
        ["float32", "256"],
        ["float16", "128"],
        ["int8", "68"],
        ["binary", "8"],
    ]
    assert rows[0][2:] == ["1.00000", "100.0%"] and float(rows[2][2]) > 0.999
