"""Parquet at a URL: its columns before it is fetched, and whether it is whole after."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.formats import BEGIN_BYTES, told_format, what_it_is
from chatspace.data.remote import RemoteFile, RemoteSplit, remote_errors
from chatspace.errors import InputError
from chatspace.spec.document import shown
from chatspace.spec.secrets import without_query


def remote_schema(split: RemoteSplit) -> pa.Schema:
    """Returns the schema of the first file; only its footer is read.

    Raises:
        UserError: it is gone, may not be read, or is no whole Parquet.
        UnfitEnvironmentError: the server is out of reach.
    """
    file = split.files[0]
    with remote_errors(split.url), split.system.open(file.path, "rb") as source:
        try:
            return pq.read_schema(source)
        except pa.ArrowException as error:
            source.seek(0)
            raise _damaged(split, file, error, source.read(BEGIN_BYTES)) from error


def check_fetched(split: RemoteSplit, folder: Path) -> None:
    """Reads the footer of each file that was fetched.

    Raises:
        InputError: one is no whole Parquet.
    """
    for file in split.files:
        try:
            with pq.ParquetFile(folder / file.name):
                pass
        except (pa.ArrowException, OSError) as error:
            with (folder / file.name).open("rb") as fetched:
                begin = fetched.read(BEGIN_BYTES)
            raise _damaged(split, file, error, begin) from error


def _damaged(split: RemoteSplit, file: RemoteFile, error: Exception, begin: bytes) -> InputError:
    url = without_query(f"{split.protocol}://{file.path}")
    place = f"{shown(url)} ({file.bytes or 0:,} bytes)"
    found = told_format(begin, file.name, "parquet")
    if found is not None:
        return InputError(f"Not a Parquet file: {place}; {what_it_is(found, file.name)}.")
    why = " ".join(str(error).split())[:120].rstrip(".")
    return InputError(
        f"Truncated or damaged Parquet: {place}; {why}. Upload it again, leave it out, or set "
        "dataset.source to its format."
    )
