"""The variables that a person set: in the environment, and in `.env` where they work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from chatspace.errors import SpecError

_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)", re.ASCII)
_QUOTED = re.compile(r"(?P<quote>['\"])(?P<text>.*)(?P=quote)\s*(#.*)?")


def variables() -> Mapping[str, str]:
    """Returns the environment and, below it, what `.env` says: that never overrides what is set.

    The file is that of the current folder, else of the folder that the SLURM job was submitted
    from. Nothing is put into the environment, so that no other program inherits a key from it.

    Raises:
        SpecError: a line of the file is no `NAME=value`.
    """
    folders = [Path.cwd(), *map(Path, filter(None, [os.environ.get("SLURM_SUBMIT_DIR")]))]
    found = next((f for folder in folders if (f := folder / ".env").is_file()), None)
    return {**(read_env_file(found) if found else {}), **os.environ}


def read_env_file(path: Path) -> dict[str, str]:
    """Returns the variables of a `.env` file: `NAME=value` lines, `export` and quotes allowed.

    Nothing is expanded. A `#` after a blank begins a comment, but not within quotes.

    Raises:
        SpecError: a line is no `NAME=value`, or the file cannot be read; no value is repeated.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"Cannot be read: {path}; {type(error).__name__}. Make it a text file in UTF-8 that "
            "you may read, or remove it."
        ) from None
    found = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise SpecError(f"Invalid line: {path}:{number}; expected NAME=value. Correct it.")
        found[match["name"]] = _plain(match["value"])
    return found


def _plain(value: str) -> str:
    if match := _QUOTED.fullmatch(value):
        return match["text"]
    return re.split(r"(?:^|\s)#", value, maxsplit=1)[0].strip()
