"""Staging: model and dataset are brought to where tasks read them, once, on the login node.

Two at once would fetch everything twice, so one waits: the lock is a file that is made atomically,
names its owner and is touched while the owner lives (`filelock.SoftFileLease`, which judges a beat
by the waiting process's own clock). `flock` does nothing on some network file systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLease, Timeout

from chatspace.atomic import output_error
from chatspace.data.fetch import Fetched
from chatspace.data.sources import dataset_label
from chatspace.data.staged_versions import version_folders
from chatspace.data.staging import staged_folder
from chatspace.errors import UnfitEnvironmentError
from chatspace.jobs.setup import plan_run
from chatspace.jobs.summary import format_bytes
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.plan.build import workspace_of
from chatspace.plan.model import Plan, SplitPlan
from chatspace.spec.base import RunSpec
from chatspace.spec.cluster import resolve_cluster

LEASE_S = 60.0
# Reading so much again takes long enough to be told of.
LARGE_BYTES = 4 << 30
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSplit:
    """One split as tasks will read it.

    Attributes:
        folder: where its Parquet files lie.
        is_new: whether it was converted or fetched now.
    """

    split: SplitPlan
    folder: Path
    bytes: int
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a run needs, all of it on disk.

    Attributes:
        models: repositories of the hub; none where the model is a local folder.
    """

    plan: Plan
    models: tuple[Fetched, ...]
    splits: tuple[StagedSplit, ...]


def stage_run(
    spec: RunSpec, *, spec_path: Path | None = None, note: Note, wait_min: float = 60.0
) -> Staged:
    """Brings the model and the dataset of a spec to the workspace; what is there already stays.

    Args:
        spec: what the user wrote.
        spec_path: file it was read from.
        note: told what is done, line by line.
        wait_min: how long another process that stages is waited for, in minutes.

    Raises:
        UserError: spec, data, model or workspace is not usable.
        UnfitEnvironmentError: the hub is out of reach, or another process stages for too long.
    """
    cluster = resolve_cluster(spec)
    workspace = workspace_of(spec, cluster)
    layout = Layout(workspace)
    cache = layout.hub_cache(cluster.hf_home).absolute()
    with _only_one(cache / ".locks" / "chatspace-stage.lock", note, wait_min):
        models = KINDS[spec.kind].stage_model()(spec, cache, _reporter(note))
    with _only_one(layout.cache() / "stage.lock", note, wait_min):
        label = dataset_label(spec.dataset)
        folders = [
            staged_folder(spec.dataset, name, workspace, label) for name in spec.dataset.split_names
        ]
        before = {
            path: _changed_at(path)
            for folder in folders
            for path in (version_folders(folder) if folder else ())
        }
        plan = plan_run(spec, spec_path=spec_path, note=note)
    splits = []
    for split, folder in zip(plan.splits, folders, strict=True):
        first = Path(split.files[0].path)
        lies_in = (
            [path for path in version_folders(folder) if path in first.parents] if folder else []
        )
        place = (lies_in or [first.parent])[0]
        splits.append(
            StagedSplit(
                split=split,
                folder=place,
                bytes=sum(file.bytes for file in split.files),
                is_new=bool(lies_in) and _changed_at(place) != before.get(place),
            )
        )
    return Staged(plan=plan, models=tuple(models), splits=tuple(splits))


def _changed_at(folder: Path) -> tuple[int, int] | None:
    """Returns what changes when a folder is staged anew, None where it is not there."""
    with suppress(OSError):
        stat = folder.stat()
        return stat.st_ino, stat.st_ctime_ns
    return None


def _reporter(note: Note) -> Callable[[str, int, int], None]:
    """Returns a reporter that says each tenth of what takes long, once."""
    said: dict[str, int] = {}

    def report(what: str, done: int, total: int) -> None:
        tenths = 10 * done // max(total, 1)
        if (what.startswith("fetching") or total > LARGE_BYTES) and tenths != said.get(what):
            note(f"{what}: {format_bytes(done)} of {format_bytes(total)}")
        said[what] = tenths

    return report


@contextmanager
def _only_one(path: Path, note: Note, wait_min: float) -> Iterator[None]:
    """Holds a lock; whoever has it is waited for, and taken for dead when it beats no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(path, lease_duration=LEASE_S)
        try:
            lease.acquire(timeout=0)
        except Timeout:
            note(f"Waiting for {_owner(lease)}, which stages to the same place ({path})")
            lease.acquire(timeout=wait_min * 60, poll_interval=0.5)
    except Timeout:
        raise UnfitEnvironmentError(
            f"Somebody else is staging: {_owner(lease)} has held {path} for {wait_min:g} minutes. "
            f"Run it again later, or remove that file if that process is gone."
        ) from None
    except OSError as error:
        raise output_error(error, path) from error
    try:
        yield
    finally:
        lease.release()


def _owner(lease: SoftFileLease) -> str:
    with suppress(OSError, ValueError, AttributeError):
        owner = lease.owner
        if owner is not None:
            return f"process {owner.pid} on {owner.hostname}"
    return "another process"
