"""From YAML, flags or Python values to a run spec; a refusal is one line that names its place."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from chatspace.errors import SpecError
from chatspace.kinds import KINDS
from chatspace.spec.base import RunSpec
from chatspace.spec.document import Document, Key, dotted, parse_value, read_document, shown
from chatspace.spec.fields import Slot, slot_at
from chatspace.spec.problems import nearest, spec_error, unknown_key
from chatspace.spec.slurm import TIME_PATTERN

Model = TypeVar("Model", bound=BaseModel)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Reads a run spec; the model is the one of its `kind`.

    Args:
        path: YAML file.
        overrides: `key=value` texts that replace values, such as `slurm.time=02:00:00`.

    Raises:
        SpecError: the file, a key, a value or an override is wrong.
    """
    document = read_document(path)
    model = _model_of(_with_overrides(document, overrides, RunSpec, only="kind"))
    return validate(model, _with_overrides(document, overrides, model))


def spec_from_mapping(
    values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()
) -> RunSpec:
    """Returns the run spec of nested Python values; paths and tuples are taken as text and lists.

    Args:
        values: what a YAML would say.
        where: the caller, as errors name it.
        overrides: as in `load_spec`.

    Raises:
        SpecError: a key or a value is wrong.
    """
    document = Document(values=_plain(values), where=where)
    model = _model_of(document)
    return validate(model, _with_overrides(document, overrides, model))


def validate(model: type[Model], document: Document) -> Model:
    """Returns `document` as a `model`.

    Empty sections (`slurm:` with nothing below) are taken as absent, and a walltime given as a
    number is minutes, as in sbatch.

    Raises:
        SpecError: a key or a value is wrong.
    """
    try:
        return model.model_validate(_prepared(document.values, model, ()))
    except ValidationError as error:
        raise spec_error(error, model, document) from error


def _model_of(document: Document) -> type[RunSpec]:
    known = ", ".join(KINDS)
    kind = document.values.get("kind")
    if kind is None:
        raise SpecError(
            f"Missing key: {document.place(('kind',))} kind; known: {known}. Add `kind: embed`."
        )
    if not isinstance(kind, str) or kind not in KINDS:
        place = "--set" if document.override(("kind",)) else document.place(("kind",))
        guess = nearest(str(kind), KINDS) or " Choose one of them."
        raise SpecError(f"Unknown kind: {place} kind={shown(kind)}; known: {known}.{guess}")
    model: type[RunSpec] = KINDS[kind].spec_model()
    return model


def _with_overrides(
    document: Document, overrides: Sequence[str], model: type[BaseModel], only: str | None = None
) -> Document:
    values = copy.deepcopy(document.values)
    origins: dict[Key, str] = {}
    for text in overrides:
        key, raw = _split_override(text)
        if only is not None and key != (only,):
            continue
        origins[key] = text
        slot = slot_at(model, key)
        if slot is None:
            raise SpecError(unknown_key(_first_unknown(model, key), model, document, text))
        _assign(values, key, _override_value(raw, slot, text), text)
    return Document(values=values, where=document.where, lines=document.lines, overrides=origins)


def _split_override(text: str) -> tuple[Key, str]:
    name, equals, raw = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise SpecError(
            f"Invalid override: --set {shown(text)}; expected key=value. "
            "Write it like --set slurm.time=02:00:00."
        )
    return key, raw


def _override_value(raw: str, slot: Slot, text: str) -> Any:
    try:
        value = parse_value(raw, f"--set {shown(text)}")
    except SpecError:
        # Text that only looks like a list or a mapping, such as the glob `[ab]*.csv`.
        if slot.is_text:
            return raw
        raise
    # The shell has eaten the quotes that would make `--set slurm.account=1234` text in a file.
    if slot.is_text and value is not None and not isinstance(value, str):
        return raw
    return value


def _first_unknown(model: type[BaseModel], key: Key) -> Key:
    return next(key[:n] for n in range(1, len(key) + 1) if slot_at(model, key[:n]) is None)


def _assign(values: dict[str, Any], key: Key, value: Any, text: str) -> None:
    inside = values
    for depth, part in enumerate(key[:-1], start=1):
        if inside.get(str(part)) is None:
            inside[str(part)] = {}
        inside = inside[str(part)]
        if not isinstance(inside, dict):
            above = dotted(key[:depth])
            raise SpecError(
                f"Invalid override: --set {text}; {above} is {shown(inside)}, which has no keys. "
                f"Set {above} as a whole."
            )
    inside[str(key[-1])] = value


def _prepared(values: Mapping[str, Any], model: type[BaseModel], at: Key) -> dict[str, Any]:
    prepared: dict[str, Any] = {}
    for name, value in values.items():
        slot = slot_at(model, (name,))
        if slot is not None and value is None and (slot.model or slot.is_mapping):
            continue
        if slot is not None and slot.model and isinstance(value, Mapping):
            value = _prepared(value, slot.model, (*at, name))  # noqa: PLW2901
        elif slot is not None and slot.pattern == TIME_PATTERN and type(value) is int:
            value = str(value)  # noqa: PLW2901
        prepared[name] = value
    return prepared


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
