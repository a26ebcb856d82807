"""Where a split is staged: in a folder of its name, and beside it when its content is another.

A plan names files of a staged folder, and its tasks may wait in a queue for days: so what is staged
once is not replaced by something else. `train/` holds what was staged first, `train@1a2b3c4d/` the
same split after its source changed or was asked for in another unit. Nothing is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chatspace.data.staged_folder import (
    RECORD_NAME,
    Record,
    read_record,
    refuse_another_dataset,
    refuse_strange,
    update_record,
)

log = logging.getLogger(__name__)

Version = tuple[Path, Record]
_MARK = "@"
# What decides the rows of a staged folder, besides the version of the code.
_CONTENT = ("source", "identity", "text_unit")


def version_folders(folder: Path) -> list[Path]:
    """Returns the folders that hold, or held, something staged of a split, by name."""
    try:
        beside = [p for p in folder.parent.iterdir() if p.name.startswith(f"{folder.name}{_MARK}")]
    except OSError:
        return []
    return [path for path in (folder, *sorted(beside)) if path.is_dir()]


def staged_versions(folder: Path) -> list[Version]:
    """Returns the whole ones of what is staged of a split, with their records, last used first.

    Args:
        folder: of the split's own name.
    """
    found = [(path, record) for path in version_folders(folder) if (record := read_record(path))]
    return sorted(found, key=lambda version: _used_ns(version[0]), reverse=True)


def find_version(folder: Path, fits: Callable[[Record], bool]) -> Version | None:
    """Returns what is staged of a split and fits, of several the last used, and notes its use."""
    versions = staged_versions(folder)
    for path, record in versions:
        if fits(record):
            if path != versions[0][0]:
                with suppress(OSError):  # a folder of somebody else is used all the same
                    os.utime(path / RECORD_NAME)
            return path, record
    return None


def refuse_another_origin(folder: Path, source: str, home: str) -> None:
    """Refuses to stage beside a dataset of another origin that has the same label.

    Raises:
        OutputError: what is staged of the split is all from elsewhere.
    """
    records = [record for _, record in staged_versions(folder)]
    if not any((record["source"], record["folder"]) == (source, home) for record in records):
        for record in records:
            refuse_another_dataset(record, source, home, folder)


def place_for(folder: Path, about: Mapping[str, Any]) -> Version | Path:
    """Returns the folder that a content is staged to, or with its record where it is there already.

    Args:
        folder: of the split's own name.
        about: what the content is made from, as its record will say it; where it is there already,
            its record says so from now on, or each later setup would read all bytes again.

    Raises:
        OutputError: the folder has files that staging did not make, or a record cannot be written.
    """
    content = _content(about)
    there = find_version(folder, lambda record: _content(record) == content)
    if there is not None:
        path, record = there
        record = {**record, **about}
        update_record(path, record)
        return path, record
    refuse_strange(folder)
    if read_record(folder) is None:
        return folder
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return folder.with_name(f"{folder.name}{_MARK}{digest[:8]}")


def _content(about: Mapping[str, Any]) -> dict[str, Any]:
    content = {key: about.get(key) for key in _CONTENT}
    # Out of a cache whose commit nobody knows, what was asked for is all there is to tell.
    return content if about["revision"] else {**content, "asked": about.get("asked_revision")}


def _used_ns(path: Path) -> int:
    try:
        return (path / RECORD_NAME).stat().st_mtime_ns
    except OSError:
        return 0
