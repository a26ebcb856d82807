"""Folders: can they be written, do compute nodes see them, is there room."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from chatspace.checks.findings import Finding, failed, passed, warned
from chatspace.jobs.setup import estimated_bytes
from chatspace.jobs.summary import format_bytes
from chatspace.plan.model import Plan
from chatspace.shards.gather import count_shards

LOCAL_TYPES = frozenset(
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "aufs"]
)
SPARE = 0.9
# Beside the shards: manifests, event logs and job logs of each task, and the run's own.
FILES_PER_TASK, FILES_PER_RUN = 6, 20
MOUNTS = Path("/proc/mounts")


def folder_is_fit(check: str, folder: Path, other_nodes: int) -> Finding:
    """Tries to write a file into a folder, or where it would be made, and names its file system."""
    existing = existing_part(folder)
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=".chatspace-"):
            pass
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        return failed(
            check, f"{folder} cannot be written: {why}", "Choose another, or ask for permission."
        )
    kind = file_system(existing)
    if kind in LOCAL_TYPES and other_nodes:
        return warned(
            check,
            f"{folder} is on {kind}, local to this machine; the cluster has {other_nodes} others",
            "Choose a folder on a shared file system, unless this one is mounted everywhere.",
        )
    return passed(check, f"{folder} can be written ({kind or 'file system unknown'})")


def is_local_only(path: Path, other_nodes: int) -> bool:
    """Tells whether other nodes are unlikely to see a path."""
    return bool(other_nodes) and file_system(existing_part(path)) in LOCAL_TYPES


def room_for(plan: Plan) -> Iterable[Finding]:
    """Compares what the run will write with what is free."""
    root = Path(plan.workspace)
    stat = os.statvfs(existing_part(root))
    free, free_files = stat.f_bavail * stat.f_frsize, stat.f_favail
    total = sum(split.n_shards for split in plan.splits)
    done = sum(count_shards(root / split.output_dir, split.n_shards) for split in plan.splits)
    left = total - done
    size = estimated_bytes(plan)
    seen = f"{format_bytes(free)} free"
    if size is None:
        yield passed("space", f"{seen}; output not known before the model is (vector length)")
    else:
        yield _room(int(size * left / max(total, 1)), free, seen)
    tasks = sum(len(split.slices) for split in plan.splits)
    files = left + tasks * FILES_PER_TASK + FILES_PER_RUN
    if not stat.f_files:
        yield passed("files", f"about {files:,} will be written; no limit is told")
    elif files > free_files:
        yield failed(
            "files",
            f"about {files:,} will be written, {free_files:,} more can be made",
            "Raise output.rows_per_shard, or free some there.",
        )
    else:
        yield passed("files", f"about {files:,} will be written, {free_files:,} more can be made")


def _room(needed: int, free: int, seen: str) -> Finding:
    text = f"{seen}, about {format_bytes(needed)} to be written"
    step = "Free space there, or choose another workspace; output.dtype: float16 halves it."
    if needed > free:
        return failed("space", text, step)
    return warned("space", text, step) if needed > SPARE * free else passed("space", text)


def existing_part(path: Path) -> Path:
    """Returns the path itself, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110


def file_system(path: Path) -> str | None:
    """Returns the type of the file system that a path lies on, such as `nfs4`."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return _type_of(Path(os.path.realpath(path)), [line.split() for line in lines])


def _type_of(path: Path, mounts: Sequence[Sequence[str]]) -> str | None:
    found, depth = None, -1
    for fields in mounts:
        if len(fields) < 3:
            continue
        # Source: https://man7.org/linux/man-pages/man5/fstab.5.html, spaces are written \040
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = fields[2], len(point.parts)
    return found
