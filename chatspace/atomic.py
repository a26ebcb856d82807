"""Files that are whole or absent: written beside their final name, synced, then renamed."""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chatspace.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_BROKEN = {errno.EIO, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_ADVICE = {
    **dict.fromkeys(_FULL, "Free space there or choose another {elsewhere}, then run it again"),
    **dict.fromkeys(_FORBIDDEN, "Ask for write permission there or choose another {elsewhere}"),
    **dict.fromkeys(_BROKEN, "Look at the file system and its limits, then run it again"),
    errno.EROFS: "Choose another {elsewhere}, on a file system that can be written",
    errno.ENAMETOOLONG: "Choose shorter names",
    errno.ENOTDIR: "A file stands where a folder is needed; move it or choose another {elsewhere}",
    errno.EEXIST: "A file stands where a folder is needed; move it or choose another {elsewhere}",
    errno.EISDIR: "A folder stands where a file is needed; move it or choose another {elsewhere}",
}


def temp_path(path: Path) -> Path:
    """Returns the name that `path` has while this process writes it: same folder, hidden."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path, *, elsewhere: str = "workspace") -> Iterator[Path]:
    """Gives a temporary path to write to; on leaving without an error it becomes `path`, durably.

    The folder is made where it is missing. On an error the temporary file is removed and what stood
    at `path` stays as it was. Not covered: two threads of one process that write the same path.

    Args:
        path: final name; an existing file is replaced.
        elsewhere: what a person changes to have it written somewhere else, for the error.

    Yields:
        A path in the same folder, which the caller must write.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temp = temp_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        publish(temp, path)
    except OSError as error:
        if not _concerns(error, temp, path):
            raise
        raise output_error(error, path, elsewhere) from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def publish(temp: Path, path: Path) -> None:
    """Gives a written file its final name in the same folder, durably.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    _sync(temp)
    temp.replace(path)
    sync_folder(path.parent)


def atomic_write_text(path: Path, text: str, *, elsewhere: str = "workspace") -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with atomic_path(path, elsewhere=elsewhere) as temp:
        temp.write_text(text, encoding="utf-8")


def create_text(path: Path, text: str) -> bool:
    """Writes `text` to `path` as UTF-8, whole, unless something stands there; returns whether.

    Of several that do so at the same time, threads among them, one succeeds, where the file system
    has hard links.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    temp = temp_path(path.with_name(f"{path.name}.{threading.get_ident()}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.write_text(text, encoding="utf-8")
        _sync(temp)
        try:
            os.link(temp, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            if path.exists():
                return False
            temp.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
    return True


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns what a JSON file says, `{}` where it is absent, damaged or holds no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def output_error(error: OSError, path: Path, elsewhere: str = "workspace") -> OutputError:
    """Returns the one-line error for an operating system's refusal to write `path`.

    Its advice names what a person changes to have it written somewhere else.
    """
    why = os.strerror(error.errno) if error.errno else str(error)
    advice = _ADVICE.get(error.errno or 0, "Check the folder and run it again")
    return OutputError(f"Cannot write: {path}; {why}. {advice.format(elsewhere=elsewhere)}.")


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync a folder; there the rename is all one can have.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    # Opened for writing: NFS reports a full disk at fsync only on a writable descriptor.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, temp: Path, path: Path) -> bool:
    """Whether the error is about writing `path`, not about something else that the caller read."""
    if error.errno in _FULL | {errno.EROFS, errno.EFBIG}:
        return True
    names = {str(name) for name in (error.filename, error.filename2) if name is not None}
    if not names:  # pyarrow leaves the name out, and words its errors with the path it was given
        return error.errno is not None and str(temp) in str(error)
    ours = {str(temp), str(path), *(str(folder) for folder in path.parents)}
    return bool(names & ours)
