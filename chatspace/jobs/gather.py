"""Gather of a run: coverage proof of each split, then one dataset manifest by rename."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from chatspace import __version__
from chatspace.atomic import atomic_write_text
from chatspace.data.selection import open_selection, positions
from chatspace.errors import IncompleteError
from chatspace.jobs.render import missing_command, ranges_text
from chatspace.layout import Layout
from chatspace.plan.model import Plan, SplitPlan
from chatspace.shards.gather import Coverage, count_shards, prove_coverage
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import ShardStore, utc_now
from chatspace.shards.vectors import Encoding
from chatspace.wording import counted

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pyarrow", "numpy")
STAGES = ("loader", "encoder", "writer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A split that was proved complete and published."""

    split: str
    manifest: Path
    content: dict[str, Any]


def split_store(plan: Plan, split: SplitPlan, attempt: str = "local") -> ShardStore:
    """Returns the store of a split's shards."""
    # Opened when it is first asked for: only a verification does.
    selection = cache(partial(open_selection, split.selected, Path(plan.workspace), split.rows))
    return ShardStore(
        folder=Path(plan.workspace) / split.output_dir,
        place=split.output_dir,
        owner=plan.owner(split),
        compression=plan.spec["output"]["compression"],
        attempt=attempt,
        row_numbers=lambda span: positions(selection(), span.row_start, span.row_stop),
    )


def gather_run(plan: Plan, *, verify: bool = False) -> list[Gathered]:
    """Proves and publishes every split; complete ones are published even if others are not.

    Args:
        plan: the run.
        verify: read every shard again before publishing.

    Raises:
        IncompleteError: shards are missing or wrong; the message says which and how to run them.
        OutputError: a shard belongs to another plan.
    """
    gathered, complaints = [], []
    for split in plan.splits:
        coverage = split_coverage(plan, split, verify=verify)
        if coverage.complete:
            gathered.append(_publish(plan, split, coverage))
        else:
            complaints.append(complaint(plan, split, coverage))
    if complaints:
        raise IncompleteError(" ".join(complaints))
    for item in gathered:
        _warn_if_empty(plan, item)
    return gathered


def _warn_if_empty(plan: Plan, item: Gathered) -> None:
    """Says that a split has no vector at all: complete as it is, it is hardly what was meant."""
    content = item.content
    if content["rows_total"] and not content["rows_embedded"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in content["rows_skipped"].items())
        log.warning(
            "Nothing was embedded: %s split %s; all of %s were skipped (%s). Check what of a row "
            "is embedded: dataset.text_field, conversation or template.",
            plan.run_id,
            item.split,
            counted(content["rows_total"], "row"),
            reasons,
        )


def verify_run(plan: Plan) -> dict[str, int]:
    """Reads every shard again and returns the number of good shards of each split.

    Raises:
        IncompleteError: shards are missing or damaged.
    """
    verified, complaints = {}, []
    for split in plan.splits:
        coverage = split_coverage(plan, split, verify=True)
        if coverage.complete:
            verified[split.name] = len(coverage.records)
        else:
            complaints.append(complaint(plan, split, coverage))
    if complaints:
        raise IncompleteError(" ".join(complaints))
    return verified


def gather_if_complete(plan: Plan, split: SplitPlan) -> Gathered | None:
    """Publishes a split whose shard files are all there; the usual end of its last task.

    Costs one folder listing while the split is incomplete. Shards that turn out damaged are left to
    `gather`, which says so.
    """
    folder = Path(plan.workspace) / split.output_dir
    if count_shards(folder, split.n_shards) < split.n_shards:
        return None
    coverage = split_coverage(plan, split, verify=False)
    if not coverage.complete:
        log.warning("not gathered: %s", complaint(plan, split, coverage))
        return None
    return _publish(plan, split, coverage)


def read_manifest(plan: Plan, split: SplitPlan) -> dict[str, Any] | None:
    """Returns the published manifest of a split, None if there is none of this plan."""
    try:
        content = json.loads((Path(plan.workspace) / split.manifest).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    is_ours = isinstance(content, dict) and content.get("plan_sha256") == plan.plan_sha256
    return content if is_ours else None


def missing_slices(split: SplitPlan, missing: Sequence[ShardSpan]) -> list[int]:
    """Returns the slices that hold missing shards, ascending."""
    indexes = {span.index for span in missing}
    return [s.index for s in split.slices if indexes & set(range(s.shard_start, s.shard_stop))]


def split_coverage(plan: Plan, split: SplitPlan, *, verify: bool) -> Coverage:
    """Looks at every shard of a split; with `verify`, reads every shard again."""
    tasks = Layout(Path(plan.workspace)).run(plan.run_id).tasks
    return prove_coverage(split_store(plan, split), split.spans(), tasks, verify=verify)


def complaint(plan: Plan, split: SplitPlan, coverage: Coverage) -> str:
    """Returns one line: what is missing or wrong, and what to run."""
    place = f"{plan.run_id} split {split.name}"
    folder = shlex.quote(str(Layout(Path(plan.workspace)).run(plan.run_id).folder))
    if coverage.problems:
        more = f" (and {len(coverage.problems) - 1} more)" if len(coverage.problems) > 1 else ""
        advice = _redoing(plan, coverage, folder) if coverage.damaged else ""
        return f"Not complete: {place}: {coverage.problems[0]}{more}{advice}"
    shards = ranges_text(span.index for span in coverage.missing)
    slices = missing_slices(split, coverage.missing)
    rows = counted(sum(span.n_rows for span in coverage.missing), "row")
    n_shards = counted(split.n_shards, "shard")
    how = f"chatspace run {folder}"
    if plan.has_scheduler:
        by_hand = missing_command(plan, split, slices)
        how = f"chatspace resubmit {folder} (by hand: {by_hand}; here: {how})"
    return (
        f"Not complete: {place}: {len(coverage.missing)} of {n_shards} missing "
        f"({rows}; shards {_shortened(shards)}). Run just those: {how}"
    )


def _redoing(plan: Plan, coverage: Coverage, folder: str) -> str:
    """Returns how damaged shards are done again: where the run was done until now."""
    here = f"chatspace run {folder} --verify"
    was_here = coverage.attempts and not any(a.get("slurm") for a in coverage.attempts)
    if was_here or not plan.has_scheduler:
        return f" Do what is damaged again: {here}"
    return f" Do what is damaged again: chatspace resubmit {folder} --verify (here: {here})"


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _publish(plan: Plan, split: SplitPlan, coverage: Coverage) -> Gathered:
    store = split_store(plan, split)
    store.remove_stale_temps(split.spans(), finished=True)
    path = Path(plan.workspace) / split.manifest
    content = dataset_manifest(plan, split, coverage)
    for note in content["notes"]:
        log.warning("%s split %s: %s", plan.run_id, split.name, note)
    earlier = read_manifest(plan, split)
    if earlier is not None and earlier["shards"] == content["shards"]:
        return Gathered(split=split.name, manifest=path, content=earlier)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    log.info("gathered split=%s shards=%d manifest=%s", split.name, len(coverage.records), path)
    return Gathered(split=split.name, manifest=path, content=content)


def dataset_manifest(plan: Plan, split: SplitPlan, coverage: Coverage) -> dict[str, Any]:
    """Returns what gather publishes of one split."""
    records = coverage.records
    skipped: Counter[str] = Counter()
    for record in records:
        skipped.update(record.rows_skipped)
    return {
        "schema_version": 1,
        "run_id": plan.run_id,
        "plan_sha256": plan.plan_sha256,
        "dataset": split.dataset,
        "subset": plan.spec["dataset"]["subset"],
        "split": split.name,
        "revision": split.revision,
        "source": plan.spec["dataset"]["source"],
        "model": plan.model["name"],
        "rows_total": split.rows,
        "rows_embedded": sum(record.rows for record in records),
        "chunks": _chunks(records),
        "rows_skipped": dict(sorted(skipped.items())),
        "rows_truncated": sum(record.rows_truncated for record in records),
        "embedding_dim": max(record.embedding_dim for record in records),
        "dtype": plan.spec["output"]["dtype"],
        "vectors": _encoding(plan, records).describe(),
        "rows_per_shard": split.rows_per_shard,
        **_norms(records),
        "n_shards": len(records),
        "bytes": sum(record.bytes for record in records),
        "shards": [asdict(record) for record in records],
        **_measured(coverage.attempts),
        "shards_redone": _redone(split, coverage),
        **_compute_dtypes(records, coverage.attempts),
        "run_config": plan.spec,
        **{key: value for key, value in plan.provenance.items() if "git_" in key},
        "tool_version": __version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "container": {
            "image": plan.cluster.get("image"),
            "sha256": plan.cluster.get("image_sha256"),
        },
        "planned_at": plan.created_at,
        "gathered_at": utc_now(),
    }


def _encoding(plan: Plan, records: Sequence[ShardRecord]) -> Encoding:
    dim = max(record.embedding_dim for record in records)
    return Encoding(dtype=plan.spec["output"]["dtype"], dim=dim)


def _chunks(records: Sequence[ShardRecord]) -> int | None:
    """Returns how many chunks there are, None where rows are not cut into any."""
    chunks = [record.chunks for record in records if record.chunks is not None]
    return sum(chunks) if chunks else None


def _norms(records: Sequence[ShardRecord]) -> dict[str, float | None]:
    return {
        "min_norm": min((r.min_norm for r in records if r.min_norm is not None), default=None),
        "max_norm": max((r.max_norm for r in records if r.max_norm is not None), default=None),
    }


def _measured(attempts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums what the executions measured, and lists them.

    An execution that was killed wrote no timings; its tokens and seconds are not in the sums. Those
    of a shard that was done again are in them each time.
    """
    timed = [attempt for attempt in attempts if "stages" in attempt]
    named = dict.fromkeys(stage for attempt in timed for stage in attempt["stages"])
    stages = {
        stage: {
            key: round(sum(attempt["stages"].get(stage, {}).get(key, 0.0) for attempt in timed), 3)
            for key in ("busy_s", "idle_s")
        }
        for stage in named or STAGES
    }
    return {
        "stages": stages,
        "n_tokens": sum(attempt["n_tokens"] for attempt in timed),
        "n_padded_tokens": sum(attempt["n_padded_tokens"] for attempt in timed),
        "gpus": sorted({a["runtime"]["gpu"] for a in timed if a["runtime"].get("gpu")}),
        "tasks": list(attempts),
    }


def _redone(split: SplitPlan, coverage: Coverage) -> int:
    """Returns how many shards were written by an execution that began after their slice was done.

    An execution of a slice that finished left no shard of it undone.
    """
    slices = {(s.shard_start, s.shard_stop) for s in split.slices}
    done_at: dict[int, str] = {}  # when the slice of a shard was first done
    for attempt in coverage.attempts:
        shards = attempt["shard_start"], attempt["shard_stop"]
        if attempt.get("state") == "finished" and shards in slices:
            for index in range(*shards):
                done_at[index] = min(attempt["finished_at"], done_at.get(index, "~"))
    begun = {a["attempt"]: a.get("started_at", "") for a in coverage.attempts}
    return sum(
        done_at.get(record.shard_index, "~") <= begun.get(record.attempt, "")
        for record in coverage.records
    )


def _compute_dtypes(
    records: Sequence[ShardRecord], attempts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the dtypes that the shards were computed in, and a note if there are several.

    A shard whose execution was killed is not counted: what it computed in is written at its end.
    """
    known = {a["attempt"]: a for a in attempts if a.get("runtime", {}).get("dtype")}
    used = [known[record.attempt] for record in records if record.attempt in known]
    counts = Counter(attempt["runtime"]["dtype"] for attempt in used)
    dtypes = sorted(counts)
    if len(dtypes) <= 1:
        return {"compute_dtypes": dtypes, "notes": []}
    usual = max(dtypes, key=lambda dtype: counts[dtype])
    rarer = [attempt for attempt in used if attempt["runtime"]["dtype"] != usual]
    nodes = sorted({a.get("slurm", {}).get("node") or a.get("host") or "unknown" for a in rarer})
    note = (
        f"Vectors computed in several dtypes: compute_dtypes={','.join(dtypes)}; {len(rarer)} of "
        f"{len(records)} shards not in {usual}, on {_shortened(', '.join(nodes))}. For one dtype "
        f"on all nodes set {' or '.join(f'model.dtype: {dtype}' for dtype in dtypes)}."
    )
    return {"compute_dtypes": dtypes, "notes": [note]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
