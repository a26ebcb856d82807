"""Live progress of a run's slices: a table in a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

LINE_EVERY_S = 5.0
_REFRESH_PER_S = 4
_MAX_SHOWN = 16
_SMOOTHING_S = 8.0  # time constant of the shown rate: steady enough to read, quick enough to trust
_ENDED = ("done", "failed", "interrupted")
_STYLES = {"waiting": "dim", "done": "green", "failed": "red", "interrupted": "yellow"}


@dataclass(slots=True, kw_only=True)
class SliceProgress:
    """What is known of one slice, built up from its events.

    Attributes:
        label: what the slice is called on screen.
        rows_total: input rows of the slice.
        rows_resumed: rows that earlier executions finished; they count as done, not as speed.
        rows: rows dealt with by this execution.
        stage: `waiting`, what the task says it does, or `done`, `failed`, `interrupted`.
        message: why it failed, where the event says.
        tokens_per_s: real tokens, smoothed over some seconds.
        seen_s: when the last progress was told; only differences mean something.
        first_s: when the first tokens were told, and `first_rows` how many rows were dealt with.
        rows_per_s: since the first tokens: in each shard long rows come first, so that the speed of
            some seconds says little of what is to come.
        rows_lost: rows that nobody works on any more, those of failed slices; for the whole run.
    """

    label: str
    rows_total: int
    rows_resumed: int = 0
    rows: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    stage: str = "waiting"
    message: str = ""
    seen_s: float | None = None
    first_s: float | None = None
    first_rows: int = 0
    tokens_per_s: float = 0.0
    rows_per_s: float = 0.0
    rows_lost: int = 0

    @property
    def rows_done(self) -> int:
        """Rows done by this and by earlier executions."""
        return min(self.rows_resumed + self.rows, self.rows_total)

    @property
    def is_ended(self) -> bool:
        """Whether nothing more is to be expected of this execution."""
        return self.stage in _ENDED

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the speed so far; None while that is not known."""
        if self.is_ended:
            return 0.0
        rows_left = self.rows_total - self.rows_done - self.rows_lost
        return rows_left / self.rows_per_s if self.rows_per_s else None

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes in one event of the slice's log; events that it does not know change nothing."""
        match event.get("event", "progress"):
            case "started":
                self._start(event)
            case "progress":
                self._advance(event)
            case "finished":
                self.rows, self.stage = self.rows_total - self.rows_resumed, "done"
            case "failed" | "interrupted" as stage:
                self.stage, self.message = stage, str(event.get("message", event.get("error", "")))

    def _start(self, event: Mapping[str, Any]) -> None:
        """Begins an attempt: counters start again, on top of what the event says is done."""
        self.rows_resumed = int(event.get("rows_done", self.rows_resumed))
        self.rows = self.n_tokens = self.n_padded_tokens = 0
        self.tokens_per_s = self.rows_per_s = 0.0
        self.seen_s = self.first_s = None
        self.stage, self.message = str(event.get("stage", "starting")), ""

    def _advance(self, event: Mapping[str, Any]) -> None:
        rows, n_tokens = int(event.get("rows", self.rows)), int(event.get("n_tokens", 0))
        seen_s = _told_at_s(event)
        span_s = seen_s - self.seen_s if seen_s is not None and self.seen_s is not None else 0.0
        # The first tokens only start the clock: the time before them went into loading the model.
        if span_s > 0 and self.n_tokens > 0:
            share = 1 - math.exp(-span_s / _SMOOTHING_S) if self.tokens_per_s else 1.0
            self.tokens_per_s += share * ((n_tokens - self.n_tokens) / span_s - self.tokens_per_s)
        if self.first_s is None and n_tokens > 0:
            self.first_s, self.first_rows = seen_s, rows
        if self.first_s is not None and seen_s is not None and seen_s > self.first_s:
            self.rows_per_s = (rows - self.first_rows) / (seen_s - self.first_s)
        self.rows, self.n_tokens, self.seen_s = rows, n_tokens, seen_s
        self.n_padded_tokens = int(event.get("n_padded_tokens", self.n_padded_tokens))
        self.stage = str(event.get("stage", self.stage))


class LiveProgress:
    """Shows how far each slice is, and the run as a whole.

        with LiveProgress([("train 0", 1250), ("train 1", 1250)]) as progress:
            progress.update(0, {"rows": 64, "n_tokens": 6012, "elapsed_s": 2.1})

    In a terminal it is a table that redraws itself; elsewhere one plain line every few seconds,
    written by `update` and `tick`. A slice that ends badly gets a line of its own.

    Args:
        slices: label and input rows of each slice; `update` counts them from 0 in this order.
        rows_done: rows that earlier executions finished, by position.
        console: where to show it [standard output].
        clock: seconds that never go back; a test passes its own.
    """

    def __init__(
        self,
        slices: Iterable[tuple[str, int]],
        *,
        rows_done: Mapping[int, int] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        done = rows_done or {}
        self.slices = [
            SliceProgress(label=label, rows_total=rows, rows_resumed=done.get(index, 0))
            for index, (label, rows) in enumerate(slices)
        ]
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._next_line_s = 0.0

    def __enter__(self) -> LiveProgress:
        from rich.console import Console
        from rich.live import Live

        self._console = self._console or Console()
        self._next_line_s = self._clock() + LINE_EVERY_S
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self.render,
                refresh_per_second=_REFRESH_PER_S,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._write_line()

    def update(self, slice_index: int, event: Mapping[str, Any]) -> None:
        """Takes in one event of a slice; a mapping without `event` counts as progress."""
        state = self.slices[slice_index]
        state.apply(event)
        if state.stage in ("failed", "interrupted"):
            self.note(f"slice {state.label} {state.stage}{state.message and f': {state.message}'}")
        self.tick()

    def note(self, line: str) -> None:
        """Writes a line, above the table where there is one."""
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Writes the line that is due, where there is no terminal; for times without events."""
        if self._live is None and self._clock() >= self._next_line_s:
            self._next_line_s = self._clock() + LINE_EVERY_S
            self._write_line()

    def render(self) -> RenderableType:
        """Returns the table as it stands now."""
        from rich.table import Table

        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("slice", no_wrap=True, overflow="ellipsis", max_width=16)
        table.add_column("", no_wrap=True)
        for heading in ("rows", "tokens/s", "ETA"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=28)
        shown = self._shown()
        for state in shown:
            _add_row(table, state, _STYLES.get(state.stage, ""))
        if hidden := len(self.slices) - len(shown):
            table.add_row(f"… {hidden} more", style="dim")
        _add_row(table, self.overall(), "bold")
        return table

    def overall(self) -> SliceProgress:
        """Returns the sum of all slices: rows, tokens, speed of those at work."""
        timed = [state for state in self.slices if state.tokens_per_s > 0]
        # Between two slices none is at work; the speed of the last one is the best guess.
        working = [state for state in timed if not state.is_ended] or timed[-1:]
        return SliceProgress(
            label="all",
            rows_total=sum(state.rows_total for state in self.slices),
            rows=sum(state.rows_done for state in self.slices),
            n_tokens=sum(state.n_tokens for state in self.slices),
            stage=self._count_stages(),
            tokens_per_s=sum(state.tokens_per_s for state in working),
            rows_per_s=sum(state.rows_per_s for state in working),
            rows_lost=sum(s.rows_total - s.rows_done for s in self.slices if s.is_ended),
        )

    def _count_stages(self) -> str:
        if all(state.stage == "done" for state in self.slices):
            return "done"
        n_ended = {stage: sum(s.stage == stage for s in self.slices) for stage in _ENDED}
        parts = [f"{n} {stage}" for stage, n in n_ended.items() if n and stage != "done"]
        return ", ".join([f"{n_ended['done']}/{len(self.slices)} slices", *parts])

    def _shown(self) -> list[SliceProgress]:
        """Returns the slices that fit on a screen: at work and failed first, in their own order."""
        if len(self.slices) <= _MAX_SHOWN:
            return self.slices
        rank = {"waiting": 1, "done": 2}
        by_interest = sorted(self.slices, key=lambda state: rank.get(state.stage, 0))
        chosen = {id(state) for state in by_interest[:_MAX_SHOWN]}
        return [state for state in self.slices if id(state) in chosen]

    def _write_line(self) -> None:
        state = self.overall()
        share = state.rows_done / state.rows_total if state.rows_total else 1.0
        parts = [f"{state.rows_done:,}/{state.rows_total:,} rows ({share:.0%})", state.stage]
        if state.tokens_per_s and not state.is_ended:
            parts.append(f"{state.tokens_per_s:,.0f} tokens/s, ETA {format_duration(state.eta_s)}")
        self.note(", ".join(parts))


def _told_at_s(event: Mapping[str, Any]) -> float | None:
    """Returns the task's own clock where it tells it, else the time that stands in the log."""
    if "elapsed_s" in event:
        return float(event["elapsed_s"])
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return None


def format_duration(seconds: float | None) -> str:
    """Returns `48s`, `3:07`, `2:05:09` or `3d 04h`; `–` for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, hours = divmod(whole, 60), divmod(whole, 3600)
    if whole < 3600:
        return f"{minutes[0]}:{minutes[1]:02d}"
    if whole < 48 * 3600:
        return f"{hours[0]}:{hours[1] // 60:02d}:{minutes[1]:02d}"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def _add_row(table: Any, state: SliceProgress, style: str) -> None:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    is_running = state.tokens_per_s > 0 and not state.is_ended
    table.add_row(
        Text(state.label, style=style),
        # Plain colours: with only sixteen, the theme's own come out grey, like no progress.
        ProgressBar(
            total=max(state.rows_total, 1),
            completed=state.rows_done,
            width=20,
            complete_style="cyan",
            finished_style="green",
        ),
        Text(f"{state.rows_done:,}/{state.rows_total:,}", style=style),
        Text(f"{state.tokens_per_s:,.0f}" if is_running else "", style=style),
        Text("" if state.is_ended else format_duration(state.eta_s), style=style),
        Text(state.stage, style=style),
    )
