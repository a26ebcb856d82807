"""The Arrow type of JSON values, found value by value; nothing is converted to make it fit."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_INT64 = range(-(2**63), 2**63)
_SCALARS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "an integer": pa.int64(),
    "a number": pa.float64(),
    "true or false": pa.bool_(),
}
_KINDS: dict[type, str] = {str: "text", float: "a number", list: "a list", dict: "an object"}


class TypeConflict(Exception):
    """A value does not fit what was seen before; the message says where and why."""


class UnfitKey(Exception):
    """A key of an object cannot name a column; the message says which and why."""


class Shape:
    """What was seen at one place of many JSON objects; null fits all, integers fit numbers."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.fields: dict[str, Shape] = {}
        self.item: Shape | None = None

    def add(self, value: Any, key: str = "") -> None:
        """Takes one more value into account.

        Raises:
            TypeConflict: the value's kind is another than before.
            UnfitKey: a key is no Unicode text.
        """
        if value is None:
            return
        kind = _kind(value, key)
        if self.kind is None or (self.kind, kind) == ("an integer", "a number"):
            self.kind = kind
        elif self.kind != kind and (self.kind, kind) != ("a number", "an integer"):
            raise TypeConflict(f"{key} is {kind} here and {self.kind} before")
        if kind == "an object":
            for name, inner in value.items():
                if name not in self.fields:
                    _check_key(name)
                    self.fields[name] = Shape()
                self.fields[name].add(inner, f"{key}.{name}" if key else name)
        elif kind == "a list":
            self.item = self.item or Shape()
            for inner in value:
                self.item.add(inner, f"{key}[]")

    def type(self) -> pa.DataType | None:
        """Returns the Arrow type; None for an always empty object, which Parquet cannot hold."""
        if self.kind is None:
            return pa.null()
        if self.kind == "a list":
            inner = self.item.type() if self.item else pa.null()
            return None if inner is None else pa.list_(inner)
        if self.kind == "an object":
            inner_types = {name: shape.type() for name, shape in self.fields.items()}
            kept = [pa.field(name, type_) for name, type_ in inner_types.items() if type_]
            return pa.struct(kept) if kept else None
        return _SCALARS[self.kind]


def _check_key(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnfitKey(f"{name!a} holds half a surrogate pair, which has no UTF-8") from error


def _kind(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        if value not in _INT64:
            raise TypeConflict(f"{key} is an integer of more than 64 bits")
        return "an integer"
    return _KINDS[type(value)]
