"""What a check found: pass, warn or fail, what it saw, and the next step."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)

State = Literal["pass", "warn", "fail"]
ASK_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was looked at, one or two words.
        seen: what was there, one line.
        next_step: what to do about it; empty where nothing is.
    """

    check: str
    state: State
    seen: str
    next_step: str = ""

    def line(self) -> str:
        """Returns the finding as one line of text."""
        step = f" {self.next_step}" if self.next_step else ""
        return f"{self.state}  {self.check}: {self.seen.rstrip('.')}.{step}"

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as plain JSON."""
        return asdict(self)


def passed(check: str, seen: str) -> Finding:
    """Returns a finding that all is well."""
    return Finding(check=check, state="pass", seen=one_line(seen))


def warned(check: str, seen: str, next_step: str) -> Finding:
    """Returns a finding that the run may work in spite of."""
    return Finding(check=check, state="warn", seen=one_line(seen), next_step=next_step)


def failed(check: str, seen: str, next_step: str) -> Finding:
    """Returns a finding that the run cannot work with."""
    return Finding(check=check, state="fail", seen=one_line(seen), next_step=next_step)


Check = Callable[[], Iterable[Finding]]


def outcome(name: str, check: Check) -> list[Finding]:
    """Returns what a check found; one that breaks is a warning with its error."""
    try:
        return list(check())
    except Exception as error:  # a check must not stop those after it, whatever it meets
        log.debug("check broke name=%s", name, exc_info=True)
        text = f"the check itself broke: {type(error).__name__}: {error}"
        return [warned(name, text, "Look at it by hand; the other checks hold.")]


def one_line(text: str, limit: int = 400) -> str:
    """Returns text without line breaks, and no longer than `limit` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else f"{joined[: limit - 3]}..."


def ask(
    command: Sequence[str], timeout_s: float = ASK_TIMEOUT_S
) -> subprocess.CompletedProcess[str] | None:
    """Returns what a command answers, None where it is missing or takes too long."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
