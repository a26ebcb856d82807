"""Task manifests: what one array task wrote, brought up to date after every shard by a rename."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from chatspace.atomic import atomic_write_text
from chatspace.shards.records import Owner, ShardRecord

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RUNNING = "running"


@dataclass(slots=True, kw_only=True)
class TaskManifest:
    """One slice: its executions, and the shards that they wrote.

    Attributes:
        attempts: one entry an execution: name, host, SLURM ids, times, state, stage timings,
            runtime.
        shards: records by shard index.
    """

    path: Path
    owner: Owner
    shard_start: int
    shard_stop: int
    attempts: list[dict[str, Any]] = field(default_factory=list)
    shards: dict[int, ShardRecord] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, owner: Owner, shard_start: int, shard_stop: int) -> TaskManifest:
        """Returns the slice's manifest with what earlier executions recorded, if it can be read."""
        manifest = cls(path=path, owner=owner, shard_start=shard_start, shard_stop=shard_stop)
        manifest._take_in()
        return manifest

    def record(self, shard: ShardRecord) -> None:
        """Adds a shard and writes the manifest."""
        self.shards[shard.shard_index] = shard
        self.write()

    def write(self) -> None:
        """Writes the manifest by rename, with what another execution of the slice has put into it.

        Two executions at once keep each other's records but for a write within the same instant;
        what is lost then is lost to the provenance only, for the shards speak for themselves.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._take_in()
        content = {
            "schema_version": SCHEMA_VERSION,
            "plan_sha256": self.owner.plan_sha256,
            "run_id": self.owner.run_id,
            "split": self.owner.split,
            "shard_start": self.shard_start,
            "shard_stop": self.shard_stop,
            "attempts": self.attempts,
            "shards": [asdict(self.shards[index]) for index in sorted(self.shards)],
        }
        atomic_write_text(self.path, json.dumps(content, indent=1) + "\n")

    def _take_in(self) -> None:
        """Adds what the file says and this execution does not know."""
        there = read_task_manifest(self.path)
        if there is None or there.owner != self.owner:
            return
        known = {_identity(attempt): attempt for attempt in self.attempts}
        unknown = [attempt for attempt in there.attempts if _identity(attempt) not in known]
        for attempt in there.attempts:
            if known.get(_identity(attempt), {}).get("state") == RUNNING:
                known[_identity(attempt)].update(attempt)  # it may have ended since
        self.attempts[:0] = unknown
        self.shards = {**there.shards, **self.shards}


@dataclass(slots=True, kw_only=True)
class _Content:
    """What stands in the file."""

    plan_sha256: str
    run_id: str
    split: str
    shard_start: int
    shard_stop: int
    attempts: list[dict[str, Any]]
    shards: list[ShardRecord]


_ADAPTER: TypeAdapter[_Content] = TypeAdapter(_Content)


def read_task_manifest(path: Path) -> TaskManifest | None:
    """Returns a task manifest, None if it is absent or damaged; a damaged one is logged.

    Nothing is lost with a damaged manifest: the shards speak for themselves.
    """
    try:
        content = _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("damaged task manifest path=%s error=%s", path, str(error).splitlines()[0])
        return None
    return TaskManifest(
        path=path,
        owner=Owner(plan_sha256=content.plan_sha256, run_id=content.run_id, split=content.split),
        shard_start=content.shard_start,
        shard_stop=content.shard_stop,
        attempts=content.attempts,
        shards={shard.shard_index: shard for shard in content.shards},
    )


def _identity(attempt: dict[str, Any]) -> tuple[Any, Any]:
    return attempt.get("attempt"), attempt.get("started_at")
