"""What the keys of a section may hold, in words: for errors, flags and documentation."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chatspace.spec.section import NAME_PATTERN
from chatspace.spec.slurm import TIME_PATTERN

_PATTERN_WORDS = {
    TIME_PATTERN: "a walltime such as 02:00:00, 1-12:00:00 or 90 (minutes)",
    NAME_PATTERN: "letters, digits, `.`, `_` and `-`, 63 at most, a letter or digit first",
}

_OTHER_WORDS = {bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place that takes a value: its type, and the constraints on it.

    Attributes:
        types: the types that it takes, `None` left out.
        optional: whether null is allowed.
        field: the key's field; the constraints and the docstring are there.
    """

    types: tuple[Any, ...]
    optional: bool
    field: FieldInfo

    @property
    def model(self) -> type[BaseModel] | None:
        """The section that stands here, if one does."""
        return next((t for t in self.types if _is_model(t)), None)

    @property
    def pattern(self) -> str | None:
        """Regular expression that a text must match."""
        pattern = _constraint(self.field, "pattern")
        return None if pattern is None else str(pattern)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of a `Literal`."""
        return tuple(str(a) for t in self.types if get_origin(t) is Literal for a in get_args(t))

    @property
    def is_text(self) -> bool:
        """Whether any text, and nothing but text, stands here."""
        return self.types == (str,)

    @property
    def is_list(self) -> bool:
        """Whether a list stands here."""
        return any(get_origin(t) is tuple for t in self.types)

    @property
    def is_mapping(self) -> bool:
        """Whether keys of the user's own choice stand here."""
        return any(get_origin(t) is dict for t in self.types)

    def item(self) -> Slot:
        """Returns the slot of a list's items or a mapping's values."""
        inner = next((t for t in self.types if get_origin(t) in (tuple, dict)), None)
        args = get_args(inner)
        kind = Any if not args else args[1] if get_origin(inner) is dict else args[0]
        return _slot(kind, FieldInfo(annotation=kind))

    def words(self) -> str:
        """Returns what is expected here, such as `an integer greater than 0`."""
        return " or ".join(dict.fromkeys(self._type_words(t) for t in self.types))

    def _type_words(self, type_: Any) -> str:
        if get_origin(type_) is Literal:
            return self._choice_words(len(self.types) > 1)
        if get_origin(type_) is tuple:
            return "a list such as [a, b]"
        if _is_model(type_) or get_origin(type_) is dict:
            return "indented `key: value` lines"
        if type_ in (int, float):
            return ("an integer" if type_ is int else "a number") + self._range_words()
        return self._text_words() if type_ is str else _OTHER_WORDS.get(type_, "any value")

    def _choice_words(self, among_others: bool) -> str:
        listed = ", ".join(self.choices)
        return listed if among_others or len(self.choices) == 1 else f"one of {listed}"

    def _text_words(self) -> str:
        if self.pattern is not None:
            docstring = (self.field.description or f"text matching {self.pattern}").rstrip(".")
            return _PATTERN_WORDS.get(self.pattern, docstring)
        return "text that is not empty" if _constraint(self.field, "min_length") else "text"

    def _range_words(self) -> str:
        above, least = _constraint(self.field, "gt"), _constraint(self.field, "ge")
        most, below = _constraint(self.field, "le"), _constraint(self.field, "lt")
        ends = [f"up to {most}"] if most is not None else []
        ends += [f"below {below}"] if below is not None else []
        if above is not None:
            return " and ".join([f" greater than {above}", *ends])
        if least is not None:
            return " and ".join([f" of {least} or more", *ends])
        return f" {ends[0]}" if ends else ""


def slot_at(model: type[BaseModel], key: tuple[str | int, ...]) -> Slot | None:
    """Returns the slot at a dotted key, or None where the model has no such key."""
    slot: Slot | None = None
    inside: type[BaseModel] | None = model
    for part in key:
        if inside is not None:
            field = inside.model_fields.get(str(part))
            slot = _slot(field.annotation, field) if field else None
        elif slot is not None and (slot.is_list or slot.is_mapping):
            slot = slot.item()
        else:
            slot = None
        if slot is None:
            return None
        inside = slot.model
    return slot


def model_at(model: type[BaseModel], key: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Returns the section model at a key, `model` itself at the empty key."""
    slot = slot_at(model, key)
    return model if not key else slot.model if slot else None


def leaves(
    model: type[BaseModel], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Slot]]:
    """Yields every key that takes a value, with its slot, in the order of the model."""
    for name, field in model.model_fields.items():
        slot = _slot(field.annotation, field)
        if slot.model is not None:
            yield from leaves(slot.model, (*at, name))
        else:
            yield (*at, name), slot


def _slot(annotation: Any, field: FieldInfo) -> Slot:
    flat = list(_flatten(annotation))
    kinds = tuple(t for t in flat if t is not types.NoneType)
    return Slot(types=kinds, optional=len(kinds) < len(flat) or kinds == (Any,), field=field)


def _flatten(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _flatten(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _flatten(part)
    else:
        yield annotation


def _constraint(field: FieldInfo, name: str) -> Any:
    found = (getattr(part, name, None) for part in field.metadata)
    return next((value for value in found if value is not None), None)


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)
