"""The Plan: all that an array task needs, resolved once on the login node: `plan.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chatspace.data.inputs import InputFile
from chatspace.data.selection import SelectedRows
from chatspace.shards.records import Owner, ShardSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The consecutive shards of one array task: `shard_start <= index < shard_stop`."""

    index: int
    shard_start: int
    shard_stop: int
    text_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """One split of the dataset: one array of the run.

    Attributes:
        dataset: label of the dataset, as it stands in paths and rows.
        rows: input rows of the run; shards are ranges of them, counted from 0.
        selected: which rows of the split these are [the first ones].
        identity: what the inputs are, whatever folder they lie in; hashed.
        output_dir: folder of the shards, relative to the workspace.
        manifest: path of the dataset manifest, relative to the workspace.
    """

    name: str
    dataset: str
    revision: str | None
    rows: int
    rows_per_shard: int
    text_bytes: int
    files: tuple[InputFile, ...]
    identity: tuple[dict[str, Any], ...]
    slices: tuple[Slice, ...]
    output_dir: str
    manifest: str
    selected: SelectedRows | None = None

    @property
    def n_shards(self) -> int:
        """Shards of the split."""
        return -(-self.rows // self.rows_per_shard)

    def span(self, index: int) -> ShardSpan:
        """Returns the row range of shard `index`."""
        start = index * self.rows_per_shard
        return ShardSpan(
            index=index, row_start=start, row_stop=min(start + self.rows_per_shard, self.rows)
        )

    def spans(self, slice_: Slice | None = None) -> list[ShardSpan]:
        """Returns the shards of a slice, or of the whole split."""
        start, stop = (slice_.shard_start, slice_.shard_stop) if slice_ else (0, self.n_shards)
        return [self.span(index) for index in range(start, stop)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A resolved, hashed run spec.

    Attributes:
        spec: the scientific part of the run spec (`RunSpec.science()`); its `hashed()` is.
        model: what the model is: name, label in paths, fingerprint of its files; hashed.
        cluster: resolved SLURM and container settings; they do not change the hash.
        created_at: when the run was first planned, ISO 8601, UTC; stands in every row.
        provenance: tool version, git state, host and spec file of the latest planning.
    """

    schema_version: int = 1
    kind: str
    name: str
    run_id: str
    plan_sha256: str
    created_at: str
    workspace: str
    spec: dict[str, Any]
    model: dict[str, Any]
    splits: tuple[SplitPlan, ...]
    cluster: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def has_scheduler(self) -> bool:
        """Whether jobs do its tasks, as in all plans from before profiles said so."""
        return bool(self.cluster.get("scheduler") != "none")

    def split(self, name: str) -> SplitPlan:
        """Returns the split called `name`; a KeyError is a bug of the caller."""
        return {split.name: split for split in self.splits}[name]

    def owner(self, split: SplitPlan) -> Owner:
        """Returns what the metadata of this run's shards must say."""
        return Owner(plan_sha256=self.plan_sha256, run_id=self.run_id, split=split.name)
