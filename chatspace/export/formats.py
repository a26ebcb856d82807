"""The formats of `chatspace export`, and what each is given."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace import __version__
from chatspace.atomic import read_json_object
from chatspace.errors import InputError
from chatspace.export.arrays import METRICS, PART_BYTES, IndexOptions, write_numpy
from chatspace.export.faiss_index import write_faiss
from chatspace.export.place import NOTE_FILE, refuse_taken
from chatspace.export.source import VectorSource
from chatspace.export.tables import write_datasets, write_lancedb, write_parquet
from chatspace.export.usearch_index import write_usearch
from chatspace.spec.problems import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        write: makes it; takes `IndexOptions` too where `metrics` names any.
        reads: how a person opens it, a line of Python; `{}` stands for the path.
        file: what of the folder is opened.
        one_file: whether it is a file, not a folder.
        metrics: how its vectors can be compared, where that is decided when it is made.
        picks_index: whether the sort of index can be chosen.
    """

    write: Callable[..., None]
    reads: str
    file: str = "."
    one_file: bool = False
    metrics: tuple[str, ...] = ()
    picks_index: bool = False


FORMATS: dict[str, Format] = {
    "parquet": Format(write=write_parquet, reads="pyarrow.parquet.ParquetFile({})", one_file=True),
    "datasets": Format(write=write_datasets, reads="datasets.load_from_disk({})"),
    "numpy": Format(write=write_numpy, reads='numpy.load({}, mmap_mode="r")', file="vectors.npy"),
    "faiss": Format(
        write=write_faiss,
        reads="faiss.read_index({})",
        file="index.faiss",
        metrics=METRICS,
        picks_index=True,
    ),
    "usearch": Format(
        write=write_usearch,
        reads="usearch.index.Index.restore({})",
        file="index.usearch",
        metrics=METRICS,
    ),
    "lancedb": Format(write=write_lancedb, reads='lancedb.connect({}).open_table("vectors")'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is to be written, checked as far as that goes without the run.

    Attributes:
        to: name of the format.
        out: path of the file or folder.
        index: sort of index [flat].
        metric: how vectors are compared [cosine].
        force: replace an earlier export.
        part_bytes: see `IndexOptions`.
        free_bytes: see `IndexOptions`.
    """

    to: str
    out: Path
    index: str | None = None
    metric: str | None = None
    force: bool = False
    part_bytes: int = PART_BYTES
    free_bytes: int | None = None

    def check(self) -> None:
        """Refuses what cannot be written, before anything is read.

        Raises:
            InputError: an unknown format or metric, or an option that the format does not have.
            OutputError: something stands at the path.
        """
        if self.to not in FORMATS:
            raise InputError(
                f"Unknown format: --to {self.to}; known: {', '.join(FORMATS)}."
                f"{nearest(self.to, FORMATS) or ' Choose one.'}"
            )
        format_ = FORMATS[self.to]
        if self.index is not None and not format_.picks_index:
            raise InputError(f"No choice of index: --to {self.to} --index; only faiss has one.")
        if self.metric is not None and not format_.metrics:
            raise InputError(
                f"No metric: --to {self.to} --metric; it keeps vectors and compares none. Leave "
                "--metric out."
            )
        if self.metric is not None and self.metric not in METRICS:
            raise InputError(
                f"Unknown metric: --metric {self.metric}; known: {', '.join(METRICS)}."
                f"{nearest(self.metric, METRICS) or ' Choose one.'}"
            )
        refuse_taken(self.out, force=self.force, one_file=format_.one_file)

    def write(self, source: VectorSource) -> None:
        """Writes the rows of `source`, whole or not at all.

        Raises:
            InputError: the metric does not fit the run's vectors.
            OutputError: it cannot be written there.
            UnfitEnvironmentError: a library or memory is missing.
        """
        self.check()
        format_ = FORMATS[self.to]
        options = IndexOptions(
            index=self.index or "flat",
            metric=self.metric or "cosine",
            part_bytes=self.part_bytes,
            free_bytes=self.free_bytes,
        )
        if options.metric == "hamming" and source.encoding.dtype != "binary":
            raise InputError(
                f"No bits: --metric hamming; the run stores {source.encoding.dtype}. Leave it "
                "out, or run with output.dtype: binary."
            )
        arguments = [options] if format_.metrics else []
        format_.write(source, self.out, self._note(source, options), *arguments)

    def how_to_read(self) -> str:
        """Returns a line of Python that opens what was written."""
        if FORMATS[self.to].one_file:
            return FORMATS[self.to].reads.format(_quoted(str(self.out)))
        note = read_json_object(self.out / NOTE_FILE)
        file: str = note["file"]
        # An export in parts is opened by a pattern, in which the folder's name is none.
        folder = Path(glob.escape(str(self.out))) if "*" in file else self.out
        line: str = note["read"]
        return line.replace(_quoted(file), _quoted(str(folder / file)))

    def _note(self, source: VectorSource, options: IndexOptions) -> dict[str, Any]:
        format_ = FORMATS[self.to]
        return {
            "format": self.to,
            "tool_version": __version__,
            "run_id": source.plan.run_id,
            "plan_sha256": source.plan.plan_sha256,
            "model": source.plan.model["name"],
            "splits": source.splits,
            "rows": source.rows,
            "missing_shards": source.n_missing,
            "vectors": source.encoding.describe(),
            **({"metric": options.metric} if format_.metrics else {}),
            **({"index": options.index} if format_.picks_index else {}),
            **({} if format_.one_file else self._reading(format_)),
        }

    def _reading(self, format_: Format) -> dict[str, str]:
        """Returns what is opened inside the folder and how, unless its writer says otherwise."""
        line = format_.reads
        if self.metric == "hamming":
            line = line.replace("read_index(", "read_index_binary(")
        return {"file": format_.file, "read": line.format(_quoted(format_.file))}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
