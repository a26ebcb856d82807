"""Files at a URL that fsspec knows: which make up a split, and their versions.

Endpoints and credentials are those of the URL's own library: AWS_*, GOOGLE_APPLICATION_CREDENTIALS,
HF_TOKEN, FSSPEC_*. They are never read here, nor written anywhere.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from chatspace.data.formats import EXTENSIONS
from chatspace.data.sources import (
    STATE_NAME,
    natural_key,
    own_names,
    refuse_shared,
    saved_names,
)
from chatspace.errors import InputError, SpecError, UnfitEnvironmentError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.spec.expand import expand
from chatspace.spec.problems import nearest
from chatspace.spec.secrets import refuse_expanded_secret, without_query

KNOWN_PROTOCOLS = ("s3", "gs", "hf", "https", "http", "abfs", "sftp")
# The first that a store gives says whether a file is another now; a checksum goes before a time.
_VERSIONS = (
    "ETag", "generation", "etag", "blob_id", "md5Hash", "Content-MD5", "LastModified",
    "Last-Modified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
_NOISY = ("s3fs", "gcsfs", "fsspec", "aiobotocore", "huggingface_hub", "google.auth")
_CREDENTIAL_ERRORS = (
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError",
    "TokenRetrievalError", "ProfileNotFound", "GatedRepoError", "LocalTokenNotFoundError",
)  # fmt: skip
_MISSING_ERRORS = ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a split.

    Attributes:
        path: as its file system names it.
        name: below the folder that all files of the split lie below.
        bytes: None where the server does not say.
        version: another one for another content; empty where the server gives none.
        checksum: algorithm (sha256, md5, git_sha1) and hex digest, where the store has one.
    """

    path: str
    name: str
    bytes: int | None
    version: str
    checksum: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSplit:
    """The files of one split at a URL, in order.

    Attributes:
        system: fsspec file system that they are read through.
        url: what was asked for, as errors and records name it.
        protocol: s3, gs, hf, ...
        revision: commit of a hub repository.
    """

    system: Any
    url: str
    protocol: str
    files: tuple[RemoteFile, ...]
    revision: str | None


def split_url(dataset: DatasetSection, split: str) -> str:
    """Returns the URL of a split.

    Raises:
        SpecError: a variable in it is not set, or holds a secret.
    """
    assert dataset.path is not None
    url = expand(dataset.path.replace("{split}", split), "dataset.path")
    refuse_expanded_secret(url, dataset.path, "dataset.path")
    return url


def protocol_of(url: str) -> str:
    """Returns what stands before `://`, the same for all names of a store."""
    name = url.partition("://")[0].lower()
    return {"s3a": "s3", "gcs": "gs"}.get(name, name)


def find_remote(dataset: DatasetSection, split: str) -> RemoteSplit:
    """Returns the files of one split at a URL: a file, a folder or a glob, as for local paths.

    Raises:
        InputError: nothing is there, or it may not be read.
        SpecError: the protocol is unknown, or several splits would read the same files.
        UnfitEnvironmentError: the server is out of reach, or a library is missing.
    """
    url = split_url(dataset, split)
    system, path = _open_system(url)
    names_split = "{split}" in str(dataset.path)
    with remote_errors(url):
        system.invalidate_cache()  # what lay there at an earlier call in this process
        path, revision = _pinned(system, path)
        listing = _Listing(system, path.rstrip("/"), dataset, split)
        if listing.is_folder():
            found = listing.folder(all_files=names_split)
        else:
            refuse_shared(dataset, names_split)
            found = listing.glob()
        # A page of links says no more of a file than its name.
        found = [info if _version(info) else system.info(info["name"]) for info in found]
    return RemoteSplit(
        system=system,
        url=url,
        protocol=protocol_of(url),
        files=_named(found),
        revision=revision,
    )


def listed_split(url: str, urls: Sequence[str], revision: str | None) -> RemoteSplit:
    """Returns a split of files that somebody else has listed, in that order.

    Args:
        url: the place that they lie below, as errors and records name it.
        urls: of the files, all of one file system.
        revision: commit of a hub repository that the URLs name.

    Raises:
        InputError: one is not there, or may not be read.
        UnfitEnvironmentError: the server is out of reach.
    """
    system, _ = _open_system(url)
    with remote_errors(url):
        found = [system.info(system._strip_protocol(each)) for each in urls]
    return RemoteSplit(
        system=system, url=url, protocol=protocol_of(url), files=_named(found), revision=revision
    )


def current_version(split: RemoteSplit, file: RemoteFile) -> str:
    """Returns the version of a file as it is on the server now.

    Raises:
        UserError: it is gone.
        UnfitEnvironmentError: the server is out of reach.
    """
    with remote_errors(split.url):
        split.system.invalidate_cache(file.path)
        return _version(split.system.info(file.path))


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turns what the libraries raise into one line; their own logs are silent meanwhile."""
    place = f"dataset.path={shown(without_query(url))}"
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (InputError, SpecError, UnfitEnvironmentError):
        raise
    except Exception as error:
        name, why = type(error).__name__, _one_line(error)
        if isinstance(error, FileNotFoundError) or name in _MISSING_ERRORS:
            advice = "" if why.endswith("?") else ". Check bucket, path and split."
            raise InputError(f"No such file or folder: {place}; {why}{advice}") from error
        if isinstance(error, PermissionError) or name in _CREDENTIAL_ERRORS:
            raise InputError(
                f"No permission: {place}; {why}. {_credentials(protocol_of(url))}."
            ) from error
        raise UnfitEnvironmentError(
            f"Out of reach: {place}; {why}. Run setup where there is a connection, and check the "
            "endpoint; the files that came are kept."
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _open_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        with remote_errors(url):
            system, path = url_to_fs(url)
    except UnfitEnvironmentError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            advice = _one_line(cause)
            if protocol_of(url) in ("s3", "gs"):
                advice = "Install it: pip install 'chatspace[remote]'"
            raise UnfitEnvironmentError(
                f"Missing library: dataset.path={shown(without_query(url))}; {protocol_of(url)}:// "
                f"needs one more package. {advice}."
            ) from error
        if isinstance(cause, ValueError):
            raise SpecError(
                f"Unknown protocol: dataset.path={shown(without_query(url))}; known: "
                f"{', '.join(KNOWN_PROTOCOLS)} and others of fsspec. Correct what stands before ://."
            ) from error
        raise
    return system, str(path)


def _pinned(system: Any, path: str) -> tuple[str, str | None]:
    """Returns a path of a hub repository at the commit that it names now, others as they are."""
    if type(system).__name__ != "HfFileSystem":
        return path, None
    from huggingface_hub import HfApi

    place = system.resolve_path(path)
    if not hasattr(place, "repo_id"):  # a bucket, which has no commits
        return path, None
    info = HfApi(endpoint=system.endpoint).repo_info(
        place.repo_id, repo_type=place.repo_type, revision=place.revision
    )
    root = {"dataset": "datasets/", "space": "spaces/"}.get(place.repo_type, "")
    inside = f"/{place.path_in_repo}" if place.path_in_repo else ""
    return f"{root}{place.repo_id}@{info.sha}{inside}", str(info.sha)


@dataclass(frozen=True, slots=True)
class _Listing:
    """Looks for the files of a split at a path."""

    system: Any
    path: str
    dataset: DatasetSection
    split: str

    def is_folder(self) -> bool:
        if set("*?[") & set(self.path.partition("@")[2] or self.path):
            return False
        if self.path.startswith(("http://", "https://")) and self._fits(self.path):
            return False  # the library would read a file without a type as a page of links
        return bool(self.system.isdir(self.path))

    def folder(self, *, all_files: bool) -> list[dict[str, Any]]:
        entries = self._entries(self.path)
        inner = [e for e in entries.values() if e["type"] == "directory"]
        own = next((e for e in inner if _base(e) == self.split), None)
        if own is not None:
            found = self._saved(self._entries(str(own["name"])), str(own["name"]))
        else:
            files = self._saved(entries, self.path)
            wanted = own_names(
                [_base(f) for f in files], self.split, self.dataset, all_files=all_files
            )
            found = [file for file in files if _base(file) in wanted]
        if not found:
            raise InputError(self._nothing(sorted(entries, key=natural_key)))
        return found

    def glob(self) -> list[dict[str, Any]]:
        is_pattern = bool(set("*?[") & set(self.path))
        if self.system.exists(self.path):
            return [self.system.info(self.path)]
        if not is_pattern:
            raise FileNotFoundError(self._beside())
        found = self.system.glob(self.path, detail=True)
        files = [found[name] for name in sorted(found, key=natural_key)]
        files = [file for file in files if file["type"] == "file"]
        if not files:
            raise FileNotFoundError("no file matches")
        return files

    def _fits(self, name: str) -> bool:
        return name.endswith(EXTENSIONS[self.dataset.source])

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        listed = self.system.ls(folder, detail=True)
        # Some stores list the folder itself, as an object of no bytes.
        inside = [entry for entry in listed if str(entry["name"]).rstrip("/") != folder]
        return {_base(entry): entry for entry in inside if not _base(entry).startswith(".")}

    def _saved(self, entries: dict[str, dict[str, Any]], folder: str) -> list[dict[str, Any]]:
        """Returns the files of a folder in order; `datasets` lists its own in `state.json`."""
        if self.dataset.source == "arrow" and STATE_NAME in entries:
            content = self.system.cat_file(entries[STATE_NAME]["name"])
            names = saved_names(content, f"{folder}/{STATE_NAME}")
            missing = [name for name in names if name not in entries]
            if missing:
                raise FileNotFoundError(f"{missing[0]}, which {STATE_NAME} lists")
            return [entries[name] for name in names]
        fitting = [name for name in entries if self._fits(name)]
        ordered = sorted(fitting, key=natural_key)
        return [entries[name] for name in ordered if entries[name]["type"] == "file"]

    def _beside(self) -> str:
        """Returns what lies where a missing path should, and the name nearest to it."""
        above, _, missing = self.path.rpartition("/")
        present = sorted(self._entries(above), key=natural_key) if above else []
        listed = ", ".join(present[:5]) + (", ..." if len(present) > 5 else "")
        return f"{above or self.path} has {listed or 'no such name'}.{nearest(missing, present)}"

    def _nothing(self, present: Sequence[str]) -> str:
        listed = (", ".join(present[:5]) or "nothing") + (", ..." if len(present) > 5 else "")
        source, split = self.dataset.source, self.split
        end = EXTENSIONS[source][0]
        others = [
            other
            for other, ends in EXTENSIONS.items()
            if other != source and any(name.endswith(ends) for name in present)
        ]
        advice = f"Did you mean source: {others[0]}?" if others else "Check the path and the split."
        return (
            f"No {source} files: dataset.path={shown(self.dataset.path)}, split {split}; looked "
            f"for {split}/, {split}{end}, {split}-*{end}, the folder has {listed}. {advice}"
        )


def _named(found: Sequence[dict[str, Any]]) -> tuple[RemoteFile, ...]:
    paths = [str(info["name"]) for info in found]
    folders = [path.split("/")[:-1] for path in paths]
    depth = 0
    while all(len(f) > depth and f[depth] == folders[0][depth] for f in folders):
        depth += 1
    return tuple(
        RemoteFile(
            path=path,
            name="/".join(path.split("/")[depth:]).partition("?")[0],
            bytes=info.get("size"),
            version=_version(info),
            checksum=_checksum(info),
        )
        for path, info in zip(paths, found, strict=True)
    )


def _base(info: dict[str, Any]) -> str:
    return PurePosixPath(str(info["name"]).rstrip("/").partition("?")[0]).name


def _version(info: dict[str, Any]) -> str:
    given = (info[key] for key in _VERSIONS if info.get(key) is not None)
    return f"{next(given, '')}".strip('"')


def _checksum(info: dict[str, Any]) -> tuple[str, str] | None:
    """Returns what the store says of the content. S3's ETag is no checksum in general.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    lfs = info.get("lfs")
    if lfs:
        sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
        return ("sha256", str(sha256)) if sha256 else None
    if info.get("blob_id"):
        return "git_sha1", str(info["blob_id"])
    try:
        md5 = base64.b64decode(str(info["md5Hash"]), validate=True).hex()
    except (KeyError, binascii.Error):
        return None
    return "md5", md5


def _credentials(protocol: str) -> str:
    return {
        "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
        "bucket FSSPEC_S3_ANON=true",
        "gs": "Set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket FSSPEC_GS_TOKEN=anon",
        "hf": "Log in with `hf auth login`, or set HF_TOKEN",
    }.get(protocol, "Set the credentials of its library, such as FSSPEC_* or ~/.netrc")


def _one_line(error: BaseException) -> str:
    return " ".join(without_query(str(error)).split())[:160].rstrip(". ") or type(error).__name__
