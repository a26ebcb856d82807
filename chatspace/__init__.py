"""chatspace: one YAML run spec becomes SLURM arrays that embed every row exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "Runs", "__version__", "open_run", "runs", "submit"]

if TYPE_CHECKING:
    from chatspace.api import Runs, open_run, runs, submit
    from chatspace.run import Run


def __getattr__(name: str) -> Any:
    """Imports the notebook API when it is first used, so that `import chatspace` costs nothing."""
    if name == "Run":
        from chatspace.run import Run

        return Run
    if name in ("Runs", "open_run", "runs", "submit"):
        from chatspace import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
