"""How even array tasks are: slices balanced by rows beside slices balanced by bytes of text.

    python benchmarks/slices.py [--tasks 16] [--tokens 300000] [--encode] [--quick]

The corpus is what collections are: chat-like rows, passages and long documents one after the other
in one split, each with a heavy tail; and the same rows shuffled. A task's work is the real tokens
of its rows, counted by the model's tokenizer; with `--encode` also the seconds that its encoder was
busy, the tasks run one after the other. A run ends when its slowest task does: slowest over mean is
what balance costs, in time and in GPU-hours that wait. The corpus is written in small row groups,
whose sizes the footer tells, and in one for all of it, as pyarrow does up to a million rows, in
which planning has to look. The last line of each corpus is the best that whole shards allow:
balanced by the tokens themselves, which nobody knows before they are counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpora import LIMIT, SHAPES, Count, corpus
from minilm import prepared_model, token_count
from report import hardware, print_table, versions

from chatspace.jobs.local import slices_of
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan, Slice
from chatspace.plan.slicing import Ints, make_slices
from chatspace.shards.task_manifest import read_task_manifest
from chatspace.spec.loading import spec_from_mapping

ROWS_PER_SHARD = 25
# Rows in a row group, None for as many as pyarrow takes; by rows is the same in both.
WAYS = ((200, "rows"), (200, "bytes"), (None, "bytes"))
QUICK_TOKENS = 60_000


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=300_000, help="of each of the three kinds")
    parser.add_argument("--encode", action="store_true", help="run the tasks, too")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TOKENS:,} tokens of a kind")
    args = parser.parse_args()
    if args.quick:
        args.tokens = QUICK_TOKENS
    print("\n".join(hardware()))
    print(f"- Versions: {versions('chatspace', 'torch', 'transformers', 'pyarrow')}\n")
    with tempfile.TemporaryDirectory(prefix="chatspace-slices-") as name:
        folder = Path(name)
        model = prepared_model(folder)
        count = token_count(model)
        kinds = [corpus(shape, n_tokens=args.tokens, count=count) for shape in SHAPES]
        rows = [text for kind in kinds for text in kind]
        mixed = random.Random(0).sample(rows, len(rows))
        lines = [
            line
            for order, texts in (("one kind after the other", rows), ("shuffled", mixed))
            for line in measure(
                folder / order.replace(" ", "-"), (order, texts), (model, count), args
            )
        ]
    print(f"{len(rows):,} rows, {args.tasks} tasks, {ROWS_PER_SHARD} rows in a shard\n")
    names = ["corpus", "row groups of", "balanced by", "mean tokens", "slowest", "x"]
    print_table([*names, *(["mean s", "slowest s", "x s"] if args.encode else [])], lines)


def measure(
    folder: Path,
    corpus_: tuple[str, Sequence[str]],
    model: tuple[Path, Count],
    args: argparse.Namespace,
) -> list[list[object]]:
    """Returns a line of the table for each way to balance one corpus."""
    order, texts = corpus_
    path, count = model
    lengths = [min(count(text), LIMIT) for text in texts]
    lines: list[list[object]] = []
    for group_rows, balance in WAYS:
        data = folder / f"{balance}-{group_rows}"
        data.mkdir(parents=True)
        table = pa.table({"text": list(texts)})
        pq.write_table(table, data / "train.parquet", row_group_size=group_rows)
        plan = plan_of(data, path, balance, args.tasks)
        (split,) = plan.splits
        work = np.array([sum(lengths[s.row_start : s.row_stop]) for s in split.spans()])
        cells = _cells(task_work(work, split.slices), 0)
        if args.encode:
            cells += _cells(busy_seconds(plan), 1)
        lines.append([order, f"{group_rows or len(texts):,}", balance, *cells])
    best = task_work(work, make_slices(work, args.tasks))
    nothing = ["", "", ""] if args.encode else []
    return [*lines, [order, "", "(tokens)", *_cells(best, 0), *nothing]]


def plan_of(folder: Path, model: Path, balance: str, tasks: int) -> Plan:
    """Returns the run, set up in a workspace of its own."""
    values = {
        "kind": "embed",
        "name": balance,
        "workspace": str(folder / "workspace"),
        "dataset": {"source": "parquet", "path": str(folder)},
        "model": {"name": str(model), "device": "cpu"},
        "output": {"rows_per_shard": ROWS_PER_SHARD},
        "slices": {"count": tasks, "balance": balance},
    }
    return set_up(spec_from_mapping(values, "benchmark")).plan


def task_work(work: Ints, slices: Sequence[Slice]) -> list[float]:
    """Returns the work of each slice, given that of each shard."""
    return [float(work[s.shard_start : s.shard_stop].sum()) for s in slices]


def busy_seconds(plan: Plan) -> list[float]:
    """Runs every task and returns how long the encoder of each was busy."""
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    for split, slice_ in slices_of(plan):
        run_task(run.plan, split.name, slice_.index, of=len(split.slices))
    manifests = [read_task_manifest(path) for path in sorted(run.tasks.glob("*.json"))]
    assert all(manifest is not None for manifest in manifests)
    return [
        sum(attempt["stages"]["encoder"]["busy_s"] for attempt in manifest.attempts)
        for manifest in manifests
        if manifest is not None
    ]


def _cells(work: Sequence[float], digits: int) -> list[object]:
    mean, slowest = statistics.mean(work), max(work)
    return [f"{mean:,.{digits}f}", f"{slowest:,.{digits}f}", f"{slowest / mean:.2f}"]


if __name__ == "__main__":
    main()
