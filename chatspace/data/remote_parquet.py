"""Parquet at a URL: its columns before it is fetched, and whether it is whole after."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.remote import RemoteFile, RemoteSplit, remote_errors
from chatspace.data.sources import EXTENSIONS
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
            raise _damaged(split, file, error) from error


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
            raise _damaged(split, file, error) from error


def _damaged(split: RemoteSplit, file: RemoteFile, error: Exception) -> InputError:
    url = without_query(f"{split.protocol}://{file.path}")
    place = f"{shown(url)} ({file.bytes or 0:,} bytes)"
    others = [source for source, ends in EXTENSIONS.items() if file.name.endswith(ends)]
    if others and others[0] != "parquet":
        return InputError(f"Not a Parquet file: {place}. Set dataset.source to {others[0]}.")
    why = " ".join(str(error).split())[:120].rstrip(".")
    return InputError(
        f"Truncated or damaged Parquet: {place}; {why}. Upload it again, leave it out, or set "
        "dataset.source to its format."
    )
