"""What was paid for and is in no shard yet: one append-only file for each shard in progress.

    runs/{run_id}/requests/{split}/shard-00042.journal

A line of JSON says of what shard it is; then, for each answer, a line of JSON and the vectors as
little-endian float32. An answer is on disk before the next one is asked for by the same thread, so
a task that is killed repeats at most the requests that were under way. The file is removed when its
shard is committed: it never holds more than the vectors of one shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from chatspace.atomic import output_error
from chatspace.errors import ModelError
from chatspace.openai_embed.answers import FloatArray

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ShardAnswers:
    """The vectors of one shard as they come in; safe to add to from several threads.

    Attributes:
        n_texts: rows that want a vector.
        vectors: (n_texts, dim) float32, None before the first answer.
        is_known: (n_texts,) whether a row needs no further request.
        cut: rows whose text was cut to the model's limit.
        skipped: rows that are too long and were left out.
        n_chars: characters that were sent of rows that the endpoint found too long.
        n_tokens: tokens that the endpoint counted.
    """

    n_texts: int
    vectors: FloatArray | None = None
    is_known: Any = field(init=False)
    cut: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    n_chars: dict[int, int] = field(default_factory=dict)
    n_tokens: int = 0

    def __post_init__(self) -> None:
        self.is_known = np.zeros(self.n_texts, np.bool_)  # (n_texts,)

    @property
    def dim(self) -> int | None:
        """Length of the vectors, None before the first answer."""
        return None if self.vectors is None else int(self.vectors.shape[1])

    @property
    def left(self) -> list[int]:
        """Rows that still want a vector."""
        return [int(row) for row in np.flatnonzero(~self.is_known)]

    @property
    def is_whole(self) -> bool:
        """Whether no row wants a vector any more."""
        return bool(self.is_known.all())

    def add(self, record: Record) -> None:
        """Takes an answer over."""
        rows = list(record.rows)
        if record.vectors is None:
            self.skipped.update(rows)
        else:
            if self.vectors is None:
                self.vectors = np.zeros((self.n_texts, record.vectors.shape[1]), np.float32)
            self.vectors[rows] = record.vectors
        self.is_known[rows] = True
        self.cut.update(record.cut)
        if record.n_chars is not None:
            self.n_chars.update(dict.fromkeys(rows, record.n_chars))
        self.n_tokens += record.n_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One answer.

    Attributes:
        rows: positions of its inputs among the texts of the shard.
        vectors: (n_rows, dim), None where the rows are left out as too long.
        cut: those of the rows whose text was cut.
        n_chars: characters that were sent of its one row, which the endpoint found too long; None
            for what it took as it was, and in older files.
    """

    rows: Sequence[int]
    vectors: FloatArray | None
    cut: Sequence[int] = ()
    n_tokens: int = 0
    n_chars: int | None = None


class Journal:
    """The file of one shard; what it holds already is in `answers`.

    Args:
        path: the file; made where it is missing.
        owner: hash of the plan.
        texts: what is embedded; a file about other texts is begun anew.
        dim: length of the vectors, None where it is not known yet.

    Raises:
        OutputError: the folder cannot be written.
        ModelError: it holds vectors of another length.
    """

    def __init__(self, path: Path, owner: str, texts: Sequence[str], dim: int | None) -> None:
        self.path = path
        self.answers = ShardAnswers(len(texts))
        self.texts_sha256 = _digest(texts)
        self._lock = threading.Lock()
        head = {"plan_sha256": owner, "texts": self.texts_sha256}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
            end = self._read(head)
            self._file.truncate(end)
            if end == 0:
                self._write(json.dumps(head).encode() + b"\n")
        except OSError as error:
            raise output_error(error, path) from error
        try:
            self._check_length(dim)
        except ModelError:
            self.close()
            raise

    def add(self, record: Record) -> None:
        """Writes an answer down, durably, then adds it to `answers`.

        Raises:
            OutputError: the disk is full or the folder is gone.
            ModelError: its vectors are of another length than those that are there.
        """
        dim = None if record.vectors is None else record.vectors.shape[1]
        payload = b"" if record.vectors is None else record.vectors.astype("<f4").tobytes()
        about = {
            "rows": [int(row) for row in record.rows],
            "cut": [int(row) for row in record.cut],
            "n_tokens": record.n_tokens,
            "dim": dim,
            "crc32": zlib.crc32(payload),
            **({} if record.n_chars is None else {"n_chars": record.n_chars}),
        }
        with self._lock:
            self._check_length(dim)
            try:
                self._write(json.dumps(about).encode() + b"\n" + payload)
            except OSError as error:
                raise output_error(error, self.path) from error
            self.answers.add(record)

    def close(self, *, remove: bool = False) -> None:
        """Closes the file, and removes it where its shard is committed."""
        # What could not be written was told by `add`; closing tries to write it once more.
        with suppress(OSError):
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check_length(self, dim: int | None) -> None:
        """Refuses vectors of another length than the first answer's."""
        held = self.answers.dim
        if dim is not None and held is not None and dim != held:
            raise ModelError(
                f"Vectors of another length: {dim} numbers; {self.path} has answers of {held}. "
                "Serve the model that the run began with, or remove that file to ask for its rows "
                "again."
            )

    def _read(self, head: dict[str, str]) -> int:
        """Takes what is whole into `answers`; returns where the file is to go on."""
        self._file.seek(0)
        if _json_line(self._file.readline()) != head:
            return 0
        end = self._file.tell()
        while (record := self._next()) is not None:
            self.answers.add(record)
            end = self._file.tell()
        log.info("journal path=%s rows=%d", self.path, int(self.answers.is_known.sum()))
        return end

    def _next(self) -> Record | None:
        about = _json_line(self._file.readline())
        if about is None or not {"rows", "cut", "n_tokens", "dim", "crc32"} <= about.keys():
            return None
        rows = about["rows"]
        kept = {"cut": about["cut"], "n_tokens": about["n_tokens"], "n_chars": about.get("n_chars")}
        if about["dim"] is None:
            return Record(rows=rows, vectors=None, **kept)
        payload = self._file.read(len(rows) * about["dim"] * 4)
        is_whole = zlib.crc32(payload) == about["crc32"]
        if not is_whole or self.answers.dim not in (None, about["dim"]):
            return None  # torn, or of another model than the first answer
        vectors = np.frombuffer(payload, "<f4").reshape(len(rows), -1).astype(np.float32)
        return Record(rows=rows, vectors=vectors, **kept)


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _json_line(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
