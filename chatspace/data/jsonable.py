"""Input columns as one JSON object a row: valid JSON whatever the columns hold."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa

_BROKEN = "\ufffd"  # stands where a text was not UTF-8


def json_objects(columns: dict[str, list[Any]], n_rows: int) -> list[str]:
    """Returns a JSON object for each row; dates become ISO 8601, NaN null, bytes text or base64.

    Args:
        columns: Python values of each column.
        n_rows: length of every column.
    """
    if not columns:
        return ["{}"] * n_rows
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return [_object(dict(zip(names, values, strict=True))) for values in rows]


def python_values(column: pa.Array, broken: Any = _BROKEN) -> list[Any]:
    """Returns a column as Python values; `broken` stands for text that is no UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_python_value(scalar, broken) for scalar in column]


def _python_value(scalar: pa.Scalar, broken: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return broken


def _object(row: dict[str, Any]) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    except (ValueError, TypeError):
        text = json.dumps(_cleaned(row), ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair, as JSON escapes can carry it, has no UTF-8; its escape is valid.
    return text if text.isascii() or _encodes(text) else json.dumps(json.loads(text))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _cleaned(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else _cleaned(_plain(value))


def _plain(value: Any) -> Any:
    """Returns what JSON has for a value of another type; texts where it has nothing better."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Sequence):
        return list(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
