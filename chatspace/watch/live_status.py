"""One display of a run's status that is updated in place: HTML in Jupyter, else a line of text."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from chatspace.watch.status import RunStatus
from chatspace.watch.status_html import status_html, status_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

LINE_EVERY_S = 30.0


def is_notebook() -> bool:
    """Tells whether this process is the kernel of a notebook; imports nothing to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class NotebookStatus:
    """The output of one cell, replaced at each update."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __enter__(self) -> NotebookStatus:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last status where it is."""

    def show(self, status: RunStatus) -> None:
        """Displays a status in place of the one before."""
        from IPython.display import HTML, display

        shown = HTML(status_html(status))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


class TerminalStatus:
    """A line that is written over; where there is no terminal, a line now and then.

    Args:
        console: where it is shown [stdout].
    """

    def __init__(self, console: Console | None = None) -> None:
        self._given = console
        self._live: Live | None = None
        self._state, self._next_line = "", 0.0

    def __enter__(self) -> TerminalStatus:
        from rich.console import Console
        from rich.live import Live

        self._console = self._given or Console()
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves the last line where it is."""
        if self._live is not None:
            self._live.stop()

    def show(self, status: RunStatus) -> None:
        """Shows a status."""
        from rich.text import Text

        line = Text(status_line(status), no_wrap=True, overflow="ellipsis")
        if self._live is not None:
            self._live.update(line, refresh=True)
        elif status.state != self._state or time.monotonic() >= self._next_line:
            self._state, self._next_line = status.state, time.monotonic() + LINE_EVERY_S
            self._console.print(line, soft_wrap=True)


def live_status() -> NotebookStatus | TerminalStatus:
    """Returns the display that fits where this process shows its output."""
    return NotebookStatus() if is_notebook() else TerminalStatus()
