"""The command that embeds a dataset through an OpenAI-compatible endpoint, once it may spend."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from chatspace.commands.arguments import SetOption, set_up_spec
from chatspace.commands.output import say
from chatspace.commands.runs import run_here, show_summary
from chatspace.errors import SpecError
from chatspace.kinds import KINDS

COMMAND = "chatspace embed-dataset"
KIND = "embed_openai"
# What stands beside a file; two of them are keys as well.
_OPTIONS = ("--set", "--execute", "--ask-endpoint", "--sample-rows", "--workers")
_USAGE = f"""Usage: {COMMAND} SPEC.yaml [--execute] [--ask-endpoint] [--sample-rows N]
                                        [--workers N] [--set KEY=VALUE]
   or: {COMMAND} --source parquet --path data.parquet --model-name text-embedding-3-small ...

Without --execute it is a dry run: it says what the run would take and cost.
"""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was given on the command line."""

    spec: Any
    workers: int | None
    path: Path | None = None
    overrides: tuple[str, ...] = ()


def embed_dataset(context: typer.Context) -> None:
    """Embed through OpenAI's API; a dry run without --execute."""
    asked = _asked(context.args)
    if not asked.spec.spending.execute:
        _dry_run(asked, context.args)
        return
    # Before anything is planned, which may take long.
    KINDS[KIND].readiness()(KINDS[KIND].resolve_model()(asked.spec), asked.spec.science())
    # Tasks never fetch what counts their tokens.
    KINDS[KIND].stage_model()(asked.spec, Path(), lambda *_: None)
    done = set_up_spec(asked.spec, asked.path, list(asked.overrides), None)
    show_summary(done.plan, *run_here(done, asked.workers))


def _asked(words: Sequence[str]) -> _Asked:
    from chatspace.flag_command import named_spec, parse_flags

    if not words:
        raise SpecError(
            f"Which dataset? Name a run spec, `{COMMAND} SPEC.yaml`, or give its keys as flags. "
            f"See `{COMMAND} --help`."
        )
    if any(word in ("-h", "--help") for word in words):
        say(_USAGE)
        words = ["--help"]
    if named_spec(KIND, words, takes=("--set", "--sample-rows", "--workers")):
        return _from_file(words)
    if any(word.partition("=")[0] == "--set" for word in words):
        raise SpecError(
            f"--set changes a run spec, and none is named: `{COMMAND} SPEC.yaml --set KEY=VALUE`. "
            f"Without a file the keys are flags, see `{COMMAND} --help`."
        )
    parsed = parse_flags(KIND, COMMAND, words)
    return _Asked(parsed.spec, parsed.workers)


def _from_file(words: Sequence[str]) -> _Asked:
    from chatspace.spec.loading import load_spec

    _refuse_keys(words)
    found: list[_Asked] = []

    def collect(
        spec: Annotated[Path, typer.Argument(metavar="SPEC")],
        set_: SetOption = None,
        execute: Annotated[bool, typer.Option("--execute")] = False,
        ask_endpoint: Annotated[bool, typer.Option("--ask-endpoint")] = False,
        sample_rows: Annotated[int | None, typer.Option("--sample-rows", min=0)] = None,
        workers: Annotated[int | None, typer.Option("--workers", min=1)] = None,
    ) -> None:
        # Without --execute a spec that says so is looked at all the same: this command asks first.
        overrides = [*(set_ or []), f"spending.execute={str(execute).lower()}"]
        if ask_endpoint:
            overrides.append("spending.ask_endpoint=true")
        if sample_rows is not None:
            overrides.append(f"spending.sample_rows={sample_rows}")
        loaded = load_spec(spec, set_ or [])
        if loaded.kind != KIND:
            raise SpecError(
                f"Wrong kind: {spec} kind={loaded.kind}; this command is for kind: {KIND}. "
                f"Use `chatspace run {shlex.quote(str(spec))}`."
            )
        loaded = load_spec(spec, overrides)
        found.append(_Asked(loaded, workers, spec, tuple(overrides)))

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(collect)
    app(args=list(words), prog_name=COMMAND, standalone_mode=False)
    return found[0]


def _refuse_keys(words: Sequence[str]) -> None:
    """Refuses flags that are keys of the spec: a file has them.

    Raises:
        SpecError: one is given.
    """
    from chatspace.spec.flags import iter_flags

    flags = iter_flags(KINDS[KIND].spec_model())
    keys = {name: flag.key for flag in flags for name in (*flag.names, *flag.off_names)}
    for name in (word.partition("=")[0] for word in words):
        if name in keys and name not in _OPTIONS:
            raise SpecError(
                f"Not beside a file: {name}; it is a key of the spec. "
                f"Give it as --set {keys[name]}=VALUE."
            )


def _dry_run(asked: _Asked, words: Sequence[str]) -> None:
    """Says what the run would take; writes nothing of it."""
    from chatspace.jobs.setup import plan_run

    # Planned as if it were allowed: the plan is looked at and not written.
    plan = plan_run(asked.spec.as_if_allowed(), spec_path=asked.path, note=say)
    say("\n".join(KINDS[KIND].dry_run()(plan)))
    say(f"To run it:\n  {COMMAND} {shlex.join(words)} --execute")
