"""Opening text files as they lie there: plain, gzip or Zstandard, by the ending of their names."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from chatspace.errors import InputError
from chatspace.spec.document import shown

COMPRESSED = {".gz": "gzip", ".zst": "Zstandard"}
# Source: https://www.rfc-editor.org/rfc/rfc1952#page-6 and rfc8878#section-3.1.1
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def with_compression(*extensions: str) -> tuple[str, ...]:
    """Returns the endings of plain and compressed files."""
    return tuple(f"{end}{more}" for end in extensions for more in ("", *COMPRESSED))


def at_line(path: Path, line: int) -> str:
    """Returns a place in a file as errors name it."""
    return f"{shown(path, 400)}:{line}"


def lines_of(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file with their ends, without a byte order mark.

    Raises:
        InputError: the file is missing, not to be read, damaged, or compressed in another way than
            its name says.
    """
    with opened(path) as file:
        for number, line in enumerate(file):
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading what is in it; no more than a block is held.

    Raises:
        InputError: the same as of `lines_of`.
    """
    with _damage_named(path), path.open("rb") as plain:
        begin = plain.read(4)
        plain.seek(0)
        if path.suffix == ".gz":
            with gzip.open(plain, "rb") as file:
                yield cast(BinaryIO, file)
        elif path.suffix == ".zst":
            with pa.CompressedInputStream(pa.PythonFile(plain), "zstd") as stream:
                yield io.BufferedReader(stream)
        else:
            _refuse_compressed(path, begin)
            yield plain


def _refuse_compressed(path: Path, begin: bytes) -> None:
    for magic, ending in _MAGIC.items():
        if begin.startswith(magic):
            raise InputError(
                f"Compressed: {shown(path)} is {COMPRESSED[ending]}, and its name does not end in "
                f"{ending}. Rename it."
            )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    kind = COMPRESSED.get(path.suffix)
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, "gzip", error) from error
    except FileNotFoundError as error:
        raise InputError(f"No such file: {shown(path)}. Check dataset.path.") from error
    except OSError as error:
        if kind is not None and error.errno is None:  # Arrow's, of the stream and not of the disk
            raise _damaged(path, kind, error) from error
        raise InputError(f"Cannot read: {shown(path)}; {error.strerror or error}.") from error


def _damaged(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(
        f"Damaged {kind}: {shown(path)}; {error}. Copy it again, give it the ending of what it is, "
        "or leave it out."
    )
