"""Nodes on which tasks failed for a reason that may be the node's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.jobs.causes import cause_of_exit
from chatspace.jobs.events import read_events
from chatspace.layout import Layout
from chatspace.plan.model import Plan

# Not a bug, a wrong spec or too little memory: these fail on one node after another.
NODE_CAUSES = frozenset(["node", "environment", "killed", "crash"])
FAILURES_OF_A_BAD_NODE = 2
_LANE = re.compile(r"\.lane\d+$")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An execution on a node of SLURM, and why it failed, None where it did not."""

    name: str
    node: str
    cause: str | None


def failed_nodes(plan: Plan) -> list[str]:
    """Returns the nodes on which two or more attempts failed and others, elsewhere, did not.

    A cause that more than half of the run's nodes share is not the fault of one of them.
    """
    logs = Layout(Path(plan.workspace)).run(plan.run_id).events.glob("*.jsonl")
    attempts = {attempt for path in logs for attempt in _attempts(read_events(path)[0])}
    n_nodes = len({attempt.node for attempt in attempts})
    failures = {a for a in attempts if a.cause in NODE_CAUSES}
    nodes_of_cause = Counter(cause for cause, _ in {(a.cause, a.node) for a in failures})
    counts = Counter(
        node
        for _, node in {
            (a.name, a.node) for a in failures if nodes_of_cause[a.cause] <= max(1, n_nodes // 2)
        }
    )
    return sorted(node for node, n in counts.items() if n >= FAILURES_OF_A_BAD_NODE)


def _attempts(events: Sequence[dict[str, Any]]) -> Iterator[_Attempt]:
    """Yields the executions that one event log tells of; those off SLURM are no one's node."""
    node, told = "", False
    for event in events:
        name = _LANE.sub("", str(event.get("attempt", "")))
        match event:
            case {"event": "started"}:
                node, told = str(event.get("slurm", {}).get("node") or ""), False
                if node:
                    yield _Attempt(name, node, None)
            case {"event": "failed", "cause": str(cause)}:
                told = True
                if node:
                    yield _Attempt(name, node, cause)
            case {"event": "ended", "host": str(host), "exit_code": int(code)} if not told:
                yield _Attempt(name, host, cause_of_exit(code, event.get("oom_kills", 0)))
