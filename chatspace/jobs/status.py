"""Status of a run: what is on disk, what the event logs say, and what SLURM says of its jobs.

Asks SLURM at most two questions, whatever the number of tasks, and none where nothing was submitted
to it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatspace.jobs.gather import read_manifest
from chatspace.jobs.local import rows_done, slices_of
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.submissions import read_submissions, slurm_ids
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.gather import count_shards

if TYPE_CHECKING:
    from rich.console import RenderableType

TAIL_BYTES = 8192
READ_THREADS = 16
READ_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStatus:
    """How far one split is.

    Attributes:
        rows_done: input rows of the shards that are on disk.
        manifest: path of the published manifest, None before the gather.
    """

    split: str
    shards: int
    shards_done: int
    rows: int
    rows_done: int
    slices: int
    slices_done: int
    manifest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is.

    Attributes:
        jobs: number of elements of all submitted jobs by SLURM state, the gather job counted;
            empty where nothing was submitted to SLURM.
        tasks: number of slices by their last event.
        failures: last error of each slice whose last execution failed.
    """

    run_id: str
    state: str
    splits: tuple[SplitStatus, ...]
    jobs: dict[str, int]
    tasks: dict[str, int]
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


def run_status(plan: Plan, *, scheduler: Scheduler | None = None) -> RunStatus:
    """Looks at a run.

    Args:
        plan: the run.
        scheduler: asked for the states of submitted jobs [SLURM].
    """
    splits = _splits(plan)
    ids = slurm_ids(read_submissions(plan))
    jobs = Counter((scheduler or SlurmScheduler()).states(ids).values()) if ids else Counter()
    last = _last_events(plan)
    failures = {
        label: str(event.get("error", "no message"))
        for label, event in last.items()
        if event["event"] == "failed"
    }
    return RunStatus(
        run_id=plan.run_id,
        state=_state(splits, failures),
        splits=splits,
        jobs=dict(jobs),
        tasks=dict(Counter(_task_state(event) for event in last.values())),
        failures=failures,
    )


def render_status(status: RunStatus) -> RenderableType:
    """Returns a table for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("split", "shards", "rows", "slices", "gathered"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split in status.splits:
        table.add_row(
            split.split,
            f"{split.shards_done:,}/{split.shards:,}",
            f"{split.rows_done:,}/{split.rows:,}",
            f"{split.slices_done:,}/{split.slices:,}",
            "yes" if split.manifest else "no",
        )
    lines = [Text(f"{status.run_id}: {status.state}", style="bold")]
    for name, counts in (("jobs", status.jobs), ("tasks", status.tasks)):
        if counts:
            states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
            lines.append(Text(f"{name}: {states}"))
    lines += [Text(line, "red") for line in _grouped(status.failures)]
    lines += [Text(f"manifest: {s.manifest}") for s in status.splits if s.manifest]
    return Group(lines[0], table, *lines[1:])


def _grouped(failures: dict[str, str]) -> list[str]:
    """Returns a line for each kind of failure, with one slice as the example."""
    examples: dict[str, str] = {}
    for label, error in failures.items():
        examples.setdefault(error, label)
    lines = []
    for error, label in examples.items():
        n_slices = sum(other == error for other in failures.values())
        several = f"{n_slices} slices, such as " if n_slices > 1 else ""
        lines.append(f"failed: {several}{label}: {error}")
    return lines


def _splits(plan: Plan) -> tuple[SplitStatus, ...]:
    done = rows_done(plan)
    workspace = Path(plan.workspace)
    found: list[SplitStatus] = []
    position = 0
    for split in plan.splits:
        by_slice = [done[position + i] for i in range(len(split.slices))]
        position += len(split.slices)
        wanted = [sum(span.n_rows for span in split.spans(slice_)) for slice_ in split.slices]
        has_manifest = read_manifest(plan, split) is not None
        found.append(
            SplitStatus(
                split=split.name,
                shards=split.n_shards,
                shards_done=count_shards(workspace / split.output_dir, split.n_shards),
                rows=split.rows,
                rows_done=sum(by_slice),
                slices=len(split.slices),
                slices_done=sum(a == b for a, b in zip(by_slice, wanted, strict=True)),
                manifest=str(workspace / split.manifest) if has_manifest else None,
            )
        )
    return tuple(found)


def _last_events(plan: Plan) -> dict[str, dict[str, Any]]:
    """Returns the last event of each slice that ever ran, read from the ends of the logs."""
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    labels = [(split.name, slice_.index) for split, slice_ in slices_of(plan)]
    paths = [run.event_log(split, index) for split, index in labels]
    parts = [paths[first : first + READ_AT_ONCE] for first in range(0, len(paths), READ_AT_ONCE)]
    with ThreadPoolExecutor(READ_THREADS) as pool:  # what costs is a network file system's latency
        events = chain.from_iterable(pool.map(_last_events_of, parts))
    return {
        f"{split} {index}": event
        for (split, index), event in zip(labels, events, strict=True)
        if event is not None
    }


def _last_events_of(paths: Sequence[Path]) -> list[dict[str, Any] | None]:
    return [_last_event(path) for path in paths]


def _last_event(path: Path) -> dict[str, Any] | None:
    """Returns the last whole event of a log; what a killed task cut short is passed over."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return None


def _task_state(event: dict[str, Any]) -> str:
    return event["event"] if event["event"] in ("finished", "failed", "interrupted") else "started"


def _state(splits: tuple[SplitStatus, ...], failures: dict[str, str]) -> str:
    is_whole = all(split.shards_done == split.shards for split in splits)
    is_gathered = all(split.manifest for split in splits)
    if is_whole:
        return "complete" if is_gathered else "all shards written, not gathered"
    if is_gathered:
        return "gathered once, but shards are gone"
    if failures:
        return "incomplete, with failed slices"
    return "incomplete"
