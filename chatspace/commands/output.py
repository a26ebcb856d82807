"""What the commands show: lines, rich tables, and the log of a task."""

from __future__ import annotations

import logging
import sys
from typing import Any


def configure_logging() -> None:
    """Sends the library's log to stderr, with times, as a job's log wants it."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def print_rich(renderable: Any) -> None:
    """Prints something of rich; without a terminal it is plain text."""
    from rich.console import Console

    Console().print(renderable)


def say(text: str) -> None:
    """Prints lines as they are."""
    sys.stdout.write(f"{text}\n")


def say_at_once(text: str) -> None:
    """Prints lines that somebody waits for, also into a pipe or a log file."""
    say(text)
    sys.stdout.flush()
