"""Planning: a run spec and the data on disk become a Plan.

Nothing of the run is written here; only datasets that are not Parquet are staged. Planning the same
spec on the same data gives the same hash and so the same run, whatever the number of slices, the
cluster or the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatspace import __version__
from chatspace.data.choosing import choose_rows
from chatspace.data.inputs import InputFile, file_time
from chatspace.data.inventory import check_unique_ids, inventory
from chatspace.data.lengths import with_text_steps
from chatspace.data.selection import open_selection
from chatspace.data.sources import dataset_label
from chatspace.data.staged_split import Place, StagedSplit
from chatspace.data.staging import stage_split, staged_folder
from chatspace.errors import InputError, OutputError, SpecError
from chatspace.kinds import KINDS
from chatspace.layout import Layout, path_component, resolve_workspace, split_label
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.slicing import make_slices, shard_text_bytes, slice_count
from chatspace.plan.store import load_plan
from chatspace.shards.store import first_foreign_shard, footer_owner
from chatspace.spec.base import RunSpec
from chatspace.spec.cluster import ResolvedCluster
from chatspace.spec.dataset import DatasetSection

SCHEMA_VERSION = 1
ROWS_WORTH_A_NOTE = 1_000_000


def build_plan(
    spec: RunSpec, cluster: ResolvedCluster, *, spec_path: Path | None, note: Callable[[str], None]
) -> Plan:
    """Resolves a run spec on this machine.

    Args:
        spec: what the user wrote.
        cluster: its SLURM and container sections, merged with the profile.
        spec_path: file that the spec was read from, for the provenance.
        note: told of steps that may take long (staging, checking ids).

    Raises:
        UserError: spec, data, model or workspace is not usable; nothing was written.
    """
    workspace = workspace_of(spec, cluster)
    model = KINDS[spec.kind].resolve_model()(spec)
    planned = [
        _plan_split(spec, name, workspace, model["label"], note=note)
        for name in spec.dataset.split_names
    ]
    splits = tuple(split for split, _ in planned)
    digest = _science_hash(spec, model, splits)
    run_id = f"{spec.name}-{digest[:8]}"
    earlier = _earlier_plan(workspace, run_id, digest)
    for split, place in planned:
        if earlier is None:
            _check_ids(spec.dataset, split, workspace, place=place, note=note)
        foreign = _foreign_output(workspace, split, digest)
        if foreign is not None:
            path, owner = foreign
            touched = _touched_file(spec, model, splits, _plan_of(workspace, owner.get("run_id")))
            raise _output_of_another(path, owner, run_id, touched)
    return Plan(
        kind=spec.kind,
        name=spec.name,
        run_id=run_id,
        plan_sha256=digest,
        created_at=earlier.created_at if earlier else _creation_time(),
        workspace=str(workspace),
        spec=spec.science(),
        model=model,
        splits=splits,
        cluster=asdict(cluster),
        provenance=provenance(spec_path),
    )


def workspace_of(spec: RunSpec, cluster: ResolvedCluster) -> Path:
    """Returns the root of what a run writes: the spec's, the environment's, else the profile's.

    Raises:
        OutputError: it cannot be made or written.
    """
    chosen = cluster.workspace if spec.workspace else None
    return resolve_workspace(chosen, fallback=cluster.workspace)


def _stage(spec: RunSpec, name: str, workspace: Path, note: Callable[[str], None]) -> StagedSplit:
    """Returns the Parquet files of a split, which are made first if need be."""
    dataset, label = spec.dataset, dataset_label(spec.dataset)
    staged_to = staged_folder(dataset, name, workspace, label)
    if staged_to is not None:
        note(f"Staging {label}/{name} as Parquet in {staged_to}")
    staged = stage_split(dataset, name, workspace, label, keep_columns=spec.output.keep_columns)
    if staged.folder != staged_to:
        note(f"It lies in {staged.folder}: {staged_to} has other content, which a run may read")
    return staged


def _plan_split(
    spec: RunSpec, name: str, workspace: Path, model_label: str, *, note: Callable[[str], None]
) -> tuple[SplitPlan, Place | None]:
    """Returns the plan of a split, and what says where a row of it stands in the user's files."""
    dataset, label = spec.dataset, dataset_label(spec.dataset)
    staged = _stage(spec, name, workspace, note)
    files = inventory(staged.files, dataset, keep_columns=spec.output.keep_columns)
    folder = Layout(workspace).selected() / split_label(label, name)
    rows, selected = choose_rows(files, dataset, workspace=workspace, folder=folder)
    if selected is None:
        files = _first_rows(files, rows)
    if spec.slices.balance == "bytes":
        per_shard = spec.output.rows_per_shard
        files = with_text_steps(files, dataset, per_shard, selected=selected)
    weights = shard_text_bytes(files, rows, spec.output.rows_per_shard, selected)
    by_rows = weights * 0 + spec.output.rows_per_shard
    slices = make_slices(
        weights if spec.slices.balance == "bytes" else by_rows,
        slice_count(spec.slices, rows, len(weights)),
    )
    place = f"{path_component(model_label)}/{split_label(label, name)}"
    split = SplitPlan(
        name=name,
        dataset=label,
        revision=staged.revision,
        rows=rows,
        rows_per_shard=spec.output.rows_per_shard,
        text_bytes=int(weights.sum()),
        files=tuple(files),
        identity=tuple(staged.identity),
        slices=slices,
        output_dir=f"embeddings/{place}",
        manifest=f"indexes/{place}/manifest.json",
        selected=selected,
    )
    return split, staged.place


def _first_rows(files: list[InputFile], n_rows: int) -> list[InputFile]:
    """Returns the files that hold the first `n_rows` rows; later ones are never opened."""
    kept, rows = [], 0
    for file in files:
        if rows >= n_rows:
            break
        kept.append(file)
        rows += file.rows
    return kept


def _science_hash(spec: RunSpec, model: dict[str, Any], splits: tuple[SplitPlan, ...]) -> str:
    """Returns the hash of all that decides what the shards hold, and of nothing else."""
    science = spec.hashed()
    science["dataset"].pop("path", None)  # the files' identity stands for it
    content = {
        "schema_version": SCHEMA_VERSION,
        "spec": science,
        "model": {"label": model["label"], "fingerprint": model["fingerprint"]},
        "splits": [
            {
                "name": split.name,
                "dataset": split.dataset,
                "revision": split.revision,
                "rows": split.rows,
                "identity": list(split.identity),
                **({"selected": split.selected.sha256} if split.selected else {}),
            }
            for split in splits
        ],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_ids(
    dataset: DatasetSection,
    split: SplitPlan,
    workspace: Path,
    *,
    place: Place | None,
    note: Callable[[str], None],
) -> None:
    """Refuses duplicate ids; a run that was planned before was checked then.

    Staging has checked the ids of what is not Parquet, before it let anything stay; not where only
    some rows are read.
    """
    was_checked = dataset.source != "parquet" and not dataset.picks_rows
    if dataset.id_field is None or was_checked:
        return
    if split.rows > ROWS_WORTH_A_NOTE:
        note(f"Checking that {dataset.id_field} is unique in {split.rows:,} rows")
    selection = open_selection(split.selected, workspace, split.rows)
    check_unique_ids(
        split.files,
        dataset.id_field,
        split.rows,
        selection=selection,
        place=place,
        scratch=Layout(workspace).cache(),
    )


def _earlier_plan(workspace: Path, run_id: str, digest: str) -> Plan | None:
    plan = _plan_of(workspace, run_id)
    return plan if plan and plan.plan_sha256 == digest else None


def _plan_of(workspace: Path, run_id: str | None) -> Plan | None:
    """Returns a run's plan, None where it is not there, damaged, or of another version."""
    path = Layout(workspace).run(run_id).plan if run_id else None
    if path is None or not path.exists():
        return None
    try:
        return load_plan(path)
    except InputError:
        return None


def _foreign_output(
    workspace: Path, split: SplitPlan, digest: str
) -> tuple[Path, dict[str, Any]] | None:
    """Returns a shard or manifest that another plan made in the split's place, and whose it is."""
    foreign = first_foreign_shard(workspace / split.output_dir, digest)
    return foreign or _foreign_manifest(workspace / split.manifest, digest)


def _touched_file(
    spec: RunSpec, model: dict[str, Any], splits: tuple[SplitPlan, ...], other: Plan | None
) -> InputFile | None:
    """Returns a file, as the other plan has it, if files' times are all that differs from it."""
    if other is None or [s.name for s in other.splits] != [s.name for s in splits]:
        return None
    before = [
        replace(split, identity=theirs.identity)
        for split, theirs in zip(splits, other.splits, strict=True)
    ]
    if _science_hash(spec, model, tuple(before)) != other.plan_sha256:
        return None
    now = {file.path: file.mtime_ns for split in splits for file in split.files}
    files = (file for split in other.splits for file in split.files)
    return next((f for f in files if now.get(f.path, f.mtime_ns) != f.mtime_ns), None)


def _output_of_another(
    path: Path, owner: dict[str, Any], run_id: str, touched: InputFile | None
) -> OutputError:
    advice = f"Choose another workspace or dataset.name, or move {path.parent} away."
    if touched is not None:
        back = f"touch -d {file_time(touched.mtime_ns)} {shlex.quote(touched.path)}"
        advice = f"Only a file's time differs; if its content does not: {back} makes it that run."
    return OutputError(
        f"Output of another run: {path} belongs to {footer_owner(owner)}, this spec and data give "
        f"{run_id}. {advice}"
    )


def _foreign_manifest(path: Path, digest: str) -> tuple[Path, dict[str, Any]] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a damaged one is of no use to anybody
        return None
    if not isinstance(content, dict) or content.get("plan_sha256") == digest:
        return None
    return path, content


def _creation_time() -> str:
    """Returns the time now, or SOURCE_DATE_EPOCH: a whole run can be reproduced to the byte.

    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError):
        raise SpecError(
            f"Invalid variable: SOURCE_DATE_EPOCH={epoch}; expected seconds since 1970. Unset it."
        ) from None
    return moment.isoformat(timespec="seconds")


def provenance(spec_path: Path | None) -> dict[str, Any]:
    """Returns who planned what with which code: not hashed, written into every manifest."""
    return {
        "tool_version": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "host": platform.node(),
        "spec_path": str(spec_path.absolute()) if spec_path else None,
        **_git_state(Path(__file__).parent, "git"),
        **_git_state(spec_path.absolute().parent if spec_path else Path.cwd(), "spec_git"),
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state(folder: Path, prefix: str) -> dict[str, Any]:
    """Returns commit and dirty flag of the repository a folder lies in, None outside of one."""
    sha = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if sha else None
    return {f"{prefix}_sha": sha, f"{prefix}_dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *args: str) -> str | None:
    """Returns the output of a git command, None where it fails: no repository, or no git."""
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
