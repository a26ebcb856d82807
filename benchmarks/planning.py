"""How long it takes to choose and slice the rows of a large split, and how much memory.

    python benchmarks/planning.py [--rows 1000000000]

The inventory is simulated: files of a million rows each, in ten row groups, as reading their
footers gives it. Each line is measured in a process of its own, which runs the code that planning
runs: the choice of the rows, its list on disk, the bytes of text of each shard, the slices. Reading
the footers themselves is not in it, nor is DuckDB's pass over the columns of a `where`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatspace.data.choosing import choose_rows
from chatspace.data.inputs import InputFile
from chatspace.plan.slicing import make_slices, shard_text_bytes
from chatspace.spec.dataset import DatasetSection

FILE_ROWS = 1_000_000
GROUPS = 10
ROWS_PER_SHARD = 8192
SLICES = 256
TIMEOUT_S = 1200
CASES: dict[str, dict[str, Any]] = {
    "all rows": {},
    "skip_rows, max_rows": {"skip_rows": 12_345, "max_rows": 500_000_000},
    "sample n = 10,000,000": {"sample": {"n": 10_000_000}},
    "sample fraction = 0.5": {"sample": {"fraction": 0.5}},
}


def inventory_of(rows: int) -> list[InputFile]:
    """Returns files as footers describe them; text grows longer toward the end of the split."""
    n_files = max(1, rows // FILE_ROWS)
    group_rows = (min(rows, FILE_ROWS) // GROUPS,) * GROUPS
    return [
        InputFile(
            path=f"/data/part-{index:05d}.parquet",
            bytes=group_rows[0] * GROUPS * 300,
            mtime_ns=1,
            rows=group_rows[0] * GROUPS,
            row_groups=group_rows,
            text_bytes=tuple(n * (100 + index) for n in group_rows),
        )
        for index in range(n_files)
    ]


def measure(case: str, rows: int) -> dict[str, Any]:
    """Returns seconds, peak memory and what came out of one case, in this process."""
    files = inventory_of(rows)
    dataset = DatasetSection.model_validate({"source": "parquet", "path": "x", **CASES[case]})
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        root = Path(folder)
        n_rows, selected = choose_rows(files, dataset, workspace=root, folder=root)
        weights = shard_text_bytes(files, n_rows, ROWS_PER_SHARD, selected)
        slices = make_slices(weights, min(SLICES, len(weights)))
        elapsed_s = time.perf_counter() - start
        list_bytes = sum(path.stat().st_size for path in root.iterdir())
    return {
        "rows": n_rows,
        "slices": len(slices),
        "elapsed_s": elapsed_s,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        "list_mb": list_bytes / 1e6,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000_000)
    parser.add_argument("--case", choices=CASES, help="measure one case and print it as JSON")
    args = parser.parse_args(words)
    if args.case:
        print(json.dumps(measure(args.case, args.rows)))
        return
    print(f"{args.rows:,} rows in {max(1, args.rows // FILE_ROWS):,} files\n")
    print("| rows that are read | rows | slices | seconds | peak memory, GB | list of rows, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for case in CASES:
        command = [sys.executable, __file__, "--rows", str(args.rows), "--case", case]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
        found = json.loads(done.stdout)
        print(
            f"| {case} | {found['rows']:,} | {found['slices']} | {found['elapsed_s']:.1f} "
            f"| {found['peak_gb']:.2f} | {found['list_mb']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
