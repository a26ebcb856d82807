"""What of a row is embedded: a column, a place within one, turns of a conversation, a template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from chatspace.data.conversations import RENDERINGS, is_turns
from chatspace.data.fields import FieldPath, find_field
from chatspace.data.jsonable import python_values
from chatspace.data.parquet import check_column, check_text_column, leaf_columns
from chatspace.data.templates import UnfitRow, row_template
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.wording import counted

_INVALID = object()
_SHOWN_CHARS = 40
Place = Callable[[int], str]


class RowText(NamedTuple):
    """The text of a row, or why there is none.

    Attributes:
        text: what is embedded; None where the row is skipped.
        reason: `null_text`, `empty_text`, `invalid_utf8`, `no_assistant_turn`, `no_user_turn` or
            `no_turns` of a row that is skipped.
        original: the conversation that the text is a part of.
    """

    text: str | None
    reason: str = ""
    original: Any = None


def needed_leaves(dataset: DatasetSection, schema: pa.Schema, path: Path | str) -> tuple[int, ...]:
    """Returns the indices of the Parquet columns that the texts are made from.

    Args:
        dataset: says what is embedded.
        schema: of the file.
        path: the file, as errors name it.

    Raises:
        InputError: a column is missing or does not hold what is embedded.
        SpecError: the template is wrong, or names no column of the file.
    """
    if dataset.template is not None:
        names = [str(name) for name in schema.names]
        columns = row_template(dataset.template).columns(names, shown(Path(path)))
        for name in columns:
            check_column(schema, name, path, "dataset.template")
        return tuple(leaf for name in columns for leaf in leaf_columns(schema, name))
    return tuple(_field(dataset, schema, path).leaves)


def row_texts(
    dataset: DatasetSection, batch: pa.RecordBatch, path: str, place: Place
) -> Iterator[RowText]:
    """Yields the text of each row of a batch that has the needed columns.

    Args:
        dataset: says what is embedded.
        batch: rows of one file.
        path: that file.
        place: says where a row of the batch stands, as errors name it.

    Raises:
        InputError: the template fails on a row.
    """
    if dataset.template is not None:
        return _rendered(dataset.template, batch, path, place)
    field = _field(dataset, batch.schema, path)
    values = python_values(batch.column(field.column), _INVALID)
    if dataset.turns is not None:
        find, reason = RENDERINGS[dataset.turns]
        return (_turns(field, value, find, reason) for value in values)
    return (_plain(field, value) for value in values)


def check_turns(dataset: DatasetSection, batch: pa.RecordBatch, path: str) -> None:
    """Refuses a column none of whose first values is a conversation; blank ones tell nothing.

    Args:
        dataset: says which turns are embedded.
        batch: the first rows of a file.
        path: that file.

    Raises:
        InputError: there are values, and each is text that is no JSON, or of another shape.
    """
    field = _field(dataset, batch.schema, path)
    column = python_values(batch.column(field.column), _INVALID)
    picked = [field.pick(value) for value in column if value is not _INVALID]
    values = [found[0] for found in picked if found and found[0] not in (None, "")]
    if values and not any(is_turns(value) for value in values):
        raise InputError(
            f"Not a conversation: dataset.text_field={dataset.text_field!r}; the first "
            f"{counted(len(values), 'value')} of {shown(Path(path))} have no turns with role and "
            f"content, such as {_begin(values[0])}. Name another column, or leave conversation "
            "(extract_first_assistant) out."
        )


def _begin(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shown(text[:_SHOWN_CHARS] + ("..." if len(text) > _SHOWN_CHARS else ""))


def _field(dataset: DatasetSection, schema: pa.Schema, path: Path | str) -> FieldPath:
    name = dataset.text_field
    field = find_field(schema, name, path, "dataset.text_field")
    check_text_column(field.type, name, path, dataset.turns is not None)
    if field.is_each and dataset.turns is not None:
        raise InputError(
            f"Not a conversation: dataset.text_field={name!r}; `[]` gives many in each row of "
            f"{shown(Path(path))}. Name one, such as {name.replace('[]', '[0]', 1)}."
        )
    return field


def _plain(field: FieldPath, value: Any) -> RowText:
    if value is _INVALID:
        return RowText(None, "invalid_utf8")
    if not field.steps:
        return RowText(None, "null_text") if value is None else _not_blank(value)
    found = field.pick(value)
    return _not_blank("\n".join(filter(None, found))) if found else RowText(None, "null_text")


def _turns(field: FieldPath, value: Any, find: Callable[[Any], str | None], reason: str) -> RowText:
    if value is _INVALID:
        return RowText(None, "invalid_utf8")
    found = field.pick(value)
    if not found:
        return RowText(None, "null_text")
    text = find(found[0])
    if text is None:
        return RowText(None, reason)
    # JSON escapes can carry half of a surrogate pair.
    return RowText(text, "", found[0]) if _encodes(text) else RowText(None, "invalid_utf8")


def _rendered(source: str, batch: pa.RecordBatch, path: str, place: Place) -> Iterator[RowText]:
    template = row_template(source)
    names = template.columns([str(name) for name in batch.schema.names], shown(Path(path)))
    columns = [python_values(batch.column(name), _INVALID) for name in names]
    for offset, values in enumerate(zip(*columns, strict=True)):
        if any(value is _INVALID for value in values):
            yield RowText(None, "invalid_utf8")
            continue
        try:
            text = template.render(dict(zip(names, values, strict=True)))
        except UnfitRow as error:
            raise InputError(
                f"Template fails: dataset.template in {place(offset)}; {error}. "
                "Guard it, such as `{% if ... is defined %}`, or correct the row."
            ) from error
        yield _not_blank(text) if _encodes(text) else RowText(None, "invalid_utf8")


def _not_blank(text: str) -> RowText:
    is_blank = not text or text.isspace()
    return RowText(None, "empty_text") if is_blank else RowText(str(text))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
