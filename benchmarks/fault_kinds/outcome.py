"""The shards of a run against those of the undisturbed one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fault_kinds.arena import Arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a run left on disk.

    Attributes:
        vectors: hash of a row's vector by the row's id.
        count: rows by id.
        files: sha256 of each shard, read from disk.
        published: sha256 of each shard, as the published manifest says.
    """

    vectors: dict[str, bytes]
    count: Counter[str]
    files: dict[str, str]
    published: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Rows that are not as in the undisturbed run.

    Attributes:
        lost: ids that are absent.
        twice: surplus rows: an id that stands twice, or that the undisturbed run does not have.
        different: rows whose vector has other bytes.
        files: shard files whose bytes are not those of the undisturbed run, or whose published
            checksum is not the file's.
    """

    lost: int
    twice: int
    different: int
    files: int

    @property
    def none(self) -> bool:
        """Whether nothing differs."""
        return not (self.lost or self.twice or self.different or self.files)


def read_rows(arena: Arena) -> Rows:
    """Reads every shard and the published manifest; needs no help of the project's own code."""
    vectors: dict[str, bytes] = {}
    count: Counter[str] = Counter()
    files: dict[str, str] = {}
    for path in arena.shards:
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        table = pq.ParquetFile(path).read(columns=["id", "embedding"])
        ids = table["id"].to_pylist()
        count.update(ids)
        for row_id, vector in zip(ids, table["embedding"].combine_chunks(), strict=True):
            vectors[row_id] = hashlib.blake2b(vector.values.to_numpy().tobytes()).digest()
    return Rows(vectors=vectors, count=count, files=files, published=_published(arena))


def compare(rows: Rows, undisturbed: Rows) -> Difference:
    """Returns how rows differ from those of the undisturbed run."""
    common = rows.vectors.keys() & undisturbed.vectors.keys()
    names = rows.files.keys() | undisturbed.files.keys()
    return Difference(
        lost=len(undisturbed.vectors.keys() - rows.vectors.keys()),
        twice=rows.count.total() - len(common),
        different=sum(rows.vectors[i] != undisturbed.vectors[i] for i in common),
        files=sum(
            not rows.files.get(n) == undisturbed.files.get(n) == rows.published.get(n)
            for n in names
        ),
    )


def _published(arena: Arena) -> dict[str, str]:
    paths = list((arena.workspace / "indexes").rglob("manifest.json"))
    shards = [s for path in paths for s in json.loads(path.read_text("utf-8"))["shards"]]
    return {Path(shard["path"]).name: shard["sha256"] for shard in shards}
