"""The folder of one split's shards: each file whole or absent, each with its owner in its metadata.

There is no other completion marker: a shard is done when its file is there, can be opened, and says
in its own footer that it belongs to this plan and covers these rows. A whole shard is never
replaced: where two executions of one slice meet, the first to finish a shard has written it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import atomic_path, output_error
from chatspace.errors import IncompleteError, OutputError
from chatspace.shards.chunks import count_rows
from chatspace.shards.records import Owner, ShardRecord, ShardSpan, shard_file_name
from chatspace.shards.table import vector_norms
from chatspace.shards.vectors import encoding_of

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

METADATA_KEY = b"chatspace"
DAMAGE_ADVICE = "`chatspace verify RUN` says how it is done again."
SHARD_NAME = re.compile(r"^shard-(\d{5}|[1-9]\d{5,})\.parquet$")
TEMP_NAME = re.compile(r"^\.shard-(\d{5,})\.parquet\.(?P<host>.+)-(?P<pid>\d+)\.tmp$")
FOREIGN_HOST_TEMP_AGE_S = 3600.0


def consecutive(span: ShardSpan) -> Ints:
    """Returns the numbers of a shard's rows where a run reads the first rows of its split."""
    return np.arange(span.row_start, span.row_stop, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ShardStore:
    """Reads and writes the shards of one split.

    Args:
        folder: where the shard files lie.
        place: the same folder relative to the workspace, for records that outlive a move.
        owner: plan, run and split that every file must name.
        compression: Parquet compression of new files.
        attempt: name of this execution, for the records of what it writes.
        row_numbers: gives the numbers in the split of a shard's input rows, ascending.
    """

    folder: Path
    place: str
    owner: Owner
    compression: str = "zstd"
    attempt: str = "local"
    row_numbers: Callable[[ShardSpan], Ints] = consecutive

    def path(self, span: ShardSpan) -> Path:
        """Returns where the shard's file lies."""
        return self.folder / span.file_name

    def is_done(self, span: ShardSpan) -> bool:
        """Tells whether the shard's file is whole; a damaged one counts as absent.

        Raises:
            OutputError: the file belongs to another plan, or may not be read.
        """
        return self.read_footer(span) is not None

    def read_footer(self, span: ShardSpan) -> dict[str, Any] | None:
        """Returns what the shard's file says of itself, None if it is absent or damaged.

        Raises:
            OutputError: the file belongs to another plan, or may not be read.
        """
        path = self.path(span)
        footer = read_shard_footer(path)
        if footer is None:
            refuse_forbidden(path)
            return None
        self._check_owner(path, footer)
        covers = (footer["shard_index"], footer["row_start"], footer["row_stop"])
        if covers != (span.index, span.row_start, span.row_stop):
            log.warning("shard covers other rows path=%s covers=%s", path, covers)
            return None
        return footer

    def commit(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> ShardRecord:
        """Writes one shard: temp file in the same folder, fsync, rename, fsync of the folder.

        The bytes depend on the plan and the rows alone, so that a shard that is written again is
        the same file. A shard that is there by now stays as it is, for its checksum may be
        published: the record is then the one of that file.

        Args:
            span: the rows that the shard answers for.
            table: embedded rows in input order, or their chunks.
            skipped: rows of the span that are not in the table, by reason.
            truncated: rows that were cut to the model's limit.

        Raises:
            OutputError: the file cannot be written; it is not there, nor is a part of it. Or it is
                there and belongs to another plan.
        """
        n_rows, n_chunks = count_rows(table)
        assert n_rows + sum(skipped.values()) == span.n_rows, (n_rows, n_chunks, skipped, span)
        footer = self._footer(span, table, skipped, truncated)
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(footer)})
        try:
            with atomic_path(self.path(span)) as temp:
                pq.write_table(
                    table,
                    temp,
                    compression=self.compression,
                    use_dictionary=_PLAIN_COLUMNS,
                    write_page_checksum=True,  # so that whoever reads it notices flipped bits
                )
                size, digest = temp.stat().st_size, sha256_of(temp)
                self._claim(temp, span)
        except OutputError:
            # Another execution was first, and its gather may even have removed our temp file.
            there = self.adopt(span)
            if there is None:
                raise
            log.warning("shard was there already path=%s", self.path(span))
            return there
        return self._record(footer, bytes_=size, sha256=digest, created_at=utc_now())

    def adopt(self, span: ShardSpan) -> ShardRecord | None:
        """Returns the record of a whole shard that no task manifest tells of, None if it is absent.

        This is how a shard is accounted for whose task was killed between the rename of the file
        and the writing of its manifest.
        """
        footer = self.read_footer(span)
        if footer is None:
            return None
        stat = self.path(span).stat()
        written = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
        return self._record(
            footer,
            bytes_=stat.st_size,
            sha256=sha256_of(self.path(span)),
            created_at=written,
            attempt="unrecorded",
        )

    def remove_stale_temps(self, spans: Iterable[ShardSpan], *, finished: bool = False) -> int:
        """Removes temp files of these shards that no living writer can still need.

        Args:
            spans: the shards looked at.
            finished: every shard of the spans is there, so that no temp file of them has a use.

        Returns:
            The number of files removed.
        """
        wanted = {span.index for span in spans}
        if not self.folder.is_dir():
            return 0
        removed = 0
        for entry in os.scandir(self.folder):
            match = TEMP_NAME.match(entry.name)
            if match and int(match[1]) in wanted and (finished or _is_abandoned(entry, match)):
                Path(entry.path).unlink(missing_ok=True)
                removed += 1
        return removed

    def set_aside(self, span: ShardSpan) -> Path:
        """Renames a damaged shard's file, so that the shard is done again; returns its new name.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.path(span)
        aside = path.with_name(f".{path.name}.damaged")
        try:
            path.rename(aside)
        except OSError as error:
            raise output_error(error, path) from error
        return aside

    def _claim(self, temp: Path, span: ShardSpan) -> None:
        """Gives the written file its name unless a whole shard has it.

        A hard link is made by the file server itself, which knows of a file that another node wrote
        a moment ago; a look at a network file system's cached folder does not. The rename that
        follows finds both names to be one file, and changes nothing.

        Raises:
            OutputError: a whole shard is there.
        """
        path = self.path(span)
        with temp.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temp)
            return
        except FileExistsError:
            pass
        except OSError as error:
            log.debug("no hard links path=%s error=%s", path, error)
        if self.is_done(span):
            raise OutputError(f"Shard exists: {path}; it is whole. Run it again.")

    def _footer(
        self, span: ShardSpan, table: pa.Table, skipped: dict[str, int], truncated: int
    ) -> dict[str, Any]:
        encoding = encoding_of(table.schema)
        low, high = vector_norms(table)
        n_rows, n_chunks = count_rows(table)
        return {
            "schema_version": 1,
            "plan_sha256": self.owner.plan_sha256,
            "run_id": self.owner.run_id,
            "split": self.owner.split,
            "shard_index": span.index,
            "row_start": span.row_start,
            "row_stop": span.row_stop,
            "rows": n_rows,
            "rows_skipped": dict(sorted(skipped.items())),
            "rows_truncated": truncated,
            "embedding_dim": encoding.dim,
            "min_norm": low,
            "max_norm": high,
            **({"vectors": encoding.describe()} if encoding.is_quantised else {}),
            **({"chunks": n_chunks} if n_chunks is not None else {}),
        }

    def _check_owner(self, path: Path, footer: dict[str, Any]) -> None:
        theirs = (footer.get("plan_sha256"), footer.get("split"))
        if theirs != (self.owner.plan_sha256, self.owner.split):
            raise OutputError(
                f"Output of another run: {path} belongs to {footer_owner(footer)}, this run is "
                f"{self.owner.run_id}. Choose another workspace or dataset.name, or move "
                f"{path.parent} away."
            )

    def _record(
        self,
        footer: dict[str, Any],
        *,
        bytes_: int,
        sha256: str,
        created_at: str,
        attempt: str | None = None,
    ) -> ShardRecord:
        return ShardRecord(
            path=f"{self.place}/{shard_file_name(footer['shard_index'])}",
            shard_index=footer["shard_index"],
            row_start=footer["row_start"],
            row_stop=footer["row_stop"],
            rows=footer["rows"],
            rows_skipped=footer["rows_skipped"],
            rows_truncated=footer["rows_truncated"],
            bytes=bytes_,
            sha256=sha256,
            embedding_dim=footer["embedding_dim"],
            min_norm=footer["min_norm"],
            max_norm=footer["max_norm"],
            created_at=created_at,
            attempt=attempt or self.attempt,
            chunks=footer.get("chunks"),
        )


# Dictionary pages pay for the columns that repeat; ids, texts and vectors do not.
_PLAIN_COLUMNS = ["source", "dataset", "split", "metadata", "model", "created_at", "run_id"]


def read_shard_footer(path: Path, *, is_logged: bool = True) -> dict[str, Any] | None:
    """Returns what a shard file says of itself, None if it is absent, damaged or forbidden.

    A whole Parquet file that another program wrote says nothing: {}.

    Args:
        path: the file.
        is_logged: whether a damaged one is a warning of the log.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (FileNotFoundError, PermissionError):  # the latter: see `refuse_forbidden`
        return None
    except (pa.ArrowInvalid, OSError) as error:
        level = logging.WARNING if is_logged else logging.DEBUG
        log.log(level, "damaged shard path=%s error=%s", path, error)
        return None
    try:
        footer = json.loads(metadata.get(METADATA_KEY, b"{}"))
    except ValueError:
        return {}
    return footer if isinstance(footer, dict) else {}


def refuse_forbidden(path: Path) -> None:
    """Refuses a shard that may not be read: it may well be whole, so it is not done again.

    Raises:
        OutputError: the file is there, and its permissions or those of its folder keep us out.
    """
    try:
        path.open("rb").close()
    except PermissionError as error:
        raise OutputError(
            f"Shard may not be read: {path}; {error.strerror}. Give yourself the permission "
            f"(chmod u+r), or ask its owner for it."
        ) from error
    except OSError:  # absent or damaged, which others tell
        return


def unreadable_shard(path: Path, error: Exception) -> IncompleteError:
    """Returns what to raise of a shard whose rows cannot be read.

    Raises:
        OutputError: it may not be read, and so may well be whole.
    """
    refuse_forbidden(path)
    if isinstance(error, FileNotFoundError):
        return IncompleteError(f"Missing shard: {path}; No such file. {DAMAGE_ADVICE}")
    reason = " ".join(str(error).split()).rstrip(".")
    return IncompleteError(f"Damaged shard: {path}; {reason}. {DAMAGE_ADVICE}")


def footer_owner(footer: dict[str, Any]) -> str:
    """Returns whose shard it is, as errors say it."""
    run_id, split = footer.get("run_id"), footer.get("split")
    return f"run {run_id} split {split}" if run_id else "no run of chatspace"


def shard_indexes(folder: Path) -> list[int]:
    """Returns the indexes of the shard files in a folder, ascending, without opening any."""
    try:
        with os.scandir(folder) as entries:
            matches = [SHARD_NAME.match(entry.name) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for match in matches if match)


def first_foreign_shard(
    folder: Path, plan_sha256: str, indexes: Sequence[int] | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Returns one shard in `folder` that belongs to another plan, and its footer.

    Only the first and the last are opened: a folder is refused as soon as it has a foreign shard,
    so plans do not alternate in it. Each shard is looked at again when it is written or read.

    Args:
        folder: that of a split.
        plan_sha256: the plan whose shards belong there.
        indexes: of the shards in the folder, ascending [it is listed].
    """
    indexes = shard_indexes(folder) if indexes is None else indexes
    for index in dict.fromkeys((*indexes[:1], *indexes[-1:])):
        path = folder / shard_file_name(index)
        footer = read_shard_footer(path, is_logged=False)
        if footer is not None and footer.get("plan_sha256") != plan_sha256:
            return path, footer
    return None


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def utc_now() -> str:
    """Returns the time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_abandoned(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    """Tells whether the writer of a temp file is gone: dead on this host, or silent for an hour."""
    if match["host"] == platform.node():
        return not Path(f"/proc/{match['pid']}").exists() if Path("/proc/self").exists() else False
    try:
        return time.time() - entry.stat().st_mtime > FOREIGN_HOST_TEMP_AGE_S
    except FileNotFoundError:
        return False
