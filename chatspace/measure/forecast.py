"""From what a probe measured to what a run will take, and what its spec should ask for.

The model: a task needs its start-up, and then the tokens of its slice at the probe's speed. The
tokens of a slice follow from its bytes of text, which the plan has of every row group, times the
tokens a byte of the probe's sample: rows alone say nothing where some are ten times longer.

    task_s = startup_s + text_bytes * tokens_per_byte / tokens_per_s

Not covered: tasks that share a file system or a GPU and slow each other down.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatspace.jobs.directives import lanes_of
from chatspace.measure.figures import Figures, rates, task_times
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.slicing import fewest_slices, make_slices, split_weights, text_curve
from chatspace.spec.slurm import walltime_s

# A task should take about this share of its walltime: the slowest still ends in time.
FILL = 0.5
TIME_MARGIN = 1.5
MEMORY_MARGIN = 1.3
# Shards that a task holds at the same time: read, waiting, encoded, waiting, written.
SHARDS_IN_MEMORY = 4
NO_LIMIT_S = 24 * 3600
LEAST_WORK_S = 60.0
_ROUND_TIME_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSample:
    """What a probe saw of one split.

    Attributes:
        ranges: places that the sample was taken from.
        rows: input rows of the sample.
        text_bytes: bytes of text in it, as the plan counts them.
        n_tokens: tokens in it.
        n_padded_tokens: tokens computed for it, padding counted.
        tokens_per_s: real tokens, once the work flows.
        startup_s: from the start of the process until it flows.
        bytes_written: size of its shards, without what every file has.
        bytes_per_file: size of a shard without rows.
        largest_range: rows of the largest range.
        row_tokens: tokens of a row at the 10th, 50th and 90th percentile, from lengths of text.
    """

    split: str
    ranges: int
    rows: int
    text_bytes: int
    n_tokens: int
    n_padded_tokens: int
    tokens_per_s: float
    startup_s: float
    bytes_written: int
    bytes_per_file: int
    largest_range: int
    row_tokens: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_byte(self) -> float:
        """Tokens in a byte of text, as the plan counts them."""
        return self.n_tokens / max(1, self.text_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one process measured on a sample; stands in `probe.json`.

    Attributes:
        run_id: the run that the spec gives.
        spec_key: hash of the spec, by which `setup --use-probe` finds the probe.
        attempt: job of the probe, or host and process id.
        device_name: the processor, or the GPU.
        gpu: name of the GPU, None on a CPU.
        seconds: how long it was to embed.
        runtime: what the kind says of its device, dtype and settings.
        usage: what the process used; see `jobs.usage`.
        stages: busy and idle seconds of the stages.
    """

    schema_version: int = 1
    run_id: str
    spec_key: str
    created_at: str
    attempt: str
    host: str
    device_name: str
    gpu: str | None
    dtype: str
    threads: int
    seconds: float
    tokens_per_batch: int | None
    samples: tuple[SplitSample, ...]
    runtime: dict[str, Any]
    usage: dict[str, Any]
    stages: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()

    def sample(self, split: str) -> SplitSample:
        """Returns the sample of a split; small splits have none, and share that of the largest."""
        by_name = {sample.split: sample for sample in self.samples}
        return by_name.get(split) or max(self.samples, key=lambda sample: sample.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Figures):
    """What a run will take, as it is planned: all tasks and rows, over the whole corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What the spec should ask for, and what each task then takes.

    Attributes:
        count: `slices.count`.
        time: `slurm.time`, as sbatch takes it.
        mem_gb: `slurm.mem_gb`, GiB.
        tokens_per_batch: `encode.tokens_per_batch`, None where rows are counted instead.
        slowest_task_s: with these slices, or with those of the plan if they are kept.
        is_tight: one shard a task would still not end in half of the walltime.
    """

    count: int
    time: str
    mem_gb: int
    tokens_per_batch: int | None
    slowest_task_s: float
    is_tight: bool


def forecast(probe: Probe, plan: Plan) -> Forecast:
    """Returns what the run takes with the slices that its plan has."""
    lanes = lanes_of(plan.cluster)
    rows = sum(split.rows for split in plan.splits)
    tokens = {split.name: _tokens(probe, split, split.text_bytes) for split in plan.splits}
    n_tokens = sum(tokens.values())
    work_s = sum(tokens[s.name] / probe.sample(s.name).tokens_per_s for s in plan.splits)
    startup_s = max(sample.startup_s for sample in probe.samples)
    tasks = {
        f"{split.name} {slice_.index}": startup_s + _work_s(probe, split, slice_.text_bytes) / lanes
        for split in plan.splits
        for slice_ in split.slices
    }
    return Forecast(
        tasks=len(tasks),
        rows=rows,
        n_tokens=round(n_tokens),
        **rates(n_tokens, rows, work_s),
        startup_s=startup_s,
        **task_times(tasks),
        device_hours=sum(tasks.values()) * lanes / 3600,
        output_bytes=sum(_output_bytes(probe, split) for split in plan.splits),
        mem_gb=_peak_gb(probe, plan),
    )


def suggest(probe: Probe, plan: Plan, *, keep_slices: bool = False) -> Suggestion:
    """Returns what to ask for, so that a task takes about half of the walltime that it has now.

    Slices are the fewest of which none takes longer; where one shard alone does, the fewest of
    which none takes longer than that shard.

    Args:
        probe: what was measured.
        plan: the run.
        keep_slices: the walltime is for the slices that the plan has, not for those suggested.
    """
    limit_s = walltime_s(plan.cluster["time"]) or NO_LIMIT_S
    startup_s = max(sample.startup_s for sample in probe.samples)
    target_s = max(FILL * limit_s - startup_s, LEAST_WORK_S)
    weights = {s.name: split_weights(s) for s in plan.splits}
    heaviest = {name: int(w.max(initial=1)) for name, w in weights.items()}
    shard_s = max(_task_work_s(probe, plan, s, heaviest[s.name]) for s in plan.splits)
    allowed_s = max(target_s, shard_s)
    count = max(_fewest_slices(probe, plan, s, weights[s.name], allowed_s) for s in plan.splits)
    slowest_s = max(_slowest_work_s(probe, plan, s, weights[s.name], count) for s in plan.splits)
    slowest_task_s = startup_s + slowest_s
    if keep_slices:
        slowest_task_s = forecast(probe, plan).slowest_task_s
    return Suggestion(
        count=count,
        time=time_to_ask(slowest_task_s, grace_s=plan.cluster["grace_s"], limit_s=limit_s),
        mem_gb=memory_to_ask(_peak_gb(probe, plan)),
        tokens_per_batch=probe.tokens_per_batch,
        slowest_task_s=slowest_task_s,
        is_tight=shard_s > target_s,
    )


def time_to_ask(slowest_task_s: float, *, grace_s: float, limit_s: float | None = None) -> str:
    """Returns a walltime with a margin over the slowest task, rounded up to 5 minutes.

    Args:
        slowest_task_s: seconds of the slowest task.
        grace_s: seconds before the end at which it is told to stop.
        limit_s: what may not be exceeded; such a task is then interrupted, and resumes.
    """
    wanted_s = TIME_MARGIN * slowest_task_s + grace_s + 60
    wanted_s = max(2 * _ROUND_TIME_S, math.ceil(wanted_s / _ROUND_TIME_S) * _ROUND_TIME_S)
    total_min = int(min(wanted_s, limit_s or wanted_s)) // 60
    return f"{total_min // 60:02d}:{total_min % 60:02d}:00"


def memory_to_ask(peak_gb: float) -> int:
    """Returns whole GiB with a margin over the peak."""
    return max(2, math.ceil(MEMORY_MARGIN * peak_gb + 0.5))


def range_text_bytes(split: SplitPlan, ranges: Sequence[tuple[int, int]]) -> int:
    """Returns the bytes of text in ranges of rows `(start, stop)`, as the plan counts them."""
    import numpy as np

    row_ends, byte_ends = text_curve(split.files, split.selected)
    edges = np.array(ranges, dtype=np.int64).reshape(-1, 2)  # (n_ranges, 2)
    inside = np.interp(edges, row_ends, byte_ends)  # (n_ranges, 2)
    return int((inside[:, 1] - inside[:, 0]).sum())


def overrides_of(suggestion: Suggestion) -> dict[str, str]:
    """Returns the suggestion as keys and values of a run spec, in the order of its sections."""
    budget = suggestion.tokens_per_batch
    return {
        "slices.count": str(suggestion.count),
        "slurm.time": suggestion.time,
        "slurm.mem_gb": str(suggestion.mem_gb),
        **({"encode.tokens_per_batch": str(budget)} if budget else {}),
    }


def as_yaml(values: Mapping[str, str]) -> list[str]:
    """Returns keys and values of a run spec as YAML lines that can be pasted into it."""
    lines: list[str] = []
    for key, value in values.items():
        section, _, name = key.partition(".")
        if f"{section}:" not in lines:
            lines.append(f"{section}:")
        lines.append(f'  {name}: "{value}"' if ":" in value else f"  {name}: {value}")
    return lines


def _tokens(probe: Probe, split: SplitPlan, text_bytes: int) -> float:
    return text_bytes * probe.sample(split.name).tokens_per_byte


def _work_s(probe: Probe, split: SplitPlan, text_bytes: int) -> float:
    return _tokens(probe, split, text_bytes) / probe.sample(split.name).tokens_per_s


def _task_work_s(probe: Probe, plan: Plan, split: SplitPlan, text_bytes: int) -> float:
    return _work_s(probe, split, text_bytes) / lanes_of(plan.cluster)


def _fewest_slices(
    probe: Probe, plan: Plan, split: SplitPlan, weights: Any, allowed_s: float
) -> int:
    """Returns the smallest count at which no slice takes longer, which no shard alone does."""
    sizes = range(int(weights.sum()) + len(weights) + 1)
    cap = bisect_right(sizes, allowed_s, key=lambda n: _task_work_s(probe, plan, split, n)) - 1
    return fewest_slices(weights, cap)


def _slowest_work_s(probe: Probe, plan: Plan, split: SplitPlan, weights: Any, count: int) -> float:
    slices = make_slices(weights, min(count, len(weights)))
    return _task_work_s(probe, plan, split, max(slice_.text_bytes for slice_ in slices))


def _output_bytes(probe: Probe, split: SplitPlan) -> int:
    sample = probe.sample(split.name)
    rows = round(split.rows * sample.bytes_written / max(1, sample.rows))
    return rows + split.n_shards * sample.bytes_per_file


def _peak_gb(probe: Probe, plan: Plan) -> float:
    """Returns the peak of the probe, with what whole shards take beyond its ranges."""
    largest = max(probe.samples, key=lambda sample: sample.n_tokens)
    written = largest.bytes_written / max(1, largest.rows)
    text = largest.text_bytes / max(1, largest.rows)
    missing = max(0, max(s.rows_per_shard for s in plan.splits) - largest.largest_range)
    # A vector stands there as an array and as a table; text as Python strings and tokens beside it.
    shards_gb = SHARDS_IN_MEMORY * missing * (2 * written + 4 * text) / 1024**3
    processes = max(1, plan.cluster["gpus_per_task"])
    return float(processes * (probe.usage.get("host_mem_peak_mb", 0) / 1024 + shards_gb))
