"""Where the files that come with chatspace lie, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent
# What the wheel calls it, and where it stands in the repository; pyproject.toml maps them too.
_IN_CHECKOUT = {
    "templates": Path("templates"),
    "profiles": Path("hpc") / "profiles",
    "setups": Path("setups"),
}


def resource_dir(name: Literal["templates", "profiles", "setups"]) -> Path:
    """Returns the folder of the packaged templates, profiles or setups."""
    installed = _PACKAGE / "_resources" / name
    if installed.is_dir():
        return installed
    return _PACKAGE.parent / _IN_CHECKOUT[name]


def constraints_file() -> Path:
    """Returns the file with the versions that are known to work together."""
    installed = _PACKAGE / "_resources" / "constraints.txt"
    return installed if installed.is_file() else _PACKAGE.parent / "constraints.txt"


def checkout() -> Path | None:
    """Returns the folder of the checkout that this code runs from; None where it is installed."""
    folder = _PACKAGE.parent
    return folder if (folder / "pyproject.toml").is_file() else None
