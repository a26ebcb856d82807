"""Opening Parquet files and judging their columns, with errors that a person can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.data.formats import begin_of, told_format, what_it_is
from chatspace.errors import InputError
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

_MAX_LISTED = 40


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns what Arrow and the operating system say while reading `path` into an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"No such file: {shown(Path(path))}. Check dataset.path, or run setup again."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(_damage(Path(path), error)) from error


@contextmanager
def open_parquet(path: Path | str, *, encoded: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Opens one Parquet file for streaming: no more than a page per column is read ahead.

    Args:
        path: the file.
        encoded: columns, which it has, whose texts come as the dictionary that the file stores.

    Raises:
        InputError: the file is missing, truncated, damaged, or no Parquet.
    """
    with reading(path):
        # pre_buffer would hold whole row groups, and all of them; a buffered stream holds 1 MiB.
        file = pq.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, read_dictionary=list(encoded)
        )
    with file:
        yield file


def check_column(schema: pa.Schema, name: str, path: Path | str, key: str) -> pa.DataType:
    """Returns the type of the column `name`, which stands under `key` in the run spec.

    Raises:
        InputError: there is no such column, or two of that name.
    """
    found = schema.get_all_field_indices(name)
    if len(found) == 1:
        return schema.field(found[0]).type
    if found:
        raise InputError(
            f"Ambiguous column: {key}={name!r}; {shown(Path(path))} has {len(found)} columns of "
            "that name. Rename them."
        )
    names = [str(column) for column in schema.names]
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    advice = nearest(name, names) or f" Set {key} to one of them."
    raise InputError(f"Missing column: {key}={name!r}; {shown(Path(path))} has {listed}.{advice}")


def is_text(type_: pa.DataType) -> bool:
    """Whether a column of this type holds text; one that is null throughout counts as text."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_null(type_)
    )


def is_conversation(type_: pa.DataType) -> bool:
    """Whether a column of this type can hold turns: a list of structs, the reverse, or JSON."""
    if pa.types.is_struct(type_):
        return all(is_list(field.type) for field in type_)
    return is_text(type_) or (is_list(type_) and pa.types.is_struct(type_.value_type))


def check_text_column(type_: pa.DataType, name: str, path: Path | str, conversation: bool) -> None:
    """Refuses a column that does not hold what is embedded.

    Raises:
        InputError: the column is no text, or holds no turns where turns are asked for.
    """
    place = f"dataset.text_field={name!r}; it is {shown_type(type_)} in {shown(Path(path))}"
    if conversation and not is_conversation(type_):
        raise InputError(
            f"Not a conversation: {place}, expected a list of turns with role and content. "
            "Name another column, or leave conversation (extract_first_assistant) out."
        )
    if not conversation and not is_text(type_):
        raise InputError(f"Not text: {place}, expected a string. {_text_advice(type_, name)}.")


def _text_advice(type_: pa.DataType, name: str) -> str:
    """Returns what to write for a column that holds its text further down."""
    if is_conversation(type_):
        return "Set conversation: first_assistant, all_turns or last_user"
    if is_list(type_) and is_text(type_.value_type):
        return f"Name its items, {name}[] or {name}[0]"
    if pa.types.is_struct(type_):
        inner = [field.name for field in type_ if is_text(field.type)]
        return f"Name one of its fields, such as {name}.{inner[0]}" if inner else "Name another"
    return "Name a column of text"


def shown_type(type_: pa.DataType) -> str:
    """Returns a column's type on one line, not too long."""
    text = " ".join(str(type_).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def leaf_columns(schema: pa.Schema, name: str) -> range:
    """Returns the indices of the Parquet columns that make up the top-level column `name`."""
    index = schema.get_field_index(name)
    before = sum(n_leaves(schema.field(i).type) for i in range(index))
    return range(before, before + n_leaves(schema.field(index).type))


def n_leaves(type_: pa.DataType) -> int:
    """Returns how many Parquet columns a column of this type is stored as."""
    if pa.types.is_struct(type_):
        return sum(n_leaves(field.type) for field in type_)
    if pa.types.is_map(type_):
        return n_leaves(type_.key_type) + n_leaves(type_.item_type)
    if is_list(type_):
        return n_leaves(type_.value_type)
    return 1


def is_list(type_: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    )


def _damage(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        why = os.strerror(error.errno)
        return f"Cannot read: {shown(path)}; {why}. Check the path and its permissions."
    why = " ".join(str(error).split())
    size = path.stat().st_size if path.exists() else 0
    begin = begin_of(path)
    place = f"{shown(path)} ({size:,} bytes)"
    if begin.startswith(b"PAR1"):
        return (
            f"Truncated or damaged Parquet: {place}; {why[:120]}. "
            "Copy it again, or take it out of the dataset."
        )
    found = told_format(begin, path.name, "parquet")
    if found is None:
        return (
            f"Not a Parquet file: {place}; it does not begin as one. Copy it again, or set "
            "dataset.source to what it is: jsonl, csv, arrow or text."
        )
    return f"Not a Parquet file: {place}; {what_it_is(found, path.name)}."
