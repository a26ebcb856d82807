from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chatspace.errors import IncompleteError
from chatspace.jobs.setup import set_up
from chatspace.jobs.submissions import record_submission
from chatspace.layout import Layout, slice_manifest_name
from chatspace.measure.accounting import JobRecord, cpu_seconds, memory_gb, parse_records
from chatspace.measure.advice import Measured, advise, bottleneck
from chatspace.measure.probe import write_probe
from chatspace.measure.report import run_report, write_report
from chatspace.measure.report_view import render_report
from chatspace.plan.model import Plan, Slice
from chatspace.shards.records import ShardRecord
from chatspace.shards.task_manifest import TaskManifest
from tests.conftest import SpecMaker
from tests.test_measure_probe import plan_of, probe_of, sample_of, split_of

BEGUN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)

SACCT = """\
a message of the site
12_0|COMPLETED|600|01:40:00||64G|8|cpu=8,gres/gpu:h200=1,gres/gpu=1|n1|2026-11-21T09:00:00
12_0.batch|COMPLETED|600|01:40:00|3145728K||8|cpu=8,mem=64G|n1|2026-11-21T09:00:00
12_1|PREEMPTED|300|00:10.500||64G|8|cpu=8,gres/gpu=1|n2|2026-11-21T09:00:00
12_1.batch|CANCELLED|301|00:10.500|2097152K||8|cpu=8|n2|2026-11-21T09:00:00
12_1|COMPLETED|700|1-00:00:00||64G|8|cpu=8,gres/gpu=1|n1|2026-11-21T09:10:00
12_1.batch|COMPLETED|700|1-00:00:00|||8|cpu=8|n1|2026-11-21T09:10:00
12_[2-5]|PENDING|0|00:00:00||64G|0||None assigned|Unknown
12_6|CANCELLED by 1000|0|00:00:00||64G|0||None assigned|None
"""


class FakeAccounting:
    def __init__(self, *records: JobRecord) -> None:
        self.found = list(records)
        self.asked: list[list[str]] = []

    def records(self, job_ids: Sequence[str]) -> list[JobRecord] | None:
        self.asked.append(list(job_ids))
        return self.found


def record(attempt: str, state: str, elapsed_s: float, **values: Any) -> JobRecord:
    return JobRecord(
        **{
            "attempt": attempt,
            "state": state,
            "elapsed_s": elapsed_s,
            "cpu_s": elapsed_s,
            "peak_gb": 3.0,
            "req_mem": "8G",
            "cpus": 2,
            "gpus": 0,
            "nodes": "n1",
            **values,
        }
    )


def at(seconds: float) -> str:
    return (BEGUN + timedelta(seconds=seconds)).isoformat()


def attempt(name: str, begun_s: float = 0, **values: Any) -> dict[str, Any]:
    """An execution of 100 s, of which 20 s were start-up."""
    facts: dict[str, Any] = {
        "attempt": name,
        "slurm": {"array_job_id": name.partition("_")[0]} if "_" in name else {},
        "started_at": at(begun_s),
        "state": "finished",
        "finished_at": at(begun_s + 100),
        "n_tokens": 80_000,
        "elapsed_s": 100.0,
        "setup_s": 20.0,
        "stages": {
            "loader": {"busy_s": 30.0, "idle_s": 50.0},
            "encoder": {"busy_s": 78.0, "idle_s": 2.0},
            "writer": {"busy_s": 10.0, "idle_s": 70.0},
        },
        "runtime": {"gpu": None},
        "usage": {"host_mem_peak_mb": 2048, "cpus_mean": 1.7},
        **values,
    }
    return {key: value for key, value in facts.items() if value is not None}


Write = Callable[..., None]


@pytest.fixture
def plan(make_spec: SpecMaker) -> Plan:
    """A run of 300 rows: 10 shards in 2 slices, without any task done."""
    return set_up(make_spec(slices={"count": 2}, slurm={"time": "01:00:00"})).plan


@pytest.fixture
def write(plan: Plan) -> Write:
    """Writes the task manifest of a slice; `shards` says when which attempt wrote each."""

    def write(
        slice_: Slice, *attempts: dict[str, Any], shards: Any = None, suffix: str = ""
    ) -> None:
        split = plan.splits[0]
        name = slice_manifest_name(slice_.shard_start, slice_.shard_stop) + suffix
        path = Layout(Path(plan.workspace)).run(plan.run_id).task_manifest(split.name, name)
        manifest = TaskManifest.open(path, plan.owner(split), slice_.shard_start, slice_.shard_stop)
        manifest.attempts += attempts
        if shards is None:
            shards = [(span.index, attempts[-1]["attempt"], 90) for span in split.spans(slice_)]
        for index, writer, seconds in shards:
            span = split.span(index)
            manifest.shards[index] = ShardRecord(
                path="x",
                shard_index=index,
                row_start=span.row_start,
                row_stop=span.row_stop,
                rows=span.n_rows,
                rows_truncated=0,
                bytes=1000,
                sha256="0",
                embedding_dim=4,
                min_norm=1.0,
                max_norm=1.0,
                created_at=at(seconds),
                attempt=writer,
            )
        manifest.write()

    return write


def shown(report: Any) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(render_report(report))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    return text


# Accounting


def test_parse_records_gives_each_time_that_an_element_ran() -> None:
    records = {r.attempt: r for r in parse_records(SACCT)}
    assert set(records) == {"12_0.r0", "12_1.r0", "12_1.r1"}
    assert records["12_0.r0"].peak_gb == 3
    assert records["12_0.r0"].gpus == 1
    assert records["12_1.r0"].state == "PREEMPTED"
    assert records["12_1.r0"].peak_gb == 2
    assert records["12_1.r1"].peak_gb is None
    assert records["12_1.r1"].elapsed_s == 700


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:06.471", 6.471), ("10:00", 600), ("01:02:03", 3723), ("1-02:03:04", 93784), ("", 0)],
)
def test_cpu_seconds_reads_every_form(text: str, seconds: float) -> None:
    assert cpu_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "gb"),
    [("573884K", 0.5473), ("2G", 2), ("2Gn", 2), ("512M", 0.5), ("1.5T", 1536), ("", None)],
)
def test_memory_gb_reads_every_form(text: str, gb: float | None) -> None:
    assert memory_gb(text) == (None if gb is None else pytest.approx(gb, rel=1e-3))


# The report


def test_report_before_any_task_has_ended_says_so(plan: Plan, write: Write) -> None:
    with pytest.raises(IncompleteError, match="no task has ended"):
        run_report(plan)
    running = attempt("a-1", state="running", n_tokens=None, finished_at=None, elapsed_s=None)
    write(plan.splits[0].slices[0], running, shards=[])
    with pytest.raises(IncompleteError, match="no task has ended"):
        run_report(plan)


def test_report_without_slurm_asks_nobody(plan: Plan, write: Write) -> None:
    for slice_ in plan.splits[0].slices:
        write(slice_, attempt(f"host-{slice_.index}"))
    accounting = FakeAccounting()
    found = run_report(plan, accounting=accounting)
    assert accounting.asked == []
    assert found.is_complete
    assert not found.has_accounting
    assert found.outcome.rows == 300
    assert found.outcome.tokens_per_s == 1000
    assert found.outcome.tokens_per_row == pytest.approx(160_000 / 300)
    assert found.outcome.startup_s == 20
    assert found.outcome.wasted_hours == 0
    assert found.outcome.mem_gb == 2
    assert "nothing: no accounting" in shown(found)


def test_report_asks_accounting_once_for_all_jobs_but_the_gather(plan: Plan, write: Write) -> None:
    first, second = plan.splits[0].slices
    write(first, attempt("12_0.r0"))
    write(second, attempt("13_0.r0"))  # submitted by hand, so not on record
    common = {"executor": "sbatch", "offset": 0, "count": 2}
    record_submission(plan, job_id="12", split="train", **common)
    accounting = FakeAccounting(
        record("12_0.r0", "COMPLETED", 130), record("13_0.r0", "COMPLETED", 260, cpu_s=494.0)
    )
    found = run_report(plan, accounting=accounting)
    assert accounting.asked == [["12", "13"]]
    assert found.slurm_states == {"COMPLETED": 2}
    assert found.outcome.slowest_task_s == 260
    assert found.outcome.slowest_task == "train 1"
    assert found.outcome.mem_gb == 3  # more than the task itself saw
    assert found.outcome.cpus == pytest.approx(1.9)
    assert found.outcome.straggling == pytest.approx(260 / 195)


def test_report_counts_what_interruptions_and_deaths_cost(plan: Plan, write: Write) -> None:
    first, second = plan.splits[0].slices
    indexes = [span.index for span in plan.splits[0].spans(first)]
    write(
        first,
        attempt("12_0.r0", state="interrupted"),
        attempt("12_0.r1", 200, state="running", n_tokens=None, finished_at=None, elapsed_s=None),
        attempt("12_0.r2", 500),
        # Rows flow from second 20 on; its last shard is whole at second 70: 20 + 30 s are lost.
        shards=[
            (indexes[0], "12_0.r0", 70),
            *((index, "12_0.r2", 590) for index in indexes[1:]),
        ],
    )
    write(second, attempt("12_1.r0"))
    accounting = FakeAccounting(
        record("12_0.r0", "REQUEUED", 100),
        record("12_0.r1", "NODE_FAIL", 40),
        record("12_0.r2", "COMPLETED", 100),
        record("12_1.r0", "COMPLETED", 100),
    )
    found = run_report(plan, accounting=accounting)
    assert found.attempts == {"interrupted": 1, "killed": 1, "finished": 2}
    assert found.requeues == 2
    assert 3600 * found.outcome.wasted_hours == pytest.approx(50 + 40)
    assert 3600 * found.outcome.device_hours == pytest.approx(340)
    assert found.outcome.slowest_task_s == 240
    text = shown(found)
    assert "2 begun again" in text
    assert "left no shard" in text


def test_report_of_several_processes_takes_the_slowest_and_adds_their_hours(
    plan: Plan, write: Write
) -> None:
    first, second = plan.splits[0].slices
    write(first, attempt("12_0.r0"))
    write(first, attempt("12_0.r0.lane1", finished_at=at(160)), shards=[], suffix=".lane1")
    write(second, attempt("12_1.r0"))
    found = run_report(plan, accounting=FakeAccounting())
    assert found.outcome.tasks == 2
    assert found.requeues == 0
    assert found.outcome.slowest_task_s == 160
    assert 3600 * found.outcome.device_hours == pytest.approx(360)


def test_report_compares_with_the_probe(plan: Plan, write: Write) -> None:
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    write_probe(probe_of(sample_of(tokens_per_s=800.0, startup_s=10.0)), run.probe)
    first, second = plan.splits[0].slices
    write(first, attempt("a-1"))
    found = run_report(plan)
    assert not found.is_complete
    assert found.ratios()["tokens_per_s"] == 1.25
    assert "output_bytes" not in found.ratios()  # it is still growing
    assert "not complete yet" in shown(found)
    write(second, attempt("a-2"))
    found = run_report(plan)
    assert found.ratios()["startup_s"] == 2
    assert "output_bytes" in found.ratios()
    text = shown(found)
    assert "predicted" in text
    assert "+25%" in text


def test_report_of_gpus_weights_what_they_told(plan: Plan, write: Write) -> None:
    for slice_, util, peak in zip(
        plan.splits[0].slices, (90.0, 40.0), (60_000, 70_000), strict=True
    ):
        usage = {
            "host_mem_peak_mb": 2048, "cpus_mean": 1.5, "gpu_util_mean": util,
            "gpu_util_p10": 5.0, "gpu_mem_peak_mb": peak, "gpu_mem_total_mb": 143_000,
        }  # fmt: skip
        write(slice_, attempt(f"a-{slice_.index}", usage=usage, runtime={"gpu": "NVIDIA H200"}))
    found = run_report(plan)
    assert found.gpu == "NVIDIA H200"
    assert found.usage["gpu_util_mean"] == 65
    assert found.usage["gpu_mem_peak_mb"] == 70_000
    text = shown(found)
    assert "GPU-hours" in text
    assert "49%" in text
    assert "larger" in text
    assert "encode.tokens_per_batch" in text


def test_report_is_written_as_json(plan: Plan, write: Write) -> None:
    for slice_ in plan.splits[0].slices:
        write(slice_, attempt(f"a-{slice_.index}"))
    found = run_report(plan)
    path = write_report(found, plan)
    assert path == Layout(Path(plan.workspace)).run(plan.run_id).folder / "report.json"
    content = json.loads(path.read_text())
    assert content == found.to_json()
    assert content["outcome"]["straggling"] == 1
    assert content["advice"]["spec"]["slurm.mem_gb"] == "4"


# Advice


def measured(**values: Any) -> Measured:
    return Measured(
        **{
            "gpu": True,
            "slowest_task_s": 3000.0,
            "mean_task_s": 2900.0,
            "startup_s": 60.0,
            "mem_gb": 4.0,
            "cpus": 2.0,
            "wasted_share": 0.0,
            "gpu_util": 95.0,
            "busy": {"loader": 0.4, "encoder": 0.98, "writer": 0.2},
            **values,
        }
    )


PLAN = plan_of(split_of(100_000, 1000, 4), cpus_per_task=8, mem_gb=64, gpus_per_task=1)


def test_advice_of_a_good_run_has_nothing_to_say_but_the_figures() -> None:
    found = advise(PLAN, measured())
    assert found.lines == ()
    assert found.spec == {
        "slices.count": "4",
        "slurm.time": "01:20:00",
        "slurm.mem_gb": "6",
        "slurm.cpus_per_task": "3",
    }


def test_advice_divides_tasks_that_fill_their_walltime() -> None:
    found = advise(PLAN, measured(slowest_task_s=7200.0, mean_task_s=7200.0))
    assert found.spec["slices.count"] == "9"
    assert found.spec["slurm.time"] <= "02:00:00"


@pytest.mark.parametrize(
    ("busy", "stage", "words"),
    [
        ({"loader": 0.97, "encoder": 0.5, "writer": 0.1}, "loader", "cpus_per_task"),
        ({"loader": 0.2, "encoder": 0.5, "writer": 0.96}, "writer", "file system"),
        ({"loader": 0.8, "encoder": 0.95, "writer": 0.1}, None, ""),
    ],
)
def test_advice_names_the_stage_that_the_gpu_waited_for(
    busy: dict[str, float], stage: str | None, words: str
) -> None:
    assert bottleneck(busy) == stage
    lines = advise(PLAN, measured(busy=busy, gpu_util=50.0)).lines
    assert words in lines[0]
    assert ("The GPU waited 50% of the time" in lines[0]) == (stage is not None)


def test_advice_gives_a_slow_loader_more_cores_only_if_it_used_those_it_had() -> None:
    busy = {"loader": 0.97, "encoder": 0.5, "writer": 0.1}
    assert advise(PLAN, measured(busy=busy, cpus=7.5)).spec["slurm.cpus_per_task"] == "16"
    assert advise(PLAN, measured(busy=busy, cpus=1.1)).spec["slurm.cpus_per_task"] == "8"


def test_advice_without_a_gpu_leaves_the_cores_alone() -> None:
    assert advise(PLAN, measured(gpu=False, cpus=0.3)).spec["slurm.cpus_per_task"] == "8"


def test_advice_sees_startup_stragglers_waste_and_full_memory() -> None:
    lines = advise(
        PLAN,
        measured(
            slowest_task_s=400.0, mean_task_s=200.0, startup_s=80.0, mem_gb=60.0, wasted_share=0.2
        ),
    ).lines
    text = "\n".join(lines)
    assert "Start-up was 40% of a task" in text
    assert "2.0 times the mean" in text
    assert "20% of the time left no shard" in text
    assert "60.0 of 64 GiB" in text
