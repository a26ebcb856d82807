"""The command line: each command imports what it needs when it runs, so `--help` is quick."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import typer

from chatspace.commands import (
    data,
    doctor,
    environment,
    maps,
    measure,
    openai,
    runs,
    stage,
    upkeep,
    vectors,
    watch,
)
from chatspace.errors import ChatspaceError, ExitCode

# typer carries its own copy of click, whose usage errors have no public name.
UsageError: Any = typer.BadParameter.__base__
# What typer returns, and does not raise, of a KeyboardInterrupt: `_main` of typer/core.py.
_INTERRUPTED_IN_TYPER = 130

app = typer.Typer(
    name="chatspace",
    help="One YAML run spec becomes SLURM arrays that embed every row of a dataset exactly once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# In the order of `chatspace --help`.
COMMANDS: tuple[Callable[..., None], ...] = (
    doctor.doctor,
    stage.stage,
    data.download_dataset,
    data.convert,
    measure.probe,
    runs.setup,
    runs.submit,
    upkeep.resubmit,
    upkeep.cancel,
    runs.run,
    runs.task,
    runs.gather,
    runs.verify,
    watch.status,
    watch.logs,
    measure.report,
    vectors.export,
    vectors.search,
    vectors.duplicates,
    maps.reduce,
    maps.map,
    maps.atlas,
    runs.schema,
    runs.demo,
    runs.version,
)
for _command in COMMANDS:
    app.command()(_command)
app.add_typer(environment.app, name="env")
# Its options are those of the kind's run spec, which it parses itself.
app.command(
    "embed-hf",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)(runs.embed_hf)
app.command(
    "embed-dataset",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)(openai.embed_dataset)


def main() -> None:
    """Runs the command line; an error of chatspace's own is one line on stderr, and its code."""
    try:
        _run()
    except (typer.Abort, KeyboardInterrupt):
        _fail("Interrupted. Run it again.", ExitCode.INTERRUPTED)


def _run() -> NoReturn:
    try:
        code = app(standalone_mode=False) or ExitCode.DONE
        if code == _INTERRUPTED_IN_TYPER:
            raise KeyboardInterrupt
        sys.exit(code)
    except ChatspaceError as error:
        _fail(str(error), error.exit_code)
    except UsageError as error:
        text, context = error.format_message(), error.ctx
        if context and "\n" not in text:
            text = f"{text.rstrip('.')}. See `{context.command_path} --help`."
        _fail(text, ExitCode.USER_INPUT)


def _fail(text: str, code: ExitCode) -> NoReturn:
    if code == ExitCode.INTERRUPTED:
        _ignore_interrupts()
    sys.stderr.write(f"chatspace: {text}\n")
    sys.exit(code)


def _ignore_interrupts() -> None:
    """Lets no further Ctrl-C change the exit code of a process that ends because of the first."""
    with suppress(ValueError):  # in any thread but the main one there is nothing to ignore
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def setup_main() -> None:
    """Runs `chatspace setup` with this process's arguments, for `setup_embed.py`."""
    sys.argv.insert(1, "setup")
    main()
