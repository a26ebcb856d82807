"""One split that is staged, and what a run asks of it: its columns, and ids that stand once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.inventory import check_id_column, check_unique_ids, inventory
from chatspace.data.parquet import check_column
from chatspace.data.staged_folder import Record, read_record, update_record
from chatspace.data.texts import needed_leaves
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown

log = logging.getLogger(__name__)

ColumnCheck = Callable[[pa.Schema, Path | str], None]
# Says where a row of a split stands in its source, as errors name it.
Place = Callable[[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSplit:
    """Parquet files of one split.

    Attributes:
        files: absolute paths, in order.
        identity: what the rows come from, the same in every workspace: name relative to the
            common folder, bytes, and sha256 (what was fetched or converted) or mtime_ns (local
            Parquet); for hub datasets name, subset, split and commit.
        revision: commit of a hub dataset or repository, where it is known.
        folder: that it was staged to, None where it is used where it lies.
        place: says where a row of what was converted stands in its source [a row of a file].
    """

    files: list[Path]
    identity: list[dict[str, Any]]
    revision: str | None
    folder: Path | None = None
    place: Place | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids that a run asks for, and where a row of the split stands in its source."""

    dataset: DatasetSection
    place: Place

    def check(self, folder: Path, record: Mapping[str, Any]) -> dict[str, int]:
        """Returns in how many first rows of a staged folder each id column is known to be unique.

        Raises:
            InputError: an id is null or stands twice.
        """
        known: dict[str, int] = record.get("unique_ids", {})
        id_field, rows = self.dataset.id_field, record["rows"]
        if self.dataset.max_rows is not None:
            rows = min(rows, self.dataset.max_rows)
        if self.dataset.source == "parquet":  # planning does it, whether local or fetched
            return known
        # Where rows are picked, planning looks at the ids of these.
        if id_field is None or self.dataset.picks_rows or known.get(id_field, 0) >= rows:
            return known
        log.info("checking ids=%s rows=%d", id_field, rows)
        files = inventory([folder / part["name"] for part in record["parts"]], self.dataset)
        check_unique_ids(files, id_field, rows, place=self.place, scratch=folder.parent)
        return {**known, id_field: rows}


@dataclass(frozen=True, slots=True)
class Goal:
    """The folder of a split's name, and what is asked of what is staged before it gets a name."""

    folder: Path
    check: ColumnCheck
    ids: Ids


def staged_before(folder: Path, record: Record, ids: Ids) -> StagedSplit:
    """Returns a folder that is staged, after checking the ids that no earlier run asked for.

    Raises:
        InputError: an id is null or stands twice.
    """
    known = ids.check(folder, record)
    # While the ids were looked at, another process may have staged something newer.
    if known != record.get("unique_ids", {}) and read_record(folder) == record:
        update_record(folder, {**record, "unique_ids": known})
    return staged_in(folder, record, ids)


def staged_in(folder: Path, record: Record, ids: Ids) -> StagedSplit:
    """Returns the files of a staged folder."""
    return StagedSplit(
        files=[folder / part["name"] for part in record["parts"]],
        identity=record["identity"],
        revision=record["revision"],
        folder=folder,
        place=None if ids.dataset.source == "parquet" else ids.place,
    )


def check_columns(
    schema: pa.Schema, path: Path | str, *, dataset: DatasetSection, keep_columns: Sequence[str]
) -> None:
    """Refuses before anything is written what the inventory would refuse after.

    Raises:
        InputError: the schema is empty, or a column is missing or of a wrong type.
    """
    if not schema.names:
        raise InputError(
            f"Empty dataset: {shown(path)} holds no rows. Check the path and the split."
        )
    needed_leaves(dataset, schema, path)
    if dataset.id_field is not None:
        id_type = check_column(schema, dataset.id_field, path, "dataset.id_field")
        check_id_column(id_type, dataset.id_field, path)
    for name in keep_columns:
        check_column(schema, name, path, "output.keep_columns")
