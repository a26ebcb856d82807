"""What a run's own figures say to ask for next time, and why a GPU sat idle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chatspace.measure.forecast import FILL, NO_LIMIT_S, memory_to_ask, time_to_ask
from chatspace.plan.model import Plan
from chatspace.spec.slurm import walltime_s

# Below these nothing is worth a line.
WAITING = 0.15
STRAGGLING = 1.5
STARTING = 0.25
WASTE = 0.05
GPU_BUSY_PERCENT = 70.0
CPU_MARGIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What advice is made of.

    Attributes:
        cpus: cores that a process used on average.
        wasted_share: of all device hours, 0 to 1.
        gpu_util: percent of the time in which the GPU computed, None where it is not known.
        busy: share of its time that each stage worked, 0 to 1.
    """

    gpu: bool
    slowest_task_s: float
    mean_task_s: float
    startup_s: float
    mem_gb: float
    cpus: float
    wasted_share: float
    gpu_util: float | None
    busy: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to ask for.

    Attributes:
        spec: keys and values of the run spec.
        lines: what was seen, a sentence each.
    """

    spec: dict[str, str]
    lines: tuple[str, ...]


def advise(plan: Plan, measured: Measured) -> Advice:
    """Returns what to ask for when a run like this is planned again."""
    limit_s = walltime_s(plan.cluster["time"]) or NO_LIMIT_S
    tasks = max(len(split.slices) for split in plan.splits)
    most = max(split.n_shards for split in plan.splits)
    work_s = max(0.0, measured.slowest_task_s - measured.startup_s)
    room_s = max(60.0, FILL * limit_s - measured.startup_s)
    count = min(most, max(1, math.ceil(tasks * work_s / room_s)))
    slowest_s = measured.startup_s + work_s * tasks / count
    spec = {
        "slices.count": str(count),
        "slurm.time": time_to_ask(slowest_s, grace_s=plan.cluster["grace_s"], limit_s=limit_s),
        "slurm.mem_gb": str(memory_to_ask(measured.mem_gb)),
        "slurm.cpus_per_task": str(_cpus(plan, measured)),
    }
    return Advice(spec=spec, lines=tuple(_lines(plan, measured)))


def bottleneck(busy: Mapping[str, float]) -> str | None:
    """Returns the stage that the encoder waited for, None where it hardly waited."""
    others = {name: share for name, share in busy.items() if name != "encoder"}
    if 1 - busy.get("encoder", 1.0) < WAITING or not others:
        return None
    return max(others, key=lambda name: others[name])


def _cpus(plan: Plan, measured: Measured) -> int:
    asked = int(plan.cluster["cpus_per_task"])
    # Without a GPU more cores are more speed: how many is the user's choice.
    if not measured.gpu or not measured.cpus:
        return asked
    if bottleneck(measured.busy) == "loader":
        return 2 * asked if measured.cpus > 0.7 * asked else asked
    return max(2, math.ceil(CPU_MARGIN * measured.cpus))


def _lines(plan: Plan, measured: Measured) -> Iterator[str]:
    busy, waited_for = measured.busy, bottleneck(measured.busy)
    device = "GPU" if measured.gpu else "encoder"
    waiting = 1 - busy.get("encoder", 1.0)
    if waited_for == "loader":
        yield (
            f"The {device} waited {waiting:.0%} of the time, for rows: the loader was busy "
            f"{busy['loader']:.0%}. More slurm.cpus_per_task, or encode.prefetch_shards: 4."
        )
    elif waited_for == "writer":
        yield (
            f"The {device} waited {waiting:.0%} of the time, to hand over vectors: the writer was "
            f"busy {busy['writer']:.0%}. A faster file system for the workspace, or "
            "output.dtype: float16."
        )
    util = measured.gpu_util
    if util is not None and util < GPU_BUSY_PERCENT and waited_for is None:
        yield (
            f"The GPU computed {util:.0f} % of the time though it had rows: a larger "
            "encode.tokens_per_batch or more encode.workers."
        )
    share = measured.startup_s / measured.mean_task_s if measured.mean_task_s else 0.0
    if share > STARTING:
        yield f"Start-up was {share:.0%} of a task: fewer slices load the model less often."
    straggling = measured.slowest_task_s / measured.mean_task_s if measured.mean_task_s else 1.0
    if straggling > STRAGGLING:
        yield (
            f"The slowest task took {straggling:.1f} times the mean: more slices even that out, "
            "or its node was slow."
        )
    if measured.wasted_share > WASTE:
        yield (
            f"{measured.wasted_share:.0%} of the time left no shard: tasks were interrupted or "
            "failed. A smaller output.rows_per_shard loses less; `chatspace logs RUN --failed`."
        )
    if measured.mem_gb > 0.9 * plan.cluster["mem_gb"]:
        asked = plan.cluster["mem_gb"]
        yield f"The memory was nearly used up: {measured.mem_gb:.1f} of {asked} GiB."
