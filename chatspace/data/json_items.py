"""Objects of a JSON file, read one after another: a file of any size takes the memory of one.

A file is a list of objects, or splits as keys with a list of objects each, or one object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from chatspace.data.opening import at_line, opened
from chatspace.data.tables import Row
from chatspace.errors import InputError
from chatspace.spec.document import shown

_CHUNK_CHARS = 1 << 20
# An error so near to the end of what is read may be only that the value goes on.
_NEAR_CHARS = 16
_ONE_OBJECT = " If the file is one object, write it as [{...}]."


@dataclass(frozen=True, slots=True)
class JsonItem:
    """One object of a file; `split` is the key that its list stands under, None without one."""

    split: str | None
    row: Row


def _ignored(split: str) -> None:
    """Says nothing of a split without objects."""


def json_items(path: Path, empty: Callable[[str], None] = _ignored) -> Iterator[JsonItem]:
    """Yields the objects of a JSON file, in order.

    Args:
        path: the file.
        empty: told the key of each split that has no objects.

    Raises:
        InputError: the file is no JSON, no UTF-8, damaged, or holds something else than objects.
    """
    with opened(path) as raw:
        text = _Text(path, raw)
        first = text.peek()
        if first == "[":
            yield from (JsonItem(None, row) for row in _list(text))
        elif first == "{":
            yield from _object(text, empty)
        elif first:
            raise InputError(
                f"Not objects: {at_line(path, text.line)} begins with {shown(first)}; expected "
                "[{...}, ...] or {split: [{...}, ...]}. Convert it to one of those."
            )
        if text.peek():
            raise InputError(
                f"Invalid JSON: {at_line(path, text.line)}; more after the end. If each line is an "
                "object, it is jsonl."
            )


def json_rows(path: Path, split: str | None) -> Iterator[Row]:
    """Yields the objects of one split of a JSON file."""
    return (item.row for item in json_items(path) if item.split == split)


def _object(text: _Text, empty: Callable[[str], None]) -> Iterator[JsonItem]:
    """Yields the objects of each split, or the file's one object."""
    if not text.holds_splits():
        yield JsonItem(None, _row(text))
        return
    text.take("{")
    while text.peek() != "}":
        split, _ = text.value()
        text.take(":")
        if text.peek() != "[":
            raise InputError(
                f"Not a split: {at_line(text.path, text.line)}; {shown(split)} is no list of "
                f"objects, as the keys before it are. Remove it.{_ONE_OBJECT}"
            )
        n_rows = 0
        for row in _list(text, _ONE_OBJECT):
            yield JsonItem(str(split), row)
            n_rows += 1
        if not n_rows:
            empty(str(split))
        text.comma("}")
    text.take("}")


def _list(text: _Text, advice: str = "") -> Iterator[Row]:
    text.take("[")
    while text.peek() != "]":
        yield _row(text, advice)
        text.comma("]")
    text.take("]")


def _row(text: _Text, advice: str = "") -> Row:
    text.peek()
    line = text.line
    value, size = text.value()
    if not isinstance(value, dict):
        raise InputError(
            f"Not an object: {at_line(text.path, line)} holds {shown(value, 40)}; expected "
            f'{{"key": value, ...}}. Repair or remove it.{advice}'
        )
    return Row(line=line, size=size, values=value)


class _Text:
    """A place in a JSON text, moving forward; what was passed is forgotten."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self.path, self.line = path, 1
        self._file = TextIOWrapper(raw, encoding="utf-8-sig")
        self._decoder = json.JSONDecoder()
        self._held, self._at, self._ended = "", 0, False
        self._is_looking = False

    def peek(self) -> str:
        """Returns the next character that is no blank, nothing at the end."""
        while True:
            while self._at < len(self._held):
                char = self._held[self._at]
                if char not in " \t\r\n":
                    return char
                self.line += char == "\n"
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> None:
        """Goes past a character that has to come now."""
        found = self.peek()
        if found != wanted:
            what = f"{shown(found)} stands where" if found else "it ends where"
            raise self._invalid(f"{what} {shown(wanted)} is expected", self.line)
        self._at += 1

    def comma(self, end: str) -> None:
        """Goes past the comma between two values, or stays at the end of their list."""
        if self.peek() != end:
            self.take(",")
            if self.peek() == end:
                raise self._invalid("a comma before the end", self.line)

    def value(self) -> tuple[Any, int]:
        """Returns the value that begins here, and its length."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated") or error.pos + _NEAR_CHARS > len(
                    self._held
                )
                if goes_on and self._more():
                    continue
                line = self.line + self._held.count("\n", self._at, error.pos)
                raise self._invalid(error.msg, line) from error
            except RecursionError as error:
                raise self._invalid("nested too deeply", self.line) from error
            if end == len(self._held) and self._more():  # a number may go on
                continue
            size = end - self._at
            self.line += self._held.count("\n", self._at, end)
            self._at = end
            return value, size

    def holds_splits(self) -> bool:
        """Whether the object that begins here has a list of objects under its first key."""
        here = self._at, self.line
        self._is_looking = True
        try:
            self.take("{")
            if self.peek() != '"':
                return False
            self.value()
            self.take(":")
            if self.peek() != "[":
                return False
            self.take("[")
            return self.peek() in ("{", "]")
        finally:
            self._at, self.line = here
            self._is_looking = False

    def _more(self) -> bool:
        """Reads on, as much again as is held; False at the end of the file."""
        if self._ended:
            return False
        if self._at > _CHUNK_CHARS and not self._is_looking:
            self._held, self._at = self._held[self._at :], 0
        try:
            chunk = self._file.read(max(_CHUNK_CHARS, len(self._held)))
        except UnicodeDecodeError as error:
            raise InputError(
                f"Not UTF-8: {shown(self.path)}, after line {self.line}. Convert it to UTF-8."
            ) from error
        self._held += chunk
        self._ended = not chunk
        return not self._ended

    def _invalid(self, why: str, line: int) -> InputError:
        return InputError(
            f"Invalid JSON: {at_line(self.path, line)}; {why}. Repair it; lines that are an object "
            "each are jsonl."
        )
