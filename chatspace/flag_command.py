"""A run spec given as flags: each key of a kind's model becomes an option of a typer command."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from chatspace.errors import SpecError
from chatspace.kinds import KINDS
from chatspace.spec.base import RunSpec
from chatspace.spec.fields import Slot, slot_at
from chatspace.spec.flags import Flag, iter_flags, values_from_flags
from chatspace.spec.loading import spec_from_mapping

# As `chatspace run` has it; a key of a run spec that is called so has its long name alone.
_TAKEN = ("--workers",)


@dataclass(slots=True)
class ParsedFlags:
    """What was given on the command line."""

    spec: RunSpec
    workers: int | None


def parse_flags(kind: str, command: str, arguments: Sequence[str]) -> ParsedFlags:
    """Returns the run spec that the flags describe; `--help` and wrong options end the process.

    Args:
        kind: kind of run.
        command: the command as the help text names it.
        arguments: words after the command.

    Raises:
        SpecError: a key or a value is wrong.
    """
    model = KINDS[kind].spec_model()
    flags = {flag.parameter: flag for flag in iter_flags(model, taken=_TAKEN)}
    parsed: list[ParsedFlags] = []

    def collect(**given: Any) -> None:
        workers = given.pop("workers")
        values = values_from_flags({flags[name]: value for name, value in given.items()})
        values.setdefault("name", _default_name(values))
        _refuse_missing(model, command, flags.values(), given)
        parsed.append(ParsedFlags(spec_from_mapping({"kind": kind, **values}, command), workers))

    parameters = [_parameter(flag) for flag in flags.values()]
    workers = typer.Option(
        *_TAKEN, min=1, help="Slices at the same time [one a GPU; one on a CPU]."
    )
    parameters.append(_keyword("workers", Annotated[int | None, workers]))
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(
        help=f"Run `kind: {kind}` here. Every key of a run spec is a flag.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )(collect)
    app(args=list(arguments), prog_name=command, standalone_mode=bool(_asks_help(arguments)))
    return parsed[0]


def named_spec(kind: str, words: Sequence[str], *, takes: Iterable[str] = _TAKEN) -> str | None:
    """Returns the run spec that stands among the words, and not as the value of an option.

    Args:
        kind: kind of run, whose keys are options.
        words: what stands behind the command.
        takes: further options that take a value.
    """
    flags = iter_flags(KINDS[kind].spec_model())
    with_value = {name for flag in flags if flag.type != "boolean" for name in flag.names}
    with_value.update(takes)
    for before, word in zip(["", *words], words, strict=False):
        is_file = word.endswith((".yaml", ".yml")) and not word.startswith("-")
        if is_file and before not in with_value:
            return word
    return None


def _refuse_missing(
    model: type[RunSpec], command: str, flags: Iterable[Flag], given: Mapping[str, Any]
) -> None:
    """Refuses to go on without a key that every spec has, by the flag that gives it.

    Raises:
        SpecError: one was not given.
    """
    names = {flag.key: flag.names[0] for flag in flags}
    for flag in flags:
        slots = _slots(model, flag.key)
        is_needed = flag.key != "name" and all(slot.field.is_required() for slot in slots)
        if is_needed and given[flag.parameter] is None:
            raise SpecError(
                f"Missing flag: {command} {flag.names[0]}; expected {slots[-1].words()}. Give it, "
                f"with {names['dataset.path']} of local files or {names['dataset.name']} on the "
                f"hub. See `{command} --help`."
            )


def _slots(model: type[RunSpec], key: str) -> list[Slot]:
    """Returns the slots of a key and of the sections that it stands in, outermost first."""
    parts = tuple(key.split("."))
    found = [slot_at(model, parts[: n + 1]) for n in range(len(parts))]
    return [slot for slot in found if slot is not None]


def _asks_help(arguments: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in arguments)


def _default_name(values: dict[str, Any]) -> str:
    dataset = values.get("dataset", {})
    text = str(dataset.get("name") or dataset.get("path") or "embed")
    word = text.rstrip("/").split("/")[-1].split(".")[0]
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in word).strip("-") or "embed"


def _parameter(flag: Flag) -> inspect.Parameter:
    names = list(flag.names)
    if flag.type == "boolean":
        names = ["/".join((name, off)) for name, off in zip(names, flag.off_names, strict=True)]
    # The docstring of a key may say it better: `[120, or a quarter of a short walltime]`.
    is_said = flag.default is None or re.search(rf"\[{re.escape(flag.default)}[],]", flag.help)
    default = "" if is_said else f" [{flag.default}]"
    choices = f" One of {', '.join(flag.choices)}." if flag.choices else ""
    metavar = {"mapping": "KEY=VALUE", "integer": "N"}.get(flag.type)
    option = typer.Option(*names, help=f"{flag.help}{choices}{default}", metavar=metavar)
    kind: Any = {"integer": int, "number": float, "boolean": bool}.get(flag.type, str)
    return _keyword(
        flag.parameter, Annotated[(list[kind] if flag.is_list else kind) | None, option]
    )


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
