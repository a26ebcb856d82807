"""The section of a run spec that says which rows are read."""

from __future__ import annotations

import re
from typing import Literal, get_args

from pydantic import Field, model_validator

from chatspace.layout import path_component
from chatspace.spec.sample import SampleSection
from chatspace.spec.secrets import ADVICE, holds_secret
from chatspace.spec.section import Section, Strings

Source = Literal["huggingface", "parquet", "jsonl", "csv", "arrow", "text"]

Conversation = Literal["first_assistant", "all_turns", "last_user"]
TextUnit = Literal["line", "paragraph", "file"]
TEXT_UNITS: tuple[TextUnit, ...] = get_args(TextUnit)
_TEXT_FIELD = "text"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class DatasetSection(Section):
    """Which rows are read, and which of their columns is the text."""

    source: Source
    """Format or origin of the data; everything but parquet is staged as Parquet first."""
    name: str | None = Field(None, min_length=1)
    """Dataset name on the Hugging Face hub, or the label of local files [the path's own name]."""
    path: str | None = Field(None, min_length=1)
    """File, folder or glob, here or at a URL such as `s3://bucket/folder`.

    `{split}` stands for the split; `~` and `$VAR` are expanded.
    """
    subset: str | None = Field(None, min_length=1)
    """Configuration of a hub dataset."""
    split: str | None = Field(None, min_length=1)
    """The one split to read ["train"]."""
    splits: Strings | None = None
    """Several splits, each its own array of the run."""
    revision: str | None = None
    """Commit or tag of a hub dataset."""
    text_field: str = Field(_TEXT_FIELD, min_length=1)
    """Column that is embedded: text, or with `conversation` turns; `meta.title`, `turns[].text`."""
    id_field: str | None = None
    """Column with unique ids [`{dataset}/{split}/{row_index}`]."""
    where: str | None = Field(None, min_length=1)
    """Read only rows for which this DuckDB condition holds, such as `lang = 'en' AND score > 3`.

    `where`, `skip_rows`, `max_rows` and `sample` each take from what the one before it left.
    """
    skip_rows: int | None = Field(None, gt=0)
    """Pass over the first rows of each split."""
    max_rows: int | None = Field(None, gt=0)
    """Read only the first rows of each split."""
    sample: SampleSection | None = None
    """Read only rows that are drawn at random."""
    extract_first_assistant: bool = False
    """Embed the first turn whose lower-cased role is assistant or model and that has content."""
    conversation: Conversation | None = None
    """Which turns of the text field are embedded, where it holds a conversation."""
    template: str | None = Field(None, min_length=1)
    """Text as a Jinja template over a row's columns, instead of the text field."""
    text_unit: TextUnit | None = None
    """What a row is, for source text [line]."""

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

    @model_validator(mode="after")
    def _check_text(self) -> DatasetSection:
        if self.extract_first_assistant and self.conversation not in (None, "first_assistant"):
            raise ValueError(
                "extract_first_assistant and conversation exclude each other; keep one"
            )
        if self.template is not None and (self.turns is not None or self.text_field != _TEXT_FIELD):
            raise ValueError(
                "template excludes text_field, conversation and extract_first_assistant; a "
                "template names its columns itself, such as {{ messages[0].content }}"
            )
        if self.text_unit is not None and self.source != "text":
            raise ValueError(f"text_unit is for source text, not for {self.source}")
        if self.path is not None and holds_secret(self.path):
            raise ValueError(
                "path holds a password, a signature or a token, which plans and logs would show; "
                + ADVICE
            )
        return self

    @property
    def is_remote(self) -> bool:
        """Whether `path` is a URL, which is staged and never read by a task."""
        return self.path is not None and _URL.match(self.path) is not None

    @property
    def turns(self) -> Conversation | None:
        """Which turns are embedded; None where the text field is text."""
        return "first_assistant" if self.extract_first_assistant else self.conversation

    @property
    def picks_rows(self) -> bool:
        """Whether other rows are read than the first ones."""
        return any(key is not None for key in (self.where, self.skip_rows, self.sample))

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits of the run, in order."""
        return self.splits or (self.split or "train",)
