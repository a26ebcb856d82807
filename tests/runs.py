"""Runs made by hand, for tests of what looks at them: shards, event logs, a scheduler."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chatspace.layout import Layout, RunLayout
from chatspace.plan.model import Plan, SplitPlan


class FakeScheduler:
    """Knows the states of elements, and keeps what it was asked for."""

    def __init__(self, states: dict[str, str]) -> None:
        self.asked: list[list[str]] = []
        self._states = states

    def check(self, script: str) -> None:
        raise AssertionError("who looks checks nothing")

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        raise AssertionError("who looks submits nothing")

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(job_ids))
        return {e: s for e, s in self._states.items() if e.partition("_")[0] in job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise AssertionError("who looks cancels nothing")


def layout_of(plan: Plan) -> RunLayout:
    return Layout(Path(plan.workspace)).run(plan.run_id)


def put_shards(plan: Plan, split: SplitPlan, indexes: Iterable[int]) -> None:
    """Makes empty files with the names of shards."""
    folder = Path(plan.workspace) / split.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for index in indexes:
        (folder / split.span(index).file_name).touch()


def publish(plan: Plan, split: SplitPlan, plan_sha256: str | None = None) -> None:
    """Writes a manifest, as far as status reads it."""
    path = Path(plan.workspace) / split.manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"plan_sha256": plan_sha256 or plan.plan_sha256}))


def log_events(
    plan: Plan, split: str, task: int | str, *events: dict[str, Any] | str, age_s: float = 0.0
) -> Path:
    """Writes an event log; an event without a time happened `age_s` seconds ago."""
    path = layout_of(plan).event_log(split, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    time = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    lines = [e if isinstance(e, str) else json.dumps({"time": time, **e}) for e in events]
    path.write_text("\n".join(lines) + ("\n" if lines and isinstance(events[-1], dict) else ""))
    return path


def started(attempt: str, **facts: Any) -> dict[str, Any]:
    return {"event": "started", "attempt": attempt, **facts}


def progress(attempt: str, elapsed_s: float, rows: int, stage: str = "embedding") -> dict[str, Any]:
    return {
        "event": "progress",
        "attempt": attempt,
        "elapsed_s": elapsed_s,
        "rows": rows,
        "n_tokens": 100 * rows,
        "n_padded_tokens": 100 * rows,
        "stage": stage,
    }
