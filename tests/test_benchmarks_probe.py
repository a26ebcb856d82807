"""The benchmark of predictions prints what was predicted beside what came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_probe_quick_prints_prediction_and_outcome_of_each_figure() -> None:
    done = subprocess.run(
        [sys.executable, "probe.py", "--quick"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    found = {name: (predicted, came, ratio) for name, predicted, came, ratio, _ in cells}
    assert found["rows"] == ("120", "120", "1.00")
    assert {"tokens_per_s", "slowest_task_s", "output_bytes", "mem_gb"} <= found.keys()
    for name, (predicted, came, _) in found.items():
        assert float(predicted.replace(",", "")) > 0, name
        assert float(came.replace(",", "")) > 0, name
