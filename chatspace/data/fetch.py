"""Files of a hub repository, fetched once and proved by the hub's own checksums.

They lie in a hub cache, as every library of the hub reads it, and `staged/{commit}-{part}.json`
beside them lists name, bytes and sha256 of each; a part is what somebody wants of a repository. The
list is written last: where it is, all of them are. A file is fetched under a name of its own and
renamed when it is whole, so a run that was killed keeps the files it had and fetches the others.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from chatspace.atomic import atomic_write_text, output_error
from chatspace.errors import ModelError, OutputError, UnfitEnvironmentError

COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHTS, CODE = "weights", "code"
REPORT_S = 5.0
_FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20
# Of what is free, so much stays: a file system that is full to the last byte stops everybody.
_SPARE_BYTES = 1 << 30
# A fetch that lives writes to its file more often.
_LEFTOVER_S = 24 * 3600

Report = Callable[[str, int, int], None]


class NotOnHub(ModelError):
    """The hub has no such repository or commit, or not for this user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repository at a commit, as the hub or an earlier fetch describes it.

    Attributes:
        sha256: of its content, where that is known.
        git_sha1: of its content as a git object; the hub knows it of small files.
    """

    name: str
    bytes: int
    sha256: str | None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A repository whose files are all there, each with the right checksum.

    Attributes:
        folder: the snapshot, from which the model can be loaded.
        fetched_bytes: of the files that were fetched now; the others were there.
        damaged: files that were there with another content, and were fetched again.
    """

    name: str
    commit: str
    folder: Path
    files: int
    bytes: int
    fetched: tuple[str, ...]
    fetched_bytes: int
    damaged: tuple[str, ...]


def repository_folder(cache: Path, name: str) -> Path:
    """Returns the folder of a model repository in a hub cache."""
    return cache / f"models--{name.replace('/', '--')}"


def fetched_commit(name: str, revision: str | None, cache: Path, part: str = WEIGHTS) -> str | None:
    """Returns the commit at which a part was fetched once, None if it never was."""
    home = repository_folder(cache, name)
    commit = _commit_of(home, revision)
    return commit if commit and _read_record(home, commit, part) is not None else None


def fetched_snapshot(name: str, revision: str | None, cache: Path) -> Path | None:
    """Returns the snapshot of a model whose files were all fetched; no content is read.

    Args:
        name: repository on the hub.
        revision: branch, tag or commit; None is the main branch.
        cache: hub cache.
    """
    home = repository_folder(cache, name)
    commit = _commit_of(home, revision)
    files = _read_record(home, commit, WEIGHTS) if commit else None
    if commit is None or files is None:
        return None
    snapshot = home / "snapshots" / commit
    try:
        is_whole = all((snapshot / file.name).stat().st_size == file.bytes for file in files)
    except OSError:
        return None
    return snapshot if is_whole else None


def fetch_repository(
    name: str,
    commit: str,
    cache: Path,
    *,
    choose: Callable[[Sequence[HubFile]], list[HubFile]],
    report: Report,
    ref: str = "main",
    part: str = WEIGHTS,
) -> Fetched:
    """Brings a part of a repository at a commit into a hub cache, and reads all of it again.

    Not covered: two processes at once; the caller holds a lock.

    Args:
        name: repository on the hub.
        commit: its full commit hash.
        cache: hub cache.
        choose: returns those of the repository's files that are wanted.
        report: told what is done, the bytes done and the bytes in all, every few seconds.
        ref: branch or tag that names the commit from now on.
        part: name of what `choose` chooses.

    Raises:
        NotOnHub: the hub has no such repository or commit.
        ModelError: the checksum of a file that was fetched is not the hub's.
        UnfitEnvironmentError: something is missing and the hub is out of reach.
        OutputError: the cache cannot be written, or the disk is too small.
    """
    home = repository_folder(cache, name)
    snapshot = home / "snapshots" / commit
    known = _read_record(home, commit, part)
    files = known if known is not None else choose(_ask_files(name, commit))
    digests, damaged = _check(snapshot, files, report)
    missing = [file for file in files if file.name not in digests]
    with _cache_errors(home):
        if missing:
            digests |= _fetch_missing(name, commit, cache, missing=missing, report=report)
            _refuse_wrong(name, [file.name for file in files if file.name not in digests])
        found = [HubFile(name=f.name, bytes=f.bytes, sha256=digests[f.name]) for f in files]
        _write_record(home, commit, part, found)
        if not COMMIT.fullmatch(ref) and _commit_of(home, ref) != commit:
            atomic_write_text(home / "refs" / ref, commit)
    return Fetched(
        name=name,
        commit=commit,
        folder=snapshot,
        files=len(files),
        bytes=sum(file.bytes for file in files),
        fetched=tuple(file.name for file in missing),
        fetched_bytes=sum(file.bytes for file in missing),
        damaged=damaged,
    )


def _fetch_missing(
    name: str, commit: str, cache: Path, *, missing: list[HubFile], report: Report
) -> dict[str, str]:
    """Fetches files and returns the sha256 of those whose checksum is the hub's."""
    home = repository_folder(cache, name)
    _remove_leftovers(home)
    _check_space(cache, sum(file.bytes for file in missing), name)
    _fetch(name, commit, cache, missing, report)
    digests, _ = _check(home / "snapshots" / commit, missing, report)
    return digests


def _ask_files(name: str, commit: str) -> list[HubFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(name, commit):
        tree = list(HfApi().list_repo_tree(name, revision=commit, recursive=True))
    return [
        HubFile(
            name=entry.path,
            bytes=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
        )
        for entry in tree
        if isinstance(entry, RepoFile)
    ]


def _fetch(name: str, commit: str, cache: Path, files: Sequence[HubFile], report: Report) -> None:
    from huggingface_hub import snapshot_download

    # They would fill a log, and `report` says the same; the function is exported untyped.
    import_module("huggingface_hub.utils").disable_progress_bars()
    total = sum(file.bytes for file in files)
    blobs = repository_folder(cache, name) / "blobs"
    report("fetching", 0, total)
    with _reporting(blobs, total, report), _hub_errors(name, commit):
        snapshot_download(
            name,
            revision=commit,
            cache_dir=cache,
            allow_patterns=[glob.escape(file.name) for file in files],
        )


@contextmanager
def _reporting(blobs: Path, total: int, report: Report) -> Iterator[None]:
    """Reports every few seconds how many bytes have come, by the sizes of the files."""
    before, done = _folder_bytes(blobs), threading.Event()

    def watch() -> None:
        while not done.wait(REPORT_S):
            report("fetching", min(max(0, _folder_bytes(blobs) - before), total), total)

    thread = threading.Thread(target=watch, name="fetch-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _folder_bytes(folder: Path) -> int:
    size = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # renamed meanwhile
                size += path.lstat().st_size
    return size


def _check(
    snapshot: Path, files: Sequence[HubFile], report: Report
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the sha256 of the files that are right, and the names of wrong ones, removed."""
    digests: dict[str, str] = {}
    wrong: list[str] = []
    total, done = sum(file.bytes for file in files), 0
    for file in files:
        path = snapshot / file.name
        sha256 = _right_digest(path, file)
        if sha256 is not None:
            digests[file.name] = sha256
            done += file.bytes
            report("checking", done, total)
        elif path.is_symlink() or path.exists():
            wrong += [file.name] if path.exists() else []
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return digests, tuple(wrong)


def _right_digest(path: Path, file: HubFile) -> str | None:
    """Returns the sha256 of a file whose content is what the hub says, else None."""
    try:
        if path.stat().st_size != file.bytes:
            return None
        sha256 = hashlib.sha256()
        git_sha1 = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                sha256.update(chunk)
                if file.sha256 is None:
                    git_sha1.update(chunk)
    except OSError:  # not there, or not to be read: fetched again
        return None
    if file.sha256 is not None:
        return file.sha256 if sha256.hexdigest() == file.sha256 else None
    # Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    is_right = file.git_sha1 in (None, git_sha1.hexdigest())
    return sha256.hexdigest() if is_right else None


def _refuse_wrong(name: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise ModelError(
            f"Damaged on the way: model {name}, {', '.join(wrong[:3])}; its checksum is not the "
            f"hub's. It was removed; run it again."
        )


def _check_space(cache: Path, needed: int, name: str) -> None:
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed + min(needed, _SPARE_BYTES) > free:
        raise OutputError(
            f"Too little space: {cache} has {free / 2**30:,.1f} GiB free; model {name} needs "
            f"{needed / 2**30:,.1f} GiB more. Free space there, or choose another workspace."
        )


def _remove_leftovers(home: Path) -> None:
    """Removes what a killed fetch left: nobody takes up its half-fetched files again.

    A cache may be shared: a file that was written to within a day may be of somebody who fetches
    now. The age is by the clock of the file system, because those of hosts differ.
    """
    leftovers = list((home / "blobs").glob("*.incomplete"))
    if not leftovers:
        return
    with tempfile.TemporaryFile(dir=home / "blobs", buffering=0) as now:
        now.write(b"\n")
        now_s = os.fstat(now.fileno()).st_mtime
    for path in leftovers:
        with suppress(OSError):  # removed meanwhile, or of somebody else
            if now_s - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink()


def _commit_of(home: Path, revision: str | None) -> str | None:
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        commit = (home / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) else None


def _record(home: Path, commit: str, part: str) -> Path:
    return home / "staged" / f"{commit}-{part}.json"


def _read_record(home: Path, commit: str, part: str) -> list[HubFile] | None:
    try:
        record: Any = json.loads(_record(home, commit, part).read_bytes())
        if record["format"] != _FORMAT_VERSION:
            return None
        return [HubFile(**file) for file in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(home: Path, commit: str, part: str, files: Sequence[HubFile]) -> None:
    if _read_record(home, commit, part) != list(files):
        content = {"format": _FORMAT_VERSION, "files": [asdict(file) for file in files]}
        atomic_write_text(_record(home, commit, part), json.dumps(content, indent=1) + "\n")


@contextmanager
def _cache_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, home) from error


@contextmanager
def _hub_errors(name: str, commit: str) -> Iterator[None]:
    """Turns what the hub's library raises into one line; what the disk says stays as it is."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotOnHub(
            f"Not on the hub: model {name} at {commit[:12]}; there is no such name or commit that "
            f"you may read. Check model.name and model.revision, or log in with `hf auth login`."
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise _out_of_reach(name, error) from error
    except HfHubHTTPError as error:
        raise _out_of_reach(name, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _out_of_reach(name, error) from error
    except Exception as error:  # of the network, whatever the library calls it
        raise _out_of_reach(name, error) from error


def _out_of_reach(name: str, error: BaseException) -> UnfitEnvironmentError:
    from huggingface_hub import constants

    cause = error.__cause__ or error  # the library words what it would have liked to do
    why = " ".join(str(cause).split())[:160].rstrip(". ") or type(cause).__name__
    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    return UnfitEnvironmentError(
        f"Hub out of reach: model {name}; {why}. Run it again where there is internet; the files "
        f"that came are kept."
    )
