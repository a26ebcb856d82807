"""Folders of Parquet files with a `dataset.json`, each whole or absent.

A folder takes its final name when its last byte is on disk. `dataset.json` says what it was made
from, and of what is in it the columns, rows, bytes and checksums.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import atomic_write_text, output_error, sync_folder, temp_path
from chatspace.data.identity import file_sha256
from chatspace.data.parquet import shown_type
from chatspace.data.tables import Table
from chatspace.errors import InputError, OutputError
from chatspace.spec.document import shown
from chatspace.spec.secrets import without_query

log = logging.getLogger(__name__)

RECORD_NAME = "dataset.json"
# Raised when the same sources would be converted to something else.
_FORMAT_VERSION = 1
_PART_BYTES = 1 << 30
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 65536

Record = dict[str, Any]
# Proves what is asked of a folder's ids; returns what is known of them now.
IdCheck = Callable[[Path, Record], dict[str, int]]


def no_ids(folder: Path, record: Record) -> dict[str, int]:
    """Asks nothing of the ids."""
    return {}


def write_folder(folder: Path, table: Table, about: Mapping[str, Any], check: IdCheck) -> Record:
    """Writes a table as a folder of Parquet files and returns its record.

    Memory is a row group of 64 MiB and a batch.

    Args:
        folder: final place; what was staged there is replaced.
        table: schema and batches.
        about: what stands in the record of the table's origin, `folder` at least.
        check: called before the folder gets its name.

    Raises:
        InputError: the table cannot be read or is empty, or the check refuses it.
        OutputError: the folder cannot be written, or was not made by staging.
    """
    refuse_strange(folder)
    temp = temp_path(folder)
    with output_errors(folder), _removed_after(temp):
        _remove_leftovers(folder)
        temp.mkdir(parents=True)
        parts = _write_parts(temp, table)
        return _finish(temp, folder, table.schema, {**about, "parts": parts}, check)


def adopt_folder(
    temp: Path, folder: Path, names: Sequence[str], about: Mapping[str, Any]
) -> Record:
    """Makes a folder of Parquet files that were fetched a staged one, and returns its record.

    Args:
        temp: the folder as it is now, beside its final place.
        folder: final place; what was staged there is replaced.
        names: its files, in order.
        about: what stands in the record of their origin, with `files` that have checksums.

    Raises:
        OutputError: the folder cannot be written, or was not made by staging.
    """
    refuse_strange(folder)
    with output_errors(folder):
        parts, schema = [], pa.schema([])
        for name, entry in zip(names, about["files"], strict=True):
            with pq.ParquetFile(temp / name) as file:
                schema = schema or file.schema_arrow
                rows = file.metadata.num_rows
            parts.append({k: v for k, v in entry.items() if k != "version"} | {"rows": rows})
        for path in temp.iterdir():
            if path.is_file() and path.name not in names:  # what the fetch noted for itself
                path.unlink()
        return _finish(temp, folder, schema, {**about, "parts": parts}, no_ids)


def _finish(temp: Path, folder: Path, schema: pa.Schema, about: Record, check: IdCheck) -> Record:
    parts = about["parts"]
    rows = sum(part["rows"] for part in parts)
    if not rows:
        raise InputError(
            f"Empty dataset: {shown(without_query(about['folder']))} holds no rows. Check the path "
            "and the split."
        )
    record = {
        "format": _FORMAT_VERSION,
        **about,
        "features": {field.name: str(field.type) for field in schema},
        "rows": rows,
        "bytes": sum(part["bytes"] for part in parts),
    }
    record["unique_ids"] = check(temp, record)
    (temp / RECORD_NAME).write_text(_record_text(record), encoding="utf-8")
    _sync(temp)
    _swap(temp, folder)
    log.info("staged folder=%s rows=%d parts=%d", folder, rows, len(parts))
    return record


def read_record(folder: Path) -> Record | None:
    """Returns the record of a staged folder that is whole, else None."""
    try:
        record: Record = json.loads((folder / RECORD_NAME).read_bytes())
        whole = record["format"] == _FORMAT_VERSION and all(
            (folder / part["name"]).stat().st_size == part["bytes"] for part in record["parts"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def update_record(folder: Path, record: Record) -> None:
    """Replaces the record of a staged folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    atomic_write_text(folder / RECORD_NAME, _record_text(record))


def refuse_strange(folder: Path) -> None:
    """Refuses to replace a folder that staging did not make.

    Raises:
        OutputError: the folder has files, but no record.
    """
    with output_errors(folder):
        is_ours = not folder.exists() or (folder / RECORD_NAME).exists()
        if not is_ours and any(folder.iterdir()):
            raise OutputError(
                f"Not a staged dataset: {folder} has files but no {RECORD_NAME}. "
                "Move it away, or set dataset.name."
            )


def refuse_another_dataset(record: Record, source: str, home: str, folder: Path) -> None:
    """Refuses to replace a dataset of another origin that has the same label.

    Raises:
        OutputError: what was staged there is something else.
    """
    if (record["source"], record["folder"]) != (source, home):
        raise OutputError(
            f"Another dataset of that name: {folder} was staged from {record['source']} of "
            f"{without_query(record['folder'])}, this one is {source} of {without_query(home)}. "
            "Set dataset.name to tell them apart, or remove the folder."
        )


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Names the final folder in what the system says of writing; reading has its own errors."""
    try:
        yield
    except OSError as error:
        raise output_error(error, folder) from error


def _record_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1)


def _write_parts(folder: Path, table: Table) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    batches = table.batches()
    pending = next(batches, None)
    while pending is not None:
        path = folder / f"part-{len(parts):05d}.parquet"
        rows = size = 0
        with _parquet_writer(path, table.schema) as writer:
            while pending is not None and size < _PART_BYTES:
                group, pending = _group(pending, batches)
                writer.write_table(pa.Table.from_batches(group, table.schema))
                rows += sum(batch.num_rows for batch in group)
                size += sum(batch.nbytes for batch in group)
        part = {"name": path.name, "rows": rows, "bytes": path.stat().st_size}
        parts.append({**part, "sha256": file_sha256(path)})
    return parts


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Returns a writer to a file.

    Raises:
        InputError: Parquet has no such type as that of a column.
    """
    try:
        return pq.ParquetWriter(path, schema, compression="zstd")
    except pa.ArrowNotImplementedError as error:
        lacking = next((field for field in schema if not _is_in_parquet(field)), schema.field(0))
        raise InputError(
            f"Type that Parquet lacks: column {shown(lacking.name)} is {shown_type(lacking.type)}. "
            "Leave the column out, or convert it to another type."
        ) from error


def _is_in_parquet(field: pa.Field) -> bool:
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
    except pa.ArrowNotImplementedError:
        return False
    return True


def _group(
    first: pa.RecordBatch, batches: Iterator[pa.RecordBatch]
) -> tuple[list[pa.RecordBatch], pa.RecordBatch | None]:
    """Returns the batches of one row group, and the batch after them."""
    group, rows, size = [first], first.num_rows, first.nbytes
    for batch in batches:
        if rows + batch.num_rows > _GROUP_ROWS or size + batch.nbytes > _GROUP_BYTES:
            return group, batch
        group.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    return group, None


def _swap(temp: Path, folder: Path) -> None:
    """Gives the new folder its name; the old one is out of the way only between two renames."""
    old = temp_path(folder).with_name(f"{temp_path(folder).name}.old.tmp")
    with suppress(FileNotFoundError):
        folder.rename(old)
    temp.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed process of this machine left; one that still runs keeps its files."""
    prefix = temp_path(folder).name.removesuffix(f"{os.getpid()}.tmp")
    for path in folder.parent.glob("*.tmp"):
        pid = path.name.removeprefix(prefix).split(".")[0]
        if path.name.startswith(prefix) and pid.isdecimal() and not _is_another_process(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_another_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


@contextmanager
def _removed_after(temp: Path) -> Iterator[None]:
    """Removes the folder, and after a failure the folders above it that were made for it."""
    missing = [folder for folder in temp.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        with suppress(OSError):  # another process has put something there
            for folder in missing:
                folder.rmdir()
        raise
    shutil.rmtree(temp, ignore_errors=True)
