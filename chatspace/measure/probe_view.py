"""What a probe shows: what was measured, what the run will take, what to ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatspace.jobs.progress import format_duration
from chatspace.jobs.summary import format_bytes
from chatspace.layout import Layout
from chatspace.measure.forecast import (
    Forecast,
    Probe,
    Suggestion,
    as_yaml,
    forecast,
    overrides_of,
    suggest,
)
from chatspace.plan.model import Plan
from chatspace.spec.slurm import walltime_s
from chatspace.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

_Line = tuple[str, str, str]
# A probe that got a smaller share of its cores than this says little of a quiet machine.
_BUSY_MACHINE = 0.5


def render_probe_result(probe: Probe, plan: Plan, *, setup_command: str) -> RenderableType:
    """Returns a probe and its prediction for a rich console; it reads well at 80 columns.

    Args:
        probe: what was measured.
        plan: the run.
        setup_command: how the run is set up with the suggestion.
    """
    from rich.console import Group
    from rich.text import Text

    expected, suggestion = forecast(probe, plan), suggest(probe, plan)
    head = Text.assemble((plan.run_id, "bold"), f"  probed on {_where(probe)}")
    sections: list[RenderableType] = [head, Text(), _grid(_measured(probe, expected)), Text()]
    sections += [Text("Prediction", "bold"), _grid(_predicted(probe, plan, expected)), Text()]
    sections += [Text(line, "yellow") for line in _warnings(probe, plan, suggestion)]
    sections += [
        Text("Suggestion", "bold").append(
            f"  a task then takes {format_duration(suggestion.slowest_task_s)} at most", ""
        )
    ]
    sections += [Text(f"  {line}") for line in as_yaml(overrides_of(suggestion))]
    sections += [Text(), Text("Next:"), Text(f"  {setup_command}", overflow="fold")]
    return Group(*sections)


def probe_json(probe: Probe, plan: Plan) -> dict[str, Any]:
    """Returns a probe, its prediction and the suggestion as plain JSON values."""
    from dataclasses import asdict

    return {
        **asdict(probe),
        "prediction": asdict(forecast(probe, plan)),
        "suggestion": {**asdict(suggest(probe, plan)), "spec": overrides_of(suggest(probe, plan))},
    }


def device_word(gpu: str | None) -> str:
    """Returns what is paid for: hours of a GPU, or of a task."""
    return "GPU-hours" if gpu else "task-hours"


def _where(probe: Probe) -> str:
    threads = f"{counted(probe.threads, 'thread')} of "
    return f"{probe.host}: {'' if probe.gpu else threads}{probe.device_name}, {probe.dtype}"


def _measured(probe: Probe, expected: Forecast) -> Iterator[_Line]:
    rows = sum(sample.rows for sample in probe.samples)
    n_tokens = sum(sample.n_tokens for sample in probe.samples)
    padded = sum(sample.n_padded_tokens for sample in probe.samples)
    waste = 1 - n_tokens / padded if padded else 0.0
    places = sum(sample.ranges for sample in probe.samples)
    largest = max(probe.samples, key=lambda sample: sample.n_tokens)
    spread = largest.row_tokens
    yield (
        "sample",
        f"{rows:,}",
        f"rows from {counted(places, 'place')}, {n_tokens:,} tokens",
    )
    yield (
        "speed",
        f"{expected.tokens_per_s:,.0f}",
        f"tokens/s; {waste:.1%} of what is computed is padding",
    )
    yield "", f"{expected.rows_per_s:,.1f}", "rows/s, over the whole corpus"
    middle = (
        f"tokens a row; a tenth has at most {spread['p10']:,.0f}, half {spread['p50']:,.0f}, "
        f"nine tenths {spread['p90']:,.0f}"
        if spread
        else "tokens a row"
    )
    yield "rows", f"{expected.tokens_per_row:,.1f}", middle
    yield "start-up", format_duration(expected.startup_s), "until the work flows"
    yield "memory", f"{probe.usage.get('host_mem_peak_mb', 0) / 1024:.1f} GiB", "at the peak"
    if "gpu_mem_peak_mb" in probe.usage:
        total = probe.usage["gpu_mem_total_mb"] / 1024
        peak = f"{probe.usage['gpu_mem_peak_mb'] / 1024:.1f} GiB"
        yield "GPU", peak, f"of its memory of {total:.1f} GiB"
    if "gpu_util_mean" in probe.usage:
        yield "", f"{probe.usage['gpu_util_mean']:.0f} %", "of the time it computed"
    if probe.tokens_per_batch:
        yield "batches", f"{probe.tokens_per_batch:,}", "tokens each"
    for note in probe.notes:
        yield "note", "", note


def _predicted(probe: Probe, plan: Plan, expected: Forecast) -> Iterator[_Line]:
    n_shards = sum(split.n_shards for split in plan.splits)
    limit_s = walltime_s(plan.cluster["time"])
    yield "rows", f"{expected.rows:,}", f"{expected.n_tokens:,} tokens"
    average = f"{format_duration(expected.mean_task_s)} each on average"
    yield "tasks", f"{expected.tasks:,}", average
    share = f"{expected.slowest_task_s / limit_s:.0%} of" if limit_s else "no limit:"
    slowest = format_duration(expected.slowest_task_s)
    yield "slowest", slowest, f"{expected.slowest_task}; {share} the walltime {_time(plan)}"
    hours = expected.device_hours
    yield "cost", f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}", device_word(probe.gpu)
    yield (
        "output",
        format_bytes(expected.output_bytes),
        f"in {counted(n_shards, 'shard')}",
    )


def _warnings(probe: Probe, plan: Plan, suggestion: Suggestion) -> Iterator[str]:
    asked = plan.cluster["gpus_per_task"]
    if asked and not probe.gpu:
        yield (
            "Tasks ask for a GPU and this was measured without one: the figures hold for "
            "`chatspace run` here. Probe as a job with --submit."
        )
    elif not asked and plan.cluster["cpus_per_task"] != probe.threads:
        yield (
            f"Tasks ask for {plan.cluster['cpus_per_task']} cores and this was measured with "
            f"{probe.threads} threads."
        )
    cores = probe.usage.get("cpus_mean", probe.threads)
    if not probe.gpu and cores < _BUSY_MACHINE * probe.threads:
        yield (
            f"This machine is busy with other work: the probe got {cores:.1f} of {probe.threads} "
            "cores. Where it is quiet, the run is faster."
        )
    if suggestion.is_tight:
        yield (
            "One shard a task is still too long for half of the walltime: a smaller "
            "output.rows_per_shard gives more tasks."
        )


def _time(plan: Plan) -> str:
    return str(plan.cluster["time"])


def _grid(lines: Iterator[_Line]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=10, no_wrap=True)
    table.add_column(justify="right", min_width=10, no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for label, figure, remark in lines:
        table.add_row(f"  {label}", figure, Text(remark))
    return table


def result_path(plan: Plan) -> Path:
    """Returns where the probe of a run is kept."""
    return Layout(Path(plan.workspace)).run(plan.run_id).probe
