"""`~` and `$VAR` in paths that a person wrote."""

from __future__ import annotations

import os
import re
from pathlib import Path

from chatspace.errors import SpecError
from chatspace.spec.document import shown

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expand(text: str, where: str) -> str:
    """Returns `text` with a leading `~` and each `$VAR` or `${VAR}` replaced.

    Args:
        text: a path, or a list of paths such as a bind mount.
        where: the key that holds it, as errors name it.

    Raises:
        SpecError: a variable is not set, or the home folder is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise SpecError(
                f"Undefined variable: {where}={shown(text)}; {name} is not set here. "
                "Export it, or write the path out."
            )
        return os.environ[name]

    expanded = _VARIABLE.sub(value, text)
    if not expanded.startswith("~"):
        return expanded
    try:
        return str(Path(expanded).expanduser())
    except RuntimeError as error:
        raise SpecError(
            f"Unknown home folder: {where}={shown(text)}; {error}. Write the path out."
        ) from error
