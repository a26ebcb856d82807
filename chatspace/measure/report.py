"""The report of a run: prediction beside outcome, and what to ask for next time.

Joins what the tasks wrote of themselves, in their task manifests, with one question to SLURM's
accounting and with the probe of the run, where there was one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from chatspace.atomic import atomic_write_text
from chatspace.errors import IncompleteError
from chatspace.jobs.directives import lanes_of
from chatspace.jobs.submissions import read_submissions
from chatspace.layout import Layout, path_component
from chatspace.measure.accounting import Accounting, JobRecord, SlurmAccounting
from chatspace.measure.advice import Advice, Measured, advise
from chatspace.measure.figures import Figures, rates, task_times
from chatspace.measure.forecast import Forecast, forecast
from chatspace.measure.probe import read_probe
from chatspace.plan.model import Plan
from chatspace.shards.store import utc_now
from chatspace.shards.task_manifest import TaskManifest, read_task_manifest

FINISHED = "finished"
KILLED = "killed"
RUNNING = "running"
# What an unfinished run can be compared in.
RATES = ("tokens_per_row", "tokens_per_s", "rows_per_s", "startup_s", "mem_gb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of one task by one process.

    Attributes:
        task: the task's name; processes of one task share it.
        name: `12_3.r0`, without what distinguishes the processes of a task.
        state: `finished`, `interrupted`, `failed`, `running`, or `killed` where it could not say.
        elapsed_s: wall time, as SLURM says, else as far as it told.
        working_s: of it, those in which rows flowed.
        kept_s: of those, until its last shard was whole.
        rows: input rows of its shards.
        usage: see `jobs.usage`.
    """

    task: str
    name: str
    state: str
    elapsed_s: float
    working_s: float
    kept_s: float
    rows: int
    n_tokens: int
    gpu: str | None
    stages: Mapping[str, Mapping[str, float]]
    usage: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Figures):
    """What the run took, in the terms of its prediction.

    Of the tasks, all attempts together are counted, and for their times the tasks that finished;
    rows are those of the shards on record.

    Attributes:
        tasks_finished: tasks with nothing left to do.
        wasted_hours: of `device_hours`, those that left no shard.
        cpus: processor cores that one process used on average, the most of all attempts.
    """

    tasks_finished: int
    wasted_hours: float
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Prediction, outcome and advice of one run; stands in `report.json`.

    Attributes:
        is_complete: whether every shard is on record.
        prediction: what the probe says of the plan, None without a probe.
        attempts: executions by state.
        requeues: how often a task was begun again.
        gpu: name of the GPU, None on a CPU.
        usage: GPU figures over all attempts.
        stages: seconds of the stages, over all attempts.
        slurm_states: what accounting says of the tasks, by state; empty without it.
        asked: what the tasks had asked for.
    """

    schema_version: int = 1
    run_id: str
    created_at: str
    is_complete: bool
    prediction: Forecast | None
    outcome: Outcome
    attempts: dict[str, int]
    requeues: int
    gpu: str | None
    usage: dict[str, float]
    stages: dict[str, dict[str, float]]
    slurm_states: dict[str, int]
    has_accounting: bool
    asked: dict[str, Any]
    advice: Advice

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        straggling = round(self.outcome.straggling, 3)
        content = asdict(self)
        content["outcome"]["straggling"] = straggling
        content["advice"]["lines"] = list(self.advice.lines)
        content["ratios"] = self.ratios()
        return content

    def _repr_html_(self) -> str:
        """Returns what Jupyter shows."""
        from chatspace.measure.report_view import render_report
        from chatspace.watch.status_html import rich_html

        return rich_html(render_report(self))

    def ratios(self) -> dict[str, float]:
        """Returns outcome over prediction of each figure that both have; 1 is as predicted.

        Of a run that is not complete, those are left out that grow with it.
        """
        if self.prediction is None:
            return {}
        expected, found = asdict(self.prediction), asdict(self.outcome)
        if not self.is_complete:
            expected = {key: expected[key] for key in RATES}
        return {
            key: round(found[key] / expected[key], 4)
            for key in expected
            if isinstance(expected[key], (int, float)) and expected[key] and key in found
        }


def run_report(plan: Plan, *, accounting: Accounting | None = None) -> Report:
    """Looks at what a run took so far.

    Args:
        plan: the run.
        accounting: asked once, if anything was submitted to it [SLURM].

    Raises:
        IncompleteError: no task of the run has ended an execution yet.
    """
    manifests = _manifests(plan)
    records = _records(plan, manifests, accounting or SlurmAccounting())
    attempts = list(_attempts(plan, manifests, records or []))
    if not any(attempt.n_tokens for attempt in attempts):
        raise IncompleteError(
            f"Nothing measured yet: {plan.run_id}; no task has ended. Run it again later, or see "
            f"`chatspace status`."
        )
    probe = read_probe(Layout(Path(plan.workspace)).run(plan.run_id).probe)
    outcome = _outcome(plan, manifests, attempts, records or [])
    gpu = next((attempt.gpu for attempt in attempts if attempt.gpu), None)
    n_shards = len({(m.owner.split, index) for m in manifests for index in m.shards})
    usage, stages = _usage(attempts), _stages(attempts)
    return Report(
        run_id=plan.run_id,
        created_at=utc_now(),
        is_complete=n_shards == sum(split.n_shards for split in plan.splits),
        prediction=forecast(probe, plan) if probe else None,
        outcome=outcome,
        attempts=dict(Counter(attempt.state for attempt in attempts)),
        requeues=len({(a.task, a.name) for a in attempts}) - len({a.task for a in attempts}),
        gpu=gpu,
        usage=usage,
        stages=stages,
        slurm_states=dict(Counter(record.state for record in records or [])),
        has_accounting=bool(records),
        asked={key: plan.cluster.get(key) for key in ("time", "mem_gb", "cpus_per_task")},
        advice=advise(plan, _measured(outcome, gpu, usage, stages)),
    )


def write_report(report: Report, plan: Plan) -> Path:
    """Writes `report.json` by rename and returns its path.

    Raises:
        OutputError: the run's folder cannot be written.
    """
    path = Layout(Path(plan.workspace)).run(plan.run_id).report
    atomic_write_text(path, json.dumps(report.to_json(), ensure_ascii=False, indent=1) + "\n")
    return path


def _manifests(plan: Plan) -> list[TaskManifest]:
    folder = Layout(Path(plan.workspace)).run(plan.run_id).tasks
    found = (read_task_manifest(path) for path in sorted(folder.glob("*.json")))
    return [m for m in found if m is not None and m.owner.plan_sha256 == plan.plan_sha256]


def _records(
    plan: Plan, manifests: Sequence[TaskManifest], accounting: Accounting
) -> list[JobRecord] | None:
    """Returns what accounting says of the tasks; the gather job is none."""
    names = {_job_of(attempt) for manifest in manifests for attempt in manifest.attempts}
    submitted = [s for s in read_submissions(plan) if s.executor != "local" and s.split is not None]
    ids = {name for name in names if name} | {s.job_id for s in submitted if s.job_id.isdigit()}
    return accounting.records(sorted(ids, key=int)) if ids else None


def _job_of(attempt: Mapping[str, Any]) -> str:
    slurm = attempt.get("slurm") or {}
    return str(slurm.get("array_job_id") or slurm.get("job_id") or "")


def _attempts(
    plan: Plan, manifests: Sequence[TaskManifest], records: Sequence[JobRecord]
) -> Iterator[Attempt]:
    labels = {
        (split.name, slice_.shard_start, slice_.shard_stop): f"{split.name} {slice_.index}"
        for split in plan.splits
        for slice_ in split.slices
    }
    by_name = {record.attempt: record for record in records}
    for manifest in manifests:
        stem, _, lane = manifest.path.stem.partition(".lane")
        place = (manifest.owner.split, manifest.shard_start, manifest.shard_stop)
        is_slice = stem.startswith(f"{path_component(place[0])}-{place[1]:05d}-")
        task = labels.get(place, stem) if is_slice else stem
        for position, content in enumerate(manifest.attempts):
            name = str(content.get("attempt", "")).removesuffix(f".lane{lane}")
            is_last = position == len(manifest.attempts) - 1
            yield _attempt(manifest, content, task, name, by_name.get(name), is_last=is_last)


def _attempt(
    manifest: TaskManifest,
    content: Mapping[str, Any],
    task: str,
    name: str,
    record: JobRecord | None,
    *,
    is_last: bool,
) -> Attempt:
    state = str(content.get("state", RUNNING))
    if state == RUNNING and (not is_last or (record and record.state != "RUNNING")):
        state = KILLED
    started = _moment(content.get("started_at"))
    shards = [s for s in manifest.shards.values() if s.attempt == content.get("attempt")]
    written = [moment for s in shards if (moment := _moment(s.created_at)) is not None]
    told_s = float(content.get("elapsed_s", 0.0))
    setup_s = float(content.get("setup_s", 0.0))
    until_shard_s = max(written) - started if written and started is not None else 0.0
    ended = _moment(content.get("finished_at"))
    wall_s = ended - started if ended is not None and started is not None else until_shard_s
    working_s = max(0.0, told_s - setup_s) if told_s else max(0.0, until_shard_s)
    return Attempt(
        task=task,
        name=name,
        state=state,
        elapsed_s=max(record.elapsed_s if record else 0.0, wall_s, told_s),
        working_s=working_s,
        kept_s=working_s
        if state == FINISHED
        else min(working_s, max(0.0, until_shard_s - setup_s)),
        rows=sum(shard.row_stop - shard.row_start for shard in shards),
        n_tokens=int(content.get("n_tokens", 0)),
        gpu=(content.get("runtime") or {}).get("gpu"),
        stages=content.get("stages") or {},
        usage=content.get("usage") or {},
    )


def _outcome(
    plan: Plan,
    manifests: Sequence[TaskManifest],
    attempts: Sequence[Attempt],
    records: Sequence[JobRecord],
) -> Outcome:
    shards = {(m.owner.split, index): s for m in manifests for index, s in m.shards.items()}
    timed = [attempt for attempt in attempts if attempt.n_tokens]
    n_tokens = sum(attempt.n_tokens for attempt in timed)
    done = {a.task for a in attempts if a.state == FINISHED}
    task_s = _task_seconds(attempts)
    finished_s = {task: s for task, s in task_s.items() if task in done} or task_s
    wasted_s = sum(a.elapsed_s - a.kept_s for a in attempts if a.state not in (FINISHED, RUNNING))
    processes = max(1, int(plan.cluster["gpus_per_task"]))
    return Outcome(
        tasks=len(task_s),
        tasks_finished=len(done),
        rows=sum(shard.row_stop - shard.row_start for shard in shards.values()),
        n_tokens=n_tokens,
        **rates(n_tokens, sum(a.rows for a in timed), sum(a.working_s for a in timed)),
        startup_s=mean(a.elapsed_s - a.working_s for a in timed),
        **task_times(finished_s),
        device_hours=sum(attempt.elapsed_s for attempt in attempts) / 3600,
        wasted_hours=wasted_s / 3600,
        output_bytes=sum(shard.bytes for shard in shards.values()),
        mem_gb=processes * _peak_gb(attempts, records),
        cpus=_cpus(attempts, records, lanes_of(plan.cluster)),
    )


def _task_seconds(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Returns the time of each task: processes side by side take as long as the slowest of them."""
    walls: dict[str, dict[str, float]] = {}
    for attempt in attempts:
        runs = walls.setdefault(attempt.task, {})
        runs[attempt.name] = max(runs.get(attempt.name, 0.0), attempt.elapsed_s)
    return {task: sum(runs.values()) for task, runs in walls.items()}


def _peak_gb(attempts: Sequence[Attempt], records: Sequence[JobRecord]) -> float:
    told = [a.usage["host_mem_peak_mb"] / 1024 for a in attempts if "host_mem_peak_mb" in a.usage]
    return max([*told, *(r.peak_gb for r in records if r.peak_gb is not None)], default=0.0)


def _cpus(attempts: Sequence[Attempt], records: Sequence[JobRecord], lanes: int) -> float:
    told = [a.usage["cpus_mean"] for a in attempts if "cpus_mean" in a.usage]
    ran = [r.cpu_s / r.elapsed_s / lanes for r in records if r.elapsed_s > 0]
    return float(max([*told, *ran], default=0.0))


def _usage(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Returns GPU figures over all attempts: shares weighted by time, peaks as they are."""
    figures: dict[str, float] = {}
    for key in ("gpu_util_mean", "gpu_util_p10", "gpu_util_p50", "gpu_idle_share"):
        weighted = [(max(a.elapsed_s, 1e-9), a.usage[key]) for a in attempts if key in a.usage]
        if weighted:
            total_s = sum(weight for weight, _ in weighted)
            figures[key] = round(sum(weight * value for weight, value in weighted) / total_s, 3)
    for key in ("gpu_mem_peak_mb", "gpu_mem_total_mb"):
        values = [a.usage[key] for a in attempts if key in a.usage]
        figures |= {key: max(values)} if values else {}
    return figures


def _stages(attempts: Sequence[Attempt]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {}
    for attempt in attempts:
        for name, times in attempt.stages.items():
            total = totals.setdefault(name, {"busy_s": 0.0, "idle_s": 0.0})
            for key in total:
                total[key] = round(total[key] + times[key], 3)
    return totals


def _measured(
    outcome: Outcome,
    gpu: str | None,
    usage: Mapping[str, float],
    stages: Mapping[str, Mapping[str, float]],
) -> Measured:
    return Measured(
        gpu=gpu is not None,
        slowest_task_s=outcome.slowest_task_s,
        mean_task_s=outcome.mean_task_s,
        startup_s=outcome.startup_s,
        mem_gb=outcome.mem_gb,
        cpus=outcome.cpus,
        wasted_share=outcome.wasted_hours / outcome.device_hours if outcome.device_hours else 0.0,
        gpu_util=usage.get("gpu_util_mean"),
        busy={
            name: times["busy_s"] / total
            for name, times in stages.items()
            if (total := times["busy_s"] + times["idle_s"]) > 0
        },
    )


def _moment(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
