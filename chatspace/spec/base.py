"""Sections that every kind of run spec has: the dataset, the output, the slices, the run itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from chatspace.layout import path_component
from chatspace.spec.section import NAME_PATTERN, Section, Strings
from chatspace.spec.slurm import ContainerSection, SlurmSection

Source = Literal["huggingface", "parquet", "jsonl", "csv", "arrow"]

# Sections that say where and how a run is executed. They are left out of the plan's hash: a longer
# walltime or another number of tasks resumes the same run.
EXECUTION_KEYS = frozenset({"workspace", "slices", "slurm", "container"})


class DatasetSection(Section):
    """Which rows are read, and which of their columns is the text."""

    source: Source
    """Format or origin of the data; everything but parquet is staged as Parquet first."""
    name: str | None = Field(None, min_length=1)
    """Dataset name on the Hugging Face hub, or the label of local files [the path's own name]."""
    path: str | None = Field(None, min_length=1)
    """Local file, folder or glob; `{split}` stands for the split, `~` and `$VAR` are expanded."""
    subset: str | None = Field(None, min_length=1)
    """Configuration of a hub dataset."""
    split: str | None = Field(None, min_length=1)
    """The one split to read ["train"]."""
    splits: Strings | None = None
    """Several splits, each its own array of the run."""
    revision: str | None = None
    """Commit or tag of a hub dataset."""
    text_field: str = Field("text", min_length=1)
    """Column that is embedded: a string, or a list of turns with `extract_first_assistant`."""
    id_field: str | None = None
    """Column with unique ids [`{dataset}/{split}/{row_index}`]."""
    max_rows: int | None = Field(None, gt=0)
    """Read only the first rows of each split."""
    extract_first_assistant: bool = False
    """Embed the first turn whose lower-cased role is assistant or model and that has content."""

    @model_validator(mode="after")
    def _check(self) -> DatasetSection:
        if self.split is not None and self.splits is not None:
            raise ValueError("split and splits exclude each other; keep one")
        if self.splits is not None and (
            not self.splits or len(set(self.splits)) < len(self.splits)
        ):
            raise ValueError("splits must name at least one split and none twice")
        folders = [path_component(name) for name in self.split_names]
        if len(set(folders)) < len(folders):
            raise ValueError("splits must differ in more than / and __, which name one folder")
        if {"", ".", ".."} & {*folders, self.name}:
            raise ValueError("name and split name folders, which cannot be empty, `.` or `..`")
        if self.source == "huggingface" and self.name is None:
            raise ValueError("name is required for source huggingface")
        if self.source != "huggingface" and self.path is None:
            raise ValueError(f"path is required for source {self.source}")
        return self

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits of the run, in order."""
        return self.splits or (self.split or "train",)


class OutputSection(Section):
    """What a shard file holds."""

    rows_per_shard: int = Field(8192, gt=0)
    """Input rows in one shard, the unit of resuming."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored vectors."""
    keep_text: bool = True
    """Store the embedded text beside its vector."""
    keep_columns: Strings = ()
    """Input columns that are stored in `metadata`."""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    """Parquet compression."""


class SlicesSection(Section):
    """How shards are grouped into array tasks; at most one of the three counts."""

    count: int | None = Field(None, gt=0)
    """Number of array tasks of each split."""
    rows_per_slice: int | None = Field(None, gt=0)
    """About this many rows for each array task."""
    max_tasks: int | None = Field(None, gt=0)
    """At most this many array tasks of each split, one shard or more for each."""
    balance: Literal["bytes", "rows"] = "bytes"
    """What is made equal between tasks: bytes of text, or rows."""

    @model_validator(mode="after")
    def _check(self) -> SlicesSection:
        given = [
            k for k in ("count", "rows_per_slice", "max_tasks") if getattr(self, k) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
        return self


class RunSpec(Section):
    """What a person wrote: the part that all kinds share.

    Attributes:
        UNHASHED: keys of a section that a task needs, but that change no byte of a shard.
    """

    UNHASHED: ClassVar[frozenset[tuple[str, str]]] = frozenset()

    kind: str
    """The sort of run."""
    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run: letters, digits, `.`, `_` and `-`; begins the run id."""
    workspace: str | None = None
    """Root of everything that is written [$CHATSPACE_WORKSPACE, else /workspace]."""
    seed: int = Field(0, ge=0)
    """Seed of everything that draws at random."""
    dataset: DatasetSection
    output: OutputSection = OutputSection()
    slices: SlicesSection = SlicesSection()
    slurm: SlurmSection = SlurmSection()
    container: ContainerSection = ContainerSection()

    def science(self) -> dict[str, Any]:
        """The part that a task needs to make the shards, as plain JSON; it stands in the plan."""
        return self.model_dump(mode="json", exclude=set(EXECUTION_KEYS))

    def hashed(self) -> dict[str, Any]:
        """The part that decides what the shards hold, as plain JSON; it is hashed into the plan."""
        science = self.science()
        for section, key in self.UNHASHED:
            del science[section][key]
        return science
