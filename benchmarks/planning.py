"""How long it takes to choose and slice the rows of a large split, and how much memory.

    python benchmarks/planning.py [--rows 1000000000] [--quick]

The inventory is simulated: files of a million rows each, in ten row groups, as reading their
footers gives it. Each line is measured in a process of its own, which runs the code that planning
runs: the choice of the rows, its list on disk, the bytes of text of each shard, the slices. Reading
the footers themselves is not in it, nor is DuckDB's pass over the columns of a `where`.

Three lines read columns as planning does: text within row groups and strata from one file that
stands for each, and ids, a tenth as many as rows, from files written before the clock runs.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import hardware, print_table

from chatspace.data.choosing import choose_rows
from chatspace.data.inputs import InputFile
from chatspace.data.inventory import check_unique_ids
from chatspace.data.lengths import with_text_steps
from chatspace.plan.slicing import make_slices, shard_text_bytes
from chatspace.spec.dataset import DatasetSection

FILE_ROWS = 1_000_000
GROUPS = 10
ROWS_PER_SHARD = 8192
SLICES = 256
QUICK_ROWS = 2_000_000
N_STRATA = 1000
TEXT_BYTES = 100
# Ids take minutes a billion, so there is one for so many rows.
ID_SHARE = 10
TIMEOUT_S = 1200
CASES: dict[str, dict[str, Any]] = {
    "all rows": {},
    "all rows, row groups read": {},
    "all rows, id_field": {"id_field": "id"},
    "skip_rows, max_rows": {"skip_rows": 12_345, "max_rows": 500_000_000},
    "sample n = 10,000,000": {"sample": {"n": 10_000_000}},
    "sample fraction = 0.5": {"sample": {"fraction": 0.5}},
    "sample, 1,000 strata": {"sample": {"fraction": 0.5, "stratify_by": "stratum"}},
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
            text_bytes=tuple(n * (TEXT_BYTES + index) for n in group_rows),
        )
        for index in range(n_files)
    ]


def written(case: str, files: Sequence[InputFile], folder: Path) -> list[InputFile]:
    """Returns the files with what a case reads of them on disk."""
    rows = np.arange(files[0].row_groups[0])
    if case == "all rows, row groups read":
        texts = pa.array([f"{row:0{TEXT_BYTES}d}" for row in rows.tolist()])
        return _one_for_all(files, pa.table({"text": texts}), folder)
    if case == "sample, 1,000 strata":
        names = pa.array([f"stratum {n}" for n in range(N_STRATA)])
        column = pa.DictionaryArray.from_arrays(pa.array(rows % N_STRATA, pa.int32()), names)
        return _one_for_all(files, pa.table({"stratum": column.cast(pa.string())}), folder)
    if case != "all rows, id_field":
        return list(files)
    found = []
    for index, file in enumerate(files):
        ids = pa.table({"id": np.arange(file.rows) + index * file.rows})
        path = folder / f"{index}.parquet"
        encoding = {"use_dictionary": False, "column_encoding": "DELTA_BINARY_PACKED"}
        pq.write_table(ids, path, **encoding)
        found.append(replace(file, path=str(path)))
    return found


def _one_for_all(files: Sequence[InputFile], table: pa.Table, folder: Path) -> list[InputFile]:
    path = folder / "every.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(GROUPS):
            writer.write_table(table)
    return [replace(file, path=str(path), text_bytes=files[0].text_bytes) for file in files]


def measure(case: str, rows: int) -> dict[str, Any]:
    """Returns seconds, peak memory and what came out of one case, in this process."""
    dataset = DatasetSection.model_validate({"source": "parquet", "path": "x", **CASES[case]})
    if dataset.id_field is not None:
        rows //= ID_SHARE
    with tempfile.TemporaryDirectory(prefix="chatspace-planning-") as name:
        inputs, root = Path(name) / "inputs", Path(name) / "workspace"
        inputs.mkdir()
        files = written(case, inventory_of(rows), inputs)
        start, cpu_start = time.perf_counter(), time.process_time()
        n_rows, selected = choose_rows(files, dataset, workspace=root, folder=root / "lists")
        if case == "all rows, row groups read":
            files = with_text_steps(files, dataset, ROWS_PER_SHARD, selected=selected)
        weights = shard_text_bytes(files, n_rows, ROWS_PER_SHARD, selected)
        slices = make_slices(weights, min(SLICES, len(weights)))
        if dataset.id_field is not None:
            check_unique_ids(files, dataset.id_field, n_rows, scratch=root / "cache")
        elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        list_bytes = sum(path.stat().st_size for path in root.glob("lists/*"))
    return {
        "rows": n_rows,
        "slices": len(slices),
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_s,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        "list_mb": list_bytes / 1e6,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000_000)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--case", choices=CASES, help="measure one case and print it as JSON")
    args = parser.parse_args(words)
    rows = QUICK_ROWS if args.quick else args.rows
    if args.case:
        print(json.dumps(measure(args.case, rows)))
        return
    print("\n".join(hardware()))
    print(f"\n{rows:,} rows in {max(1, rows // FILE_ROWS):,} files\n")
    lines = []
    for case in CASES:
        lines.append(_line(case, rows))
        print(*lines[-1], sep="  ", file=sys.stderr, flush=True)
    names = ["rows that are read", "rows", "slices", "s", "CPU s", "peak GB", "list of rows, MB"]
    print_table(names, lines)


def _line(case: str, rows: int) -> list[object]:
    """Returns a line of the table, measured in a process of its own."""
    command = [sys.executable, __file__, "--rows", str(rows), "--case", case]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT_S)
    found = json.loads(done.stdout)
    return [
        case,
        f"{found['rows']:,}",
        found["slices"],
        f"{found['elapsed_s']:.1f}",
        f"{found['cpu_s']:.1f}",
        f"{found['peak_gb']:.2f}",
        f"{found['list_mb']:.0f}",
    ]


if __name__ == "__main__":
    main()
