"""The last thing a run shows: what came in, what came out, how fast, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatspace.jobs.progress import format_duration
from chatspace.plan.work import StageTimes
from chatspace.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_BAR_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a finished run did; of the whole run, not of its last execution.

    Attributes:
        rows_skipped: rows without a vector, by reason.
        rows_truncated: rows cut to the model's limit; they are embedded.
        chunks: vectors, where long rows have several; None where each row has one.
        elapsed_s: wall time.
        tokens_per_s: real tokens, all slices together.
        n_tokens: of all executions; those of a shard that was done again count each time.
        n_padded_tokens: tokens computed, padding counted; 0 where that is not known.
        stages: seconds of each stage, as its kind calls it, summed over slices.
        shards_redone: shards that were done again after they had been done.
        bytes_written: size of all shards.
        next_steps: commands or sentences, in the order to try them.
    """

    run_id: str
    model: str
    embedding_dim: int
    rows_in: int
    rows_embedded: int
    rows_skipped: dict[str, int] = field(default_factory=dict)
    rows_truncated: int = 0
    chunks: int | None = None
    elapsed_s: float
    tokens_per_s: float
    n_tokens: int
    n_padded_tokens: int
    stages: dict[str, StageTimes] = field(default_factory=dict)
    shards: int
    shards_redone: int = 0
    bytes_written: int
    manifests: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)

    @property
    def padding_waste(self) -> float:
        """Share of computed tokens that was padding, 0 to 1."""
        return 1 - self.n_tokens / self.n_padded_tokens if self.n_padded_tokens else 0.0

    @property
    def rows_unaccounted(self) -> int:
        """Input rows that are neither embedded nor skipped: 0 in a complete run."""
        return self.rows_in - self.rows_embedded - sum(self.rows_skipped.values())


def render_summary(summary: Summary) -> RenderableType:
    """Returns the summary for a rich console; it reads as well without colour and at 80 columns."""
    from rich.console import Group
    from rich.text import Text

    sections: list[RenderableType] = [_headline(summary), Text(), _facts(summary)]
    if summary.stages:
        sections += [Text(), _stages(summary.stages)]
    for heading, lines in (
        ("manifest" if len(summary.manifests) == 1 else "manifests", summary.manifests),
        ("picture" if len(summary.pictures) == 1 else "pictures", summary.pictures),
        ("next", summary.next_steps),
    ):
        if lines:
            sections += [Text(), _listing(heading, lines)]
    return Group(*sections)


def _headline(summary: Summary) -> RenderableType:
    from rich.text import Text

    if missing := summary.rows_unaccounted:
        verdict = (f"{missing:,} of {counted(summary.rows_in, 'row')} are missing", "bold red")
    else:
        verdict = (f"{counted(summary.rows_in, 'row')}, every one accounted for", "bold green")
    return Text.assemble((summary.run_id, "bold"), "  ", verdict)


def _facts(summary: Summary) -> Table:
    from rich.text import Text

    table = _grid()
    for label, value, note in _fact_rows(summary):
        table.add_row(label, value, Text(note))
    return table


def _fact_rows(summary: Summary) -> Iterable[tuple[str, str, str]]:
    """Yields label, figure and remark of each line; figures are aligned on the right."""
    skipped = sum(summary.rows_skipped.values())
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(summary.rows_skipped.items()))
    waste = ""
    if summary.n_padded_tokens >= summary.n_tokens > 0:  # an endpoint does not say what it computes
        waste = f"{summary.n_padded_tokens:,} computed, {summary.padding_waste:.1%} of them padding"
    yield "rows in", f"{summary.rows_in:,}", ""
    yield "embedded", f"{summary.rows_embedded:,}", f"{summary.embedding_dim} numbers each"
    if summary.chunks is not None:
        yield "chunks", f"{summary.chunks:,}", "a vector each; long rows have several"
    yield "skipped", f"{skipped:,}", reasons
    yield "truncated", f"{summary.rows_truncated:,}", "embedded, cut to the token limit"
    again = ""
    if summary.shards_redone:
        again = f"{counted(summary.shards_redone, 'shard')} done again, counted each time"
    yield "tokens", f"{summary.n_tokens:,}", "; ".join(filter(None, (waste, again)))
    yield "speed", f"{summary.tokens_per_s:,.0f}", "real tokens/s" if waste else "tokens/s"
    yield "time", format_duration(summary.elapsed_s), ""
    yield "written", format_bytes(summary.bytes_written), f"in {counted(summary.shards, 'shard')}"
    yield "model", "", summary.model


def _stages(stages: dict[str, StageTimes]) -> Table:
    from rich.text import Text

    table = _grid()
    for name, times in stages.items():
        total_s = times.busy_s + times.idle_s
        share = times.busy_s / total_s if total_s else 0.0
        filled = round(share * _BAR_WIDTH)
        bar = Text.assemble(("█" * filled, "cyan"), ("░" * (_BAR_WIDTH - filled), "dim"))
        bar.append(f" {times.busy_s:,.1f} s busy, {times.idle_s:,.1f} s idle")
        table.add_row(Text(name), f"{share:.0%}", bar)
    return table


def _listing(heading: str, lines: list[str]) -> Table:
    """Returns lines under one heading; long paths are folded, so that nothing of them is lost."""
    from rich.text import Text

    table = _grid(figures=False)
    for index, line in enumerate(lines):
        table.add_row(heading if index == 0 else "", Text(line, overflow="fold"))
    return table


def _grid(*, figures: bool = True) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=9, no_wrap=True)
    if figures:
        table.add_column(justify="right", min_width=9, no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    return table


def format_bytes(n_bytes: int) -> str:
    """Returns a size with a binary unit, `14.2 MiB`."""
    size: Any = n_bytes
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
