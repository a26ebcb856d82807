"""Where an export goes: a file or a folder, whole or absent, that replaces nothing but its like.

What is written stands under a hidden name in the same folder until it is whole. `--force` replaces
nothing but an earlier export: a slip of the finger costs no shard, no workspace and no home folder.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import (
    atomic_path,
    atomic_write_text,
    output_error,
    read_json_object,
    sync_folder,
    temp_path,
)
from chatspace.errors import InputError, OutputError

NOTE_KEY = b"chatspace.export"
NOTE_FILE = "export.json"
# What every note has; other programs write an export.json too, and theirs has not all of it.
_NOTE_FIELDS = {"format", "run_id", "plan_sha256"}
_FAILED_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def refuse_taken(out: Path, *, force: bool, one_file: bool = False) -> None:
    """Refuses a path at which something stands that may not be replaced.

    Args:
        out: where the export goes.
        force: replace an earlier export.
        one_file: it is a file, which replaces no folder.

    Raises:
        InputError: the path names no new entry of a folder, such as `/` or `..`.
        OutputError: something stands there, and it is no earlier export or `force` is not given.
    """
    if out.name in ("", ".."):
        raise InputError(
            f"Not a path for an export: --out {out}; it is a new file or folder. Name one, such as "
            f"--out {out / 'export'}."
        )
    if not os.path.lexists(out):
        return
    if not is_export(out):
        inside = f", such as --out {out / 'export'}" if out.is_dir() else ""
        raise OutputError(
            f"Not an export: --out {out}; nothing is replaced but what chatspace exported. Name "
            f"another --out{inside}."
        )
    if one_file:
        _refuse_folder(out)
    if not force:
        raise OutputError(
            f"An export is there already: --out {out}; none is replaced unasked. Name another "
            "--out, or replace it with --force."
        )


def is_export(path: Path) -> bool:
    """Tells whether a file or folder says that `chatspace export` wrote it."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return read_json_object(path / NOTE_FILE).keys() >= _NOTE_FIELDS
    try:
        return NOTE_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Gives a path to write to, which becomes `out` when all went well.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or `out` is a folder.
    """
    _remove_left_over(out)
    _refuse_folder(out)
    with atomic_path(out, elsewhere="--out") as temp:
        yield temp


def _refuse_folder(out: Path) -> None:
    if out.is_dir():
        raise OutputError(
            f"A folder is there: --out {out}; what is written is one file. Name another --out."
        )


@contextmanager
def new_folder(out: Path, note: dict[str, object]) -> Iterator[Path]:
    """Gives an empty folder to write into, which becomes `out` when all went well.

    Where an earlier export is replaced, `out` is absent for the moment between two renames.

    Args:
        out: final path.
        note: what the folder says of itself, in `export.json`.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    _remove_left_over(out)
    temp, old = temp_path(out), temp_path(out.with_name(f"{out.name}.replaced"))
    try:
        temp.mkdir(parents=True)
        yield temp
        atomic_write_text(temp / NOTE_FILE, json.dumps(note, indent=1, ensure_ascii=False) + "\n")
        for path in sorted(temp.rglob("*")):
            _sync(path)
        _put(temp, out, old)
        sync_folder(out.parent)
    except (OSError, RuntimeError) as error:
        if not _is_failed_write(error) and not _concerns(error, out):
            raise
        cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC, "")
        raise output_error(cause, out, "--out") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _put(temp: Path, out: Path, old: Path) -> None:
    """Renames a folder; what stands at its new name goes to `old` and is then removed."""
    if not os.path.lexists(out):
        temp.rename(out)
        return
    out.rename(old)
    try:
        temp.rename(out)
    except OSError:
        old.rename(out)
        raise
    _remove(old)


def _is_failed_write(error: Exception) -> bool:
    """Tells whether a disk is full or broken, also where only a library's words say so."""
    return getattr(error, "errno", None) in _FAILED_WRITE or "No space left" in str(error)


def _concerns(error: Exception, out: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    names = {str(name) for name in (error.filename, error.filename2) if name is not None}
    ours = {str(path) for path in (out, *out.parents)}
    temp = temp_path(out)
    return any(name in ours or Path(name).is_relative_to(temp) for name in names)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_left_over(out: Path) -> None:
    """Removes what an export to the same path left that was killed on this host."""
    name = re.escape(out.name)
    pattern = re.compile(rf"\.{name}(\.replaced)?\.{re.escape(platform.node())}-(\d+)\.tmp")
    if not out.parent.is_dir() or not Path("/proc/self").exists():
        return
    for path in out.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not Path(f"/proc/{match[2]}").exists():
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
