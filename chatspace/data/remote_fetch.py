"""Fetching the files of a split from a URL, once, so that tasks read them from disk.

A file takes its name when its last byte is on disk and its checksum agrees with the store's, where
that has one; a line in `fetched.jsonl` beside it says so. A fetch that was killed goes on with the
next file, and in a large file with the block after the last one that is surely on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chatspace.atomic import output_error, sync_folder
from chatspace.data.remote import RemoteFile, RemoteSplit, current_version, remote_errors
from chatspace.data.staged_folder import RECORD_NAME
from chatspace.errors import InputError, OutputError, UnfitEnvironmentError
from chatspace.spec.document import shown
from chatspace.spec.secrets import without_query

log = logging.getLogger(__name__)

JOURNAL_NAME = "fetched.jsonl"
# Files at a time, each with a block of its own: 128 MiB in all.
_THREADS = 8
_BLOCK_BYTES = 16 << 20
_SYNC_BYTES = 64 << 20
# Of what is free, so much stays: a file system that is full to the last byte stops everybody.
_SPARE_BYTES = 1 << 30
LEASE_S = 60.0
_WAIT_S = 3600.0
_ENTRY_KEYS = ("name", "bytes", "sha256", "version", "url")

Entry = dict[str, Any]


def fetch_split(split: RemoteSplit, folder: Path) -> list[Entry]:
    """Brings the files of a split to a folder; those that are there in this version stay.

    Not covered: two processes at once; the caller holds `fetching`.

    Args:
        split: the files.
        folder: where they go, below their names.

    Returns:
        name, bytes, sha256 and version of each file, in order.

    Raises:
        InputError: a file is gone, may not be read, changed meanwhile, came damaged, or has a
            name that would lead out of the folder or that another file has.
        UnfitEnvironmentError: the server is out of reach.
        OutputError: the folder cannot be written, or the disk is too small.
    """
    _refuse_unfit_names(split)
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_journal(folder)
        there = {f.name: e for f in split.files if (e := _entry_of(split, f, folder, known))}
        missing = [file for file in split.files if file.name not in there]
        _check_space(folder, sum(file.bytes or 0 for file in missing))
        url = without_query(split.url)
        log.info("fetching url=%s files=%d there=%d", url, len(missing), len(there))
        with (folder / JOURNAL_NAME).open("a", encoding="utf-8") as journal:
            pool = ThreadPoolExecutor(_THREADS)
            try:
                for entry in pool.map(lambda file: _fetch(split, file, folder), missing):
                    there[entry["name"]] = entry
                    journal.write(json.dumps(entry) + "\n")
                    journal.flush()
            finally:
                pool.shutdown(cancel_futures=True)
        _remove_others(folder, {file.name for file in split.files})
    return [{k: v for k, v in there[file.name].items() if k != "url"} for file in split.files]


def keep_fetched(folder: Path, earlier: Path, entries: Sequence[Entry], url: str) -> None:
    """Puts what was fetched before into the folder of a new fetch, without a byte being copied.

    Where the file system has no hard links, it is fetched again.

    Args:
        folder: of the new fetch.
        earlier: folder that was staged from the same URL.
        entries: its files, as `fetch_split` returned them.
        url: where they are from.

    Raises:
        OutputError: the folder cannot be written.
    """
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / JOURNAL_NAME).open("a", encoding="utf-8") as journal:
            for entry in entries:
                path = folder / entry["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(OSError):  # there already, or no links
                    os.link(earlier / entry["name"], path)
                    journal.write(json.dumps({**entry, "url": url}) + "\n")


@contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that is staged to; another process that has it is waited for.

    Folders above it that were made for the lock, and got nothing, go again.

    Raises:
        UnfitEnvironmentError: it has it for an hour.
        OutputError: the lock cannot be written.
    """
    from filelock import SoftFileLease, Timeout

    path = folder.with_name(f"{folder.name}.lock")
    missing = [above for above in path.parents if not above.exists()]
    with _output_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(path, lease_duration=LEASE_S)
        try:
            try:
                lease.acquire(timeout=0)
            except Timeout:
                log.warning("waiting for=%s until=released or silent for %.0f s", path, LEASE_S)
                lease.acquire(timeout=_WAIT_S, poll_interval=0.5)
        except Timeout:
            raise UnfitEnvironmentError(
                f"Somebody else stages this: {path} is held. Run it again later, or remove that "
                "file if that process is gone."
            ) from None
    try:
        yield
    finally:
        lease.release()
        with suppress(OSError):  # something is there now
            for above in missing:
                above.rmdir()


def _refuse_unfit_names(split: RemoteSplit) -> None:
    """Refuses names under which a file would lie elsewhere, or be written over."""
    taken = {JOURNAL_NAME, RECORD_NAME}
    for file in split.files:
        if file.name in taken or {"", ".", ".."} & set(file.name.split("/")):
            raise InputError(
                f"Unfit name: {shown(file.name)} of {shown(without_query(split.url))}; a name "
                f"stands once, is not {JOURNAL_NAME} or {RECORD_NAME}, and has no part that is "
                "empty, `.` or `..`. Rename the file, or leave it out."
            )
        taken.add(file.name)


def _fetch(split: RemoteSplit, file: RemoteFile, folder: Path) -> Entry:
    """Fetches one file and returns its entry of the journal."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256(f"{split.url} {file.version} {file.bytes}".encode()).hexdigest()[:12]
    part = path.with_name(f".{path.name}.{version}.part")
    digests, done = _Digests(file), 0
    # Without a version nobody can tell whether what is there is of the same content.
    kept = _kept_bytes(part) if file.version else 0
    with part.open("r+b" if kept else "wb") as out:
        while done < kept:
            block = out.read(min(_BLOCK_BYTES, kept - done))
            digests.update(block)
            done += len(block)
        out.truncate(kept)
        for block in _blocks(split, file, kept):
            out.write(block)
            digests.update(block)
            done += len(block)
            if done // _SYNC_BYTES != (done - len(block)) // _SYNC_BYTES:
                _sync(out)
        _sync(out)
    _check_fetched(split, file, done, digests, part)
    part.replace(path)
    sync_folder(path.parent)
    return {
        "name": file.name,
        "bytes": done,
        "sha256": digests.sha256(),
        "version": file.version,
        "url": split.url,
    }


def _blocks(split: RemoteSplit, file: RemoteFile, start: int) -> Iterator[bytes]:
    with remote_errors(split.url):
        if file.bytes == 0:
            return
        options = {"block_size": _BLOCK_BYTES, "cache_type": "none"}
        with split.system.open(file.path, "rb", **options) as source:
            if start:
                source.seek(start)
            while block := source.read(_BLOCK_BYTES):
                yield block


def _check_fetched(
    split: RemoteSplit, file: RemoteFile, done: int, digests: _Digests, part: Path
) -> None:
    """Refuses what is not the file that was listed; it is fetched anew next time."""
    place = f"{split.protocol}://{file.path}"
    wrong = None
    if file.bytes is not None and done != file.bytes:
        wrong = f"{done:,} of {file.bytes:,} bytes came"
    elif not digests.is_right():
        wrong = "its checksum is not the store's"
    elif file.version and current_version(split, file) != file.version:
        wrong = "it was replaced while it was read"
    if wrong is not None:
        part.unlink(missing_ok=True)
        raise InputError(
            f"Damaged on the way: {shown(without_query(place))}; {wrong}. Run it again."
        )


class _Digests:
    """The sha256 of a file, and the checksum that its store knows it by."""

    def __init__(self, file: RemoteFile) -> None:
        self._sha256 = hashlib.sha256()
        self._expected = file.checksum
        self._other: Any = None
        if file.checksum and file.checksum[0] == "md5":
            self._other = hashlib.md5(usedforsecurity=False)
        elif file.checksum and file.checksum[0] == "git_sha1":
            # Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
            begin = b"blob %d\0" % (file.bytes or 0)
            self._other = hashlib.sha1(begin, usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self._sha256.update(block)
        if self._other is not None:
            self._other.update(block)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def is_right(self) -> bool:
        found = self._other or self._sha256
        return self._expected is None or bool(found.hexdigest() == self._expected[1])


def _kept_bytes(part: Path) -> int:
    """Returns how much of a half-fetched file is surely on disk.

    Each write of up to a block that reaches a multiple of the sync size is synced before the next.
    """
    try:
        size = part.stat().st_size
    except OSError:
        return 0
    return max(0, (size - _BLOCK_BYTES) // _SYNC_BYTES) * _SYNC_BYTES


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _entry_of(
    split: RemoteSplit, file: RemoteFile, folder: Path, known: dict[str, Entry]
) -> Entry | None:
    entry = known.get(file.name)
    asked = {"version": file.version, "url": split.url}
    if entry is None or not file.version or not asked.items() <= entry.items():
        return None
    try:
        size = (folder / file.name).stat().st_size
    except OSError:
        return None
    return entry if size == entry["bytes"] and file.bytes in (None, size) else None


def _read_journal(folder: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    with suppress(FileNotFoundError):
        for line in (folder / JOURNAL_NAME).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a process was killed
                entry = json.loads(line)
                entries[entry["name"]] = {key: entry[key] for key in _ENTRY_KEYS}
    return entries


def _remove_others(folder: Path, names: set[str]) -> None:
    """Removes what an earlier version of the split left."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in names and name != JOURNAL_NAME:
            path.unlink()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + min(needed, _SPARE_BYTES) > free:
        raise OutputError(
            f"Too little space: {folder} has {free / 2**30:,.1f} GiB free, {needed / 2**30:,.1f} "
            "GiB are to be fetched. Free space there, or choose another workspace."
        )


@contextmanager
def named_by_url(url: str) -> Iterator[None]:
    """Says in errors where a fetched file comes from, besides where it lies."""
    try:
        yield
    except InputError as error:
        text = str(error)
        if url in text:
            raise
        raise InputError(f"{text.rstrip('.')}. It was fetched from {shown(url)}.") from error


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, folder) from error
