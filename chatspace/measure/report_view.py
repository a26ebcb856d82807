"""A report as a table that is read at 80 columns, with or without colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from chatspace.jobs.progress import format_duration
from chatspace.jobs.summary import format_bytes
from chatspace.measure.forecast import as_yaml
from chatspace.measure.probe_view import device_word
from chatspace.measure.report import Report
from chatspace.spec.slurm import walltime_s
from chatspace.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_BAR_WIDTH = 24
_Show = Callable[[Any], str]


def render_report(report: Report) -> RenderableType:
    """Returns a report for a rich console."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble((report.run_id, "bold"), f"  {_headline(report)}")
    sections: list[RenderableType] = [head, Text(), _comparison(report)]
    if report.stages:
        sections += [Text(), _stages(report)]
    sections += [Text(), _asked(report)]
    if report.advice.lines:
        sections += [Text(), Text("Seen", "bold")]
        sections += [_item(line) for line in report.advice.lines]
    sections += [Text(), Text("Next time", "bold")]
    sections += [Text(f"  {line}") for line in as_yaml(report.advice.spec)]
    return Group(*sections)


def _headline(report: Report) -> str:
    outcome = report.outcome
    state = "complete" if report.is_complete else "not complete yet"
    again = f", {report.requeues} begun again" if report.requeues else ""
    done = f"{counted(outcome.rows, 'row')} by {counted(outcome.tasks, 'task')}"
    return f"{state}: {done}{again}"


def _comparison(report: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    table.add_column("", style="dim", min_width=13, no_wrap=True)
    if report.prediction:
        table.add_column("predicted", justify="right", min_width=10, no_wrap=True)
    table.add_column("outcome", justify="right", min_width=10, no_wrap=True, style="bold")
    table.add_column("", overflow="fold")
    ratios = report.ratios()
    for label, key, show, remark in _figures(report):
        if report.prediction and key not in ratios and hasattr(report.prediction, key):
            continue  # a total of a run that is not complete
        change = f"{ratios[key] - 1:+.0%}" if key in ratios else ""
        expected = getattr(report.prediction, key, None)
        shown = [] if report.prediction is None else [show(expected) if expected else "–"]
        table.add_row(
            label,
            *shown,
            show(getattr(report.outcome, key)),
            "  ".join(part for part in (change, remark) if part),
        )
    return table


def _figures(report: Report) -> Iterator[tuple[str, str, _Show, str]]:
    hours = device_word(report.gpu)
    yield "tokens/s", "tokens_per_s", _whole, "of one process"
    yield "rows/s", "rows_per_s", _tenths, ""
    yield "tokens a row", "tokens_per_row", _tenths, ""
    yield "start-up", "startup_s", format_duration, "of a task"
    yield "mean task", "mean_task_s", format_duration, ""
    yield "slowest task", "slowest_task_s", format_duration, report.outcome.slowest_task
    yield hours, "device_hours", _hours, ""
    if report.outcome.wasted_hours:
        yield "  wasted", "wasted_hours", _hours, "left no shard"
    yield "output", "output_bytes", format_bytes, ""
    yield "memory", "mem_gb", _gib, "of a task, at the peak"


def _stages(report: Report) -> Table:
    from rich.text import Text

    table = _grid()
    for name, times in report.stages.items():
        total_s = times["busy_s"] + times["idle_s"]
        share = times["busy_s"] / total_s if total_s else 0.0
        filled = round(share * _BAR_WIDTH)
        bar = Text.assemble(("█" * filled, "cyan"), ("░" * (_BAR_WIDTH - filled), "dim"))
        table.add_row(name, f"{share:.0%}", bar.append(" busy"))
    return table


def _asked(report: Report) -> Table:
    from rich.text import Text

    table = _grid()
    for label, used, remark in _asked_rows(report):
        table.add_row(label, used, Text(remark))
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(report.slurm_states.items()))
    attempts = ", ".join(f"{n:,} {state}" for state, n in sorted(report.attempts.items()))
    table.add_row("executions", "", Text(attempts))
    table.add_row("SLURM says", "", Text(states or "nothing: no accounting, or not run by it"))
    return table


def _asked_rows(report: Report) -> Iterator[tuple[str, str, str]]:
    outcome, asked, usage = report.outcome, report.asked, report.usage
    limit_s = walltime_s(asked["time"])
    share = f"{outcome.slowest_task_s / limit_s:.0%}" if limit_s else ""
    yield "time", share, f"of {asked['time']}, by the slowest task"
    yield "memory", f"{outcome.mem_gb / asked['mem_gb']:.0%}", f"of {asked['mem_gb']} GiB"
    yield "cores", f"{outcome.cpus:.1f}", f"of {asked['cpus_per_task']}"
    if "gpu_util_mean" in usage:
        rarely = usage.get("gpu_util_p10", 0.0)
        remark = f"of the time it computed; in a tenth of it {rarely:.0f} % or less"
        yield "GPU", f"{usage['gpu_util_mean']:.0f}%", remark
    if usage.get("gpu_mem_total_mb"):
        total_mb = usage["gpu_mem_total_mb"]
        peak = f"{usage['gpu_mem_peak_mb'] / total_mb:.0%}"
        yield "GPU memory", peak, f"of {total_mb / 1024:.0f} GiB"


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=13, no_wrap=True)
    table.add_column(justify="right", min_width=6, no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    return table


def _item(line: str) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(line), (0, 0, 0, 2))


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def _hours(value: float) -> str:
    return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"


def _gib(value: float) -> str:
    return f"{value:.1f} GiB"
