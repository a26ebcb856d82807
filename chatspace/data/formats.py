"""The formats of datasets: the endings of their names, and what a file is by its first bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from chatspace.data.opening import opened, with_compression
from chatspace.errors import InputError
from chatspace.spec.document import shown

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "jsonl": with_compression(".jsonl", ".ndjson"),
    "csv": with_compression(".csv"),
    "arrow": (".arrow", ".feather"),
    "text": with_compression(".txt", ".text", ".md"),
}
BEGIN_BYTES = 1 << 16
Advise = Callable[[str], str | None]

# Source: https://parquet.apache.org/docs/file-format and
# https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_BINARY = {*_MAGIC.values()}
# What lies or is downloaded in place of a file: a web page that says why, a pointer of Git LFS.
# Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_INSTEAD = {
    b"<!doctype html": "html",
    b"<html": "html",
    b"version https://git-lfs.github.com/spec/": "lfs",
}
_NAMES = {
    "parquet": "Parquet",
    "jsonl": "JSON lines",
    "csv": "CSV",
    "arrow": "Arrow",
    "text": "text",
    "json": "a JSON document and not an object a line",
    "html": "a web page",
    "lfs": "a pointer of Git LFS",
}
_ADVICE = {
    "json": "Make Parquet of it with `chatspace convert`",
    "html": "Download the file itself",
    "lfs": "Run `git lfs pull` in its repository",
}


def refuse_other_format(path: Path, source: str, advise: Advise | None = None) -> None:
    """Refuses a file that is surely not of the format `source`; in doubt it passes.

    Args:
        path: the file; a little of it is read.
        source: format that it is said to be, as the run spec names it.
        advise: gives what to do with a file of another format, if other than to set dataset.source.

    Raises:
        InputError: it is something else, or cannot be read.
    """
    found = told_format(begin_of(path), path.name, source)
    if found is not None:
        raise InputError(
            f"Not {_NAMES[source]}: {shown(path)}; {what_it_is(found, path.name, advise)}."
        )


def begin_of(path: Path) -> bytes:
    """Returns the first bytes of a file, uncompressed.

    Raises:
        InputError: it cannot be read.
    """
    with opened(path) as file:
        return file.read(BEGIN_BYTES)


def told_format(begin: bytes, name: str, source: str) -> str | None:
    """Returns what a file surely is instead of `source`, None where it may well be that.

    Args:
        begin: its first bytes, uncompressed.
        name: its name, which tells one text from another where the bytes fit no `source`.
        source: format that it is said to be.
    """
    magic: list[str | None] = [what for mark, what in _MAGIC.items() if begin.startswith(mark)]
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    instead = [what for mark, what in _INSTEAD.items() if text.lower().startswith(mark)]
    found = (magic or instead or [_json_of(text)])[0]
    is_unfit = source in _BINARY or (source == "jsonl" and text[:1] not in (b"", b"{", b"["))
    by_name = format_of_name(name) if is_unfit else None
    if found is None and by_name not in _BINARY:
        found = by_name
    # A text may be about anything: a file that is read by lines or as a whole may hold JSON.
    is_fit = found == source or (source == "text" and found in ("json", "jsonl", "html"))
    return None if is_fit else found


def what_it_is(found: str, name: str, advise: Advise | None = None) -> str:
    """Returns in words what `told_format` found and what to do, without the full stop.

    Args:
        found: what it found.
        name: of the file.
        advise: as of `refuse_other_format`.
    """
    advice = advise(found) if advise else None
    return f"it is {_NAMES[found]}. {advice or _ADVICE.get(found) or _set_source(found, name)}"


def format_of_name(name: str) -> str | None:
    """Returns the format whose ending a file's name has, None where it has none."""
    return next((format_ for format_, ends in EXTENSIONS.items() if name.endswith(ends)), None)


def _set_source(format_: str, name: str) -> str:
    advice = f"Set dataset.source to {format_}"
    if format_of_name(name) == format_:
        return advice
    # In a folder, files of a format are known by their names.
    return f"{advice}, and dataset.path to the file or a glob: its name does not tell"


def _json_of(text: bytes) -> str | None:
    """Returns whether a text is JSON lines or one JSON document, None where it is neither."""
    line, _, more = text.partition(b"\n")
    line = line.strip()
    if line in (b"{", b"["):
        return "json"
    if line[:1] == b"[" and line[1:].lstrip()[:1] == b"{":
        is_list_a_line = _is_json(line) and more.strip()
        return None if is_list_a_line else "json"
    is_cut = len(line) >= BEGIN_BYTES // 2
    return "jsonl" if line[:1] == b"{" and (is_cut or _is_json(line)) else None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
