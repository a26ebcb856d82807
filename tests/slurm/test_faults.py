"""A few of the faults of ``make faults``, through the same program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.slurm.cluster import NEWER_SLURM

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]
PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"
KINDS = ("worker-killed", "preemption", "disk-full", "two-repairs")
SIZE = ("--tasks", "4", "--rows-per-task", "200")
COUNTED = ("rows lost", "rows twice", "vectors different", "files different")


def table(text: str) -> dict[str, dict[str, str]]:
    """Returns the cells of a printed table, by first cell and heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    headings, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_faults_on_the_newer_slurm_lose_no_row_and_change_no_vector() -> None:
    if os.geteuid() != 0 or not NEWER_SLURM.exists():
        absent("needs root, and the SLURM that hpc/install-test-system fetches")
    words = ["--slurm", "newer", "--only", ",".join(KINDS), "--rounds", "1", *SIZE]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=1450
    )
    assert done.returncode == 0, done.stderr + done.stdout
    rows = table(done.stdout)
    assert tuple(rows) == KINDS
    for name, cells in rows.items():
        assert int(cells["times injected"]) >= 1, name
        assert [cells[heading] for heading in COUNTED] == ["0"] * len(COUNTED), name
