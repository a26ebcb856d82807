"""The section of a run spec that says which rows are read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from chatspace.layout import path_component
from chatspace.spec.section import Section, Strings

Source = Literal["huggingface", "parquet", "jsonl", "csv", "arrow"]


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
