"""Validation errors as one line that says what, where, what is allowed, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from chatspace.errors import SpecError
from chatspace.spec.base import RunSpec
from chatspace.spec.document import Document, Key, dotted, shown
from chatspace.spec.fields import Slot, leaves, model_at, slot_at

_ABSENT = object()
_MAX_KNOWN = 30
# Share of letters that two spellings have in common; guesses below it surprise more than they help.
_LEAST_RATIO = 0.65
_LEAST_PART = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    line: int
    is_typo: bool  # goes before the missing key that it is the reason for
    text: str


def spec_error(error: ValidationError, model: type[BaseModel], document: Document) -> SpecError:
    """Returns the one-line error for what pydantic refused: the first by line, the rest counted."""
    problems: dict[Key, _Problem] = {}
    for detail in error.errors(include_url=False):
        key = _real_key(detail["loc"], detail["type"], document.values)
        problems.setdefault(key, _problem(detail["type"], detail, key, model, document))
    ordered = sorted(problems.values(), key=lambda problem: (problem.line, not problem.is_typo))
    more = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
    return SpecError(ordered[0].text + more)


def unknown_key(
    key: Key, model: type[BaseModel], document: Document, origin: str | None = None
) -> str:
    """Returns the error text for a key that its section does not have."""
    section = model_at(model, key[:-1])
    known = list(section.model_fields) if section else []
    name = str(key[-1])
    origin = origin or document.override(key)
    where = f"--set {origin}" if origin else f"{document.place(key)} {dotted(key)}"
    listed = ", ".join(known[:_MAX_KNOWN]) or "none, a value stands here"
    near = near_name(name, known)
    prefix = dotted(key[:-1])
    if near is not None:
        guess = f"{prefix}.{near}" if origin and prefix else near
        return f"Unknown key: {where}; known: {listed}. Did you mean {guess}?"
    elsewhere = [".".join(at) for at, _ in leaves(model) if at[-1] == name]
    advice = f"Did you mean {elsewhere[0]}?" if elsewhere else "Remove it or correct its name."
    return f"Unknown key: {where}; known: {listed}. {advice}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean x?` for the known name nearest to `name`, else nothing."""
    near = near_name(name, known)
    return f" Did you mean {near}?" if near is not None else ""


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is spelt most like `name`, None where none is near.

    Case does not count, nor an extension that both have. Where none is spelt alike, a name of which
    a word begins with `name` is near.
    """
    names = list(known)
    ratios = [_ratio(*_without_shared_end(name.lower(), other.lower())) for other in names]
    best = max(ratios, default=0.0)
    if best >= _LEAST_RATIO:
        return names[ratios.index(best)]
    part = re.compile(rf"(?<![^\W_]){re.escape(name)}", re.IGNORECASE)
    holding = (other for other in names if len(name) >= _LEAST_PART and part.search(other))
    return next(holding, None)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _without_shared_end(one: str, other: str) -> tuple[str, str]:
    """Returns two names without the extensions that both have: `.parquet` makes none alike."""
    while True:
        (one_begin, dot, end), (other_begin, _, other_end) = (
            one.rpartition("."),
            other.rpartition("."),
        )
        if not dot or end != other_end or not (one_begin and other_begin):
            return one, other
        one, other = one_begin, other_begin


def _problem(
    kind: str, detail: Any, key: Key, model: type[BaseModel], document: Document
) -> _Problem:
    where = f"{'--set' if document.override(key) else document.place(key)} {dotted(key)}".rstrip()
    if kind == "extra_forbidden":
        text = unknown_key(key, model, document)
    elif kind == "missing":
        slot = slot_at(model, key)
        words = slot.words() if slot else "a value"
        text = f"Missing key: {where}; expected {words}. Add it."
    elif kind in ("value_error", "assertion_error"):
        text = f"Invalid section: {where}; {detail['ctx']['error']}."
    else:
        text = _invalid_value(where, _value_at(document.values, key), model, key, detail["msg"])
    return _Problem(line=document.line(key), is_typo=kind == "extra_forbidden", text=text)


def _invalid_value(
    where: str, value: object, model: type[BaseModel], key: Key, message: str
) -> str:
    slot = slot_at(model, key)
    words = f"expected {slot.words()}" if slot else message
    advice = _advice(value, slot) if slot else None
    if advice is None:
        is_spec = issubclass(model, RunSpec)
        advice = "Correct it; `chatspace schema` lists all keys." if is_spec else "Correct it."
    given = "null" if value is None else shown(value)
    return f"Invalid value: {where}={given}; {words}. {advice}"


def _advice(value: object, slot: Slot) -> str | None:
    if isinstance(value, str) and slot.choices:
        return nearest(value, slot.choices).strip() or None
    if value is None:
        return "Write a value, or remove the line to take the default."
    if slot.is_text and isinstance(value, (bool, int, float)):
        return "Put it in quotes."
    if slot.is_list and isinstance(value, str):
        return f"Write [{shown(value)}]."
    return _integer_advice(value) if int in slot.types else None


def _integer_advice(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    if isinstance(value, str) and re.fullmatch(r"[\d_, ]*\d[\d_, ]*", value):
        return f"Write {re.sub(r'[_, ]', '', value)} without quotes."
    return None


def _real_key(loc: tuple[Any, ...], kind: str, values: object) -> Key:
    """Returns the part of a location that names keys; pydantic adds the types of a union."""
    key: Key = ()
    for part in loc:
        inner = _value_at(values, (*key, part))
        if inner is _ABSENT:
            return (*key, part) if kind == "missing" else key
        key = (*key, part)
    return key


def _value_at(values: object, key: Key) -> object:
    for part in key:
        if isinstance(values, dict):
            values = values.get(part, _ABSENT)
        elif isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return _ABSENT
    return values
