import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.timeout(240)
def test_status_prints_a_row_for_each_command_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sizes = ["--tasks", "40", "--shards", "120", "--repeats", "1"]
    command = [sys.executable, str(BENCHMARKS / "status.py"), *sizes]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=230)
    assert answer.returncode == 0, answer.stderr
    first, _, heading, _, *rows = answer.stdout.splitlines()
    assert first == "40 tasks, 120 shards; median and range of 1 calls"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert heading.count("|") == len(cells[0]) + 1
    assert [row[0] for row in cells] == [
        "status RUN",
        "status RUN --json",
        "status RUN, SLURM silent",
        "status (all runs)",
        "version (start of Python)",
    ]
    assert all(float(cell) > 0 for row in cells for cell in row[1:])
    assert list(tmp_path.iterdir()) == []
