"""The keys of a run spec as command line flags, and the flags' values as a run spec again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from chatspace.errors import SpecError
from chatspace.spec.document import parse_scalar, parse_value, shown
from chatspace.spec.fields import Slot, leaves

FlagType = Literal["text", "integer", "number", "boolean", "choice", "mapping"]

# Decided by the command itself.
_LEFT_OUT = {("kind",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One key of a run spec as an option of a command.

    Attributes:
        key: dotted key, `encode.tokens_per_batch`.
        names: option names, the shortest first: `--tokens-per-batch` where nothing else is called
            so, and always `--encode-tokens-per-batch`.
        off_names: names that give a boolean the value false, `--no-normalize`.
        parameter: the key as a Python identifier, `encode_tokens_per_batch`.
        type: what one value is; a mapping takes `KEY=VALUE`.
        is_list: whether the option may be given several times (lists and mappings).
        choices: the allowed texts of a choice.
        default: what holds where the option is not given, in words; None where the docstring says.
    """

    key: str
    names: tuple[str, ...]
    off_names: tuple[str, ...]
    parameter: str
    type: FlagType
    is_list: bool
    choices: tuple[str, ...]
    default: str | None
    help: str


def iter_flags(model: type[BaseModel], taken: Collection[str] = ()) -> list[Flag]:
    """Returns a flag for each key of a run spec model, `kind` left out, in the model's order.

    Args:
        model: of a kind of run.
        taken: short names that mean something else in the command, such as `--workers`.
    """
    slots = [(key, slot) for key, slot in leaves(model) if key not in _LEFT_OUT]
    full = {_option(key) for key, _ in slots}
    uses = Counter(key[-1] for key, _ in slots)
    flags = []
    for key, slot in slots:
        short = _option(key[-1:])
        is_free = uses[key[-1]] == 1 and short not in {*full, *taken} - {_option(key)}
        names = (short, _option(key)) if is_free else (_option(key),)
        flags.append(_flag(key, slot, tuple(dict.fromkeys(names))))
    return flags


def values_from_flags(given: Mapping[Flag, Any]) -> dict[str, Any]:
    """Returns the nested values of a run spec, for `spec_from_mapping`.

    Args:
        given: value of each flag; None and empty lists mean that the flag was not given.

    Raises:
        SpecError: a mapping flag is not `KEY=VALUE`.
    """
    nested: dict[str, Any] = {}
    for flag, value in given.items():
        if value is None or (flag.is_list and not value):
            continue
        *sections, name = flag.key.split(".")
        inside = nested
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[name] = _plain(flag, value)
    return nested


def _flag(key: tuple[str, ...], slot: Slot, names: tuple[str, ...]) -> Flag:
    type_, choices = _type_of(slot)
    return Flag(
        key=".".join(key),
        names=names,
        off_names=tuple(f"--no-{n.removeprefix('--')}" for n in names)
        if type_ == "boolean"
        else (),
        parameter="_".join(key),
        type=type_,
        is_list=slot.is_list or slot.is_mapping,
        choices=choices,
        default=_default_words(slot),
        help=slot.field.description or f"{key[-1].replace('_', ' ').capitalize()} of the job.",
    )


def _type_of(slot: Slot) -> tuple[FlagType, tuple[str, ...]]:
    if slot.is_mapping:
        return "mapping", ()
    if slot.choices:
        return "choice", (*slot.choices, *(("true", "false") if bool in slot.types else ()))
    kinds = slot.item().types if slot.is_list else slot.types
    names: dict[Any, FlagType] = {bool: "boolean", int: "integer", float: "number"}
    return names.get(kinds[0], "text"), ()


def _default_words(slot: Slot) -> str | None:
    default = slot.field.default
    if default is PydanticUndefined or default is None or default == ():
        return None
    return str(default).lower() if isinstance(default, bool) else str(default)


def _option(key: Sequence[str]) -> str:
    return "--" + "-".join(key).replace("_", "-")


def _plain(flag: Flag, value: Any) -> Any:
    if flag.type == "mapping":
        return dict(_pair(flag, text) for text in value)
    if flag.is_list:
        return list(value)
    if flag.type == "choice" and value in ("true", "false"):
        return parse_scalar(value)
    return value


def _pair(flag: Flag, text: str) -> tuple[str, Any]:
    name, equals, raw = text.partition("=")
    if not equals or not name:
        raise SpecError(
            f"Invalid value: {flag.names[0]} {shown(text)}; expected KEY=VALUE. "
            f"Write it like {flag.names[0]} NAME=1."
        )
    return name, raw if flag.key == "container.env" else parse_value(
        raw, f"{flag.names[0]} {shown(text)}"
    )
