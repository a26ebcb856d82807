"""What input files are, whatever folder they lie in: names, sizes, times, checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatspace.data.parquet import reading


def common_folder(paths: Sequence[Path]) -> Path:
    """Returns the deepest folder that all files lie below."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def looks_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns name below the common folder, bytes and time of each file; no content is read.

    Raises:
        InputError: a file is missing.
    """
    home = common_folder(paths)
    files = []
    for path in paths:
        with reading(path):
            stat = path.stat()
        name = path.relative_to(home).as_posix()
        files.append({"name": name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return files


def with_digests(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns what `looks_of` does and the sha256 of each file, of which all bytes are read.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    files = looks_of(paths)
    for path, entry in zip(paths, files, strict=True):
        with reading(path):
            entry["sha256"] = file_sha256(path)
    return files


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without(files: Sequence[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Returns the same entries with some keys left out."""
    return [{name: value for name, value in file.items() if name not in keys} for file in files]


def changes(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> str:
    """Returns the first names that came, went or have another checksum, for a log."""
    old = {file["name"]: file["sha256"] for file in before}
    new = {file["name"]: file["sha256"] for file in after}
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return ",".join(changed[:5]) or "order"
