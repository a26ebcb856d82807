"""Staging: every dataset is Parquet before it is sliced.

Parquet is used where it lies. Other formats are converted to `datasets/processed/{label}/{split}/`
below the workspace, as a whole: a folder takes its final name when its last byte is on disk.
`dataset.json` in it says what it was made from; the same sources are not converted again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import atomic_write_text, output_error, sync_folder, temp_path
from chatspace.data.hub import read_hub, resolve_revision
from chatspace.data.inventory import check_id_column, check_unique_ids, inventory
from chatspace.data.parquet import check_column, check_text_column, reading
from chatspace.data.sources import find_files
from chatspace.data.tables import Table, read_arrow, read_csv, read_jsonl, row_place
from chatspace.errors import InputError, OutputError
from chatspace.layout import Layout, split_label
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

log = logging.getLogger(__name__)

RECORD_NAME = "dataset.json"
# Raised when the same sources would be converted to something else.
_FORMAT_VERSION = 1
_PART_BYTES = 1 << 30
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 65536

_ColumnCheck = Callable[[pa.Schema, Path], None]

_READERS: dict[str, Callable[[Sequence[Path]], Table]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "arrow": read_arrow,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSplit:
    """Parquet files of one split.

    Attributes:
        files: absolute paths, in order.
        identity: what the rows come from, the same in every workspace: name relative to the
            common folder, bytes, and sha256 (converted files) or mtime_ns (Parquet); for hub
            datasets name, subset, split and commit.
        revision: commit of a hub dataset, where it is known.
    """

    files: list[Path]
    identity: list[dict[str, Any]]
    revision: str | None


def stage_split(
    dataset: DatasetSection,
    split: str,
    workspace: Path,
    label: str,
    *,
    keep_columns: Sequence[str] = (),
) -> StagedSplit:
    """Returns one split as Parquet files, converting it first where it is not.

    Args:
        dataset: what to stage.
        split: name of the split.
        workspace: root of what is written.
        label: name of the dataset in paths.
        keep_columns: further columns that must exist in what is converted.

    Raises:
        InputError: a source is missing, damaged, empty, or lacks a column; an id is null or stands
            twice in a source that is not Parquet. Nothing is left behind.
        OutputError: the workspace cannot be written or is full, or another dataset lies there.
    """
    if dataset.source == "parquet":
        files = find_files(dataset, split)
        return StagedSplit(files=files, identity=_identity(files), revision=None)
    folder = Layout(workspace).staged() / split_label(label, split)
    check = partial(_check_columns, dataset=dataset, keep_columns=keep_columns)
    if dataset.source == "huggingface":
        return _stage_hub(dataset, split, folder, check)
    return _stage_local(dataset, find_files(dataset, split), folder, check)


def _stage_local(
    dataset: DatasetSection, paths: list[Path], folder: Path, check: _ColumnCheck
) -> StagedSplit:
    home = str(_common_folder(paths))
    record = _read_record(folder)
    ids = _Ids(dataset, partial(row_place, dataset.source, paths))
    same_source = record is not None and record["source"] == dataset.source
    if record is not None and same_source and _is_untouched(record, home, paths):
        return _staged_before(folder, record, ids)
    files = _with_digests(paths)  # reads all bytes, so only where names, sizes or times differ
    identity = _without(files, "mtime_ns")
    if record is not None:
        if same_source and identity == record["identity"]:
            return _staged_before(folder, record, ids)
        _refuse_another_dataset(record, dataset.source, home, folder)
        log.info("restaging folder=%s reason=changed files=%s", folder, _changes(record, identity))
    table = _READERS[dataset.source](paths)
    check(table.schema, paths[0])
    about = {
        "source": dataset.source,
        "folder": home,
        "files": files,
        "identity": identity,
        "revision": None,
    }
    return _staged(folder, _write(folder, table, about, ids))


def _stage_hub(
    dataset: DatasetSection, split: str, folder: Path, check: _ColumnCheck
) -> StagedSplit:
    what = {"name": dataset.name, "subset": dataset.subset, "split": split}
    ids = _Ids(dataset, lambda row: f"row {row} of {shown(dataset.name)}, split {split}")
    record = _read_record(folder)
    revision = resolve_revision(dataset)
    if record is not None:
        _refuse_another_dataset(record, dataset.source, str(dataset.name), folder)
        same = all(record["identity"][0][key] == value for key, value in what.items())
        # Out of reach of the hub, what was staged before is what there is, if asked for alike.
        asked = record["asked_revision"] == dataset.revision
        if same and (record["revision"] == revision if revision else asked):
            return _staged_before(folder, record, ids)
        log.info("restaging folder=%s reason=changed revision=%s", folder, revision)
    table, revision = read_hub(dataset, split, revision)
    check(table.schema, Path(str(dataset.name)))
    about = {
        "source": "huggingface",
        "folder": dataset.name,
        "identity": [{**what, "revision": revision}],
        "revision": revision,
        "asked_revision": dataset.revision,
    }
    return _staged(folder, _write(folder, table, about, ids))


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids that a run asks for, and where a row of the split stands in its source."""

    dataset: DatasetSection
    place: Callable[[int], str]

    def check(self, folder: Path, record: Mapping[str, Any]) -> dict[str, int]:
        """Returns in how many first rows of a staged folder each id column is known to be unique.

        Raises:
            InputError: an id is null or stands twice.
        """
        known: dict[str, int] = record.get("unique_ids", {})
        id_field, rows = self.dataset.id_field, record["rows"]
        if self.dataset.max_rows is not None:
            rows = min(rows, self.dataset.max_rows)
        if id_field is None or known.get(id_field, 0) >= rows:
            return known
        log.info("checking ids=%s rows=%d", id_field, rows)
        files = inventory(
            [folder / part["name"] for part in record["parts"]],
            self.dataset.text_field,
            conversation=self.dataset.extract_first_assistant,
            id_field=id_field,
        )
        check_unique_ids(files, id_field, rows, place=self.place)
        return {**known, id_field: rows}


def _staged_before(folder: Path, record: dict[str, Any], ids: _Ids) -> StagedSplit:
    """Returns a folder that is staged, after checking the ids that no earlier run asked for."""
    known = ids.check(folder, record)
    if known != record.get("unique_ids", {}):
        atomic_write_text(folder / RECORD_NAME, _record_text({**record, "unique_ids": known}))
    return _staged(folder, record)


def _record_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1)


def _staged(folder: Path, record: dict[str, Any]) -> StagedSplit:
    return StagedSplit(
        files=[folder / part["name"] for part in record["parts"]],
        identity=record["identity"],
        revision=record["revision"],
    )


def _check_columns(
    schema: pa.Schema, path: Path, *, dataset: DatasetSection, keep_columns: Sequence[str]
) -> None:
    """Refuses before anything is written what the inventory would refuse after."""
    if not schema.names:
        raise InputError(
            f"Empty dataset: {shown(path)} holds no rows. Check the path and the split."
        )
    type_ = check_column(schema, dataset.text_field, path, "dataset.text_field")
    check_text_column(type_, dataset.text_field, path, dataset.extract_first_assistant)
    if dataset.id_field is not None:
        id_type = check_column(schema, dataset.id_field, path, "dataset.id_field")
        check_id_column(id_type, dataset.id_field, path)
    for name in keep_columns:
        check_column(schema, name, path, "output.keep_columns")


def _write(folder: Path, table: Table, about: dict[str, Any], ids: _Ids) -> dict[str, Any]:
    """Writes a staged folder, whole or not at all, and returns its record."""
    _refuse_strange(folder)
    temp = temp_path(folder)
    with _output_errors(folder), _removed_after(temp):
        _remove_leftovers(folder)
        temp.mkdir(parents=True)
        parts = _write_parts(temp, table)
        rows = sum(part["rows"] for part in parts)
        if not rows:
            raise InputError(
                f"Empty dataset: {shown(about['folder'])} holds no rows. "
                "Check the path and the split."
            )
        record = {"format": _FORMAT_VERSION, **about, "rows": rows, "parts": parts}
        record["unique_ids"] = ids.check(temp, record)
        (temp / RECORD_NAME).write_text(_record_text(record), encoding="utf-8")
        _sync(temp)
        _swap(temp, folder)
    log.info("staged folder=%s rows=%d parts=%d", folder, rows, len(parts))
    return record


def _write_parts(folder: Path, table: Table) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    batches = table.batches()
    pending = next(batches, None)
    while pending is not None:
        path = folder / f"part-{len(parts):05d}.parquet"
        rows = size = 0
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            while pending is not None and size < _PART_BYTES:
                group, pending = _group(pending, batches)
                writer.write_table(pa.Table.from_batches(group, table.schema))
                rows += sum(batch.num_rows for batch in group)
                size += sum(batch.nbytes for batch in group)
        parts.append({"name": path.name, "rows": rows, "bytes": path.stat().st_size})
    return parts


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
    old = temp.with_name(f"{temp.name}.old.tmp")
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
    for path in folder.iterdir():
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


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Names the final folder in what the system says of writing; reading has its own errors."""
    try:
        yield
    except OSError as error:
        raise output_error(error, folder) from error


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Returns the record of a staged folder that is whole, else None."""
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
        whole = record["format"] == _FORMAT_VERSION and all(
            (folder / part["name"]).stat().st_size == part["bytes"] for part in record["parts"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _refuse_strange(folder: Path) -> None:
    """Refuses to replace a folder that staging did not make."""
    with _output_errors(folder):
        is_ours = not folder.exists() or (folder / RECORD_NAME).exists()
        if not is_ours and any(folder.iterdir()):
            raise OutputError(
                f"Not a staged dataset: {folder} has files but no {RECORD_NAME}. "
                "Move it away, or set dataset.name."
            )


def _refuse_another_dataset(record: dict[str, Any], source: str, home: str, folder: Path) -> None:
    if (record["source"], record["folder"]) != (source, home):
        raise OutputError(
            f"Another dataset of that name: {folder} was staged from {record['source']} of "
            f"{record['folder']}, this one is {source} of {home}. Set dataset.name to tell them "
            "apart, or remove the folder."
        )


def _is_untouched(record: dict[str, Any], home: str, paths: Sequence[Path]) -> bool:
    """Whether the sources look as they did, by name, size and time: no byte of them is read."""
    if record["folder"] != home:
        return False
    return _identity(paths) == _without(record.get("files", []), "sha256")


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _identity(paths: Sequence[Path]) -> list[dict[str, Any]]:
    home = _common_folder(paths)
    files = []
    for path in paths:
        with reading(path):
            stat = path.stat()
        name = path.relative_to(home).as_posix()
        files.append({"name": name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return files


def _with_digests(paths: Sequence[Path]) -> list[dict[str, Any]]:
    files = _identity(paths)
    for path, entry in zip(paths, files, strict=True):
        with reading(path), path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


def _without(files: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in file.items() if name != key} for file in files]


def _changes(record: dict[str, Any], identity: Sequence[dict[str, Any]]) -> str:
    before = {file["name"]: file["sha256"] for file in record["files"]}
    after = {file["name"]: file["sha256"] for file in identity}
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return ",".join(changed[:5]) or "order"
