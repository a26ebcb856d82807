"""Task manifests: what one array task wrote, kept up to date after every shard by an atomic rename."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatspace.atomic import atomic_write_text
from chatspace.shards.records import Owner, ShardRecord

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class TaskManifest:
    """One slice: its executions, and the shards that they wrote.

    Attributes:
        attempts: one entry an execution: name, host, SLURM ids, times, state, stage timings, runtime.
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
        earlier = read_task_manifest(path)
        if earlier is not None and earlier.owner == owner:
            manifest.attempts, manifest.shards = earlier.attempts, earlier.shards
        return manifest

    def record(self, shard: ShardRecord) -> None:
        """Adds a shard and writes the manifest."""
        self.shards[shard.shard_index] = shard
        self.write()

    def write(self) -> None:
        """Writes the manifest by rename."""
        content = {
            "schema_version": 1,
            "plan_sha256": self.owner.plan_sha256,
            "run_id": self.owner.run_id,
            "split": self.owner.split,
            "shard_start": self.shard_start,
            "shard_stop": self.shard_stop,
            "attempts": self.attempts,
            "shards": [asdict(self.shards[index]) for index in sorted(self.shards)],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path, json.dumps(content, indent=1) + "\n")


def read_task_manifest(path: Path) -> TaskManifest | None:
    """Returns a task manifest, None if it is absent or damaged; a damaged one is logged.

    Nothing is lost with a damaged manifest: the shards speak for themselves.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        owner = Owner(
            plan_sha256=content["plan_sha256"], run_id=content["run_id"], split=content["split"]
        )
        shards = [ShardRecord(**record) for record in content["shards"]]
        return TaskManifest(
            path=path,
            owner=owner,
            shard_start=content["shard_start"],
            shard_stop=content["shard_stop"],
            attempts=content["attempts"],
            shards={shard.shard_index: shard for shard in shards},
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("damaged task manifest path=%s error=%r", path, error)
        return None
