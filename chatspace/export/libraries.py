"""Optional libraries of the exports."""

from __future__ import annotations

import importlib
from typing import Any

from chatspace.errors import UnfitEnvironmentError


def library(name: str, distribution: str, *, extra: str = "export") -> Any:
    """Returns an optional module, which comes with one of chatspace's extras.

    Raises:
        UnfitEnvironmentError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UnfitEnvironmentError(
            f"Library missing: {distribution}; {reason}. Install it: "
            f"pip install 'chatspace[{extra}]'."
        ) from error
