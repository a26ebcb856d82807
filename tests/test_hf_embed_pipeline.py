"""The stages of a slice with readers, models and commits that are slow, wrong or told to stop."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chatspace.errors import InputError, ModelError, OutputError
from chatspace.hf_embed.flow import Channel, ClosedError, Flow
from chatspace.hf_embed.metrics import StageClock
from chatspace.hf_embed.packing import PACKED
from chatspace.hf_embed.work import embed_slice, run_slice
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.work import Progress, SliceOutcome, SliceWork, StopRequest
from chatspace.shards.records import ShardSpan
from chatspace.shards.table import embedding_matrix
from tests.models import build
from tests.shards import FakeRows

ROWS_PER_SHARD = 40
N_ROWS = 150


@dataclass
class FakeReader:
    """Rows whose text is a function of their number; every tenth is skipped."""

    on_read: Callable[[ShardSpan], None] = lambda span: None
    text_of: Callable[[int], str] = lambda row: f"row {row} " + "statement " * (row * 7 % 50)
    spans: list[ShardSpan] = field(default_factory=list)

    def read(self, span: ShardSpan) -> FakeRows:
        self.on_read(span)
        self.spans.append(span)
        rows = [row for row in range(span.row_start, span.row_stop) if row % 10 != 3]
        return FakeRows(
            row_index=np.array(rows, np.int64),
            ids=pa.array([f"d/train/{row}" for row in rows], pa.string()),
            texts=[self.text_of(row) for row in rows],
            metadata=pa.array(["{}"] * len(rows), pa.string()),
            skipped={"empty_text": span.n_rows - len(rows)},
        )


@dataclass
class FakeCommit:
    """Keeps what it is given."""

    on_commit: Callable[[ShardSpan], None] = lambda span: None
    tables: dict[int, pa.Table] = field(default_factory=dict)
    facts: dict[int, tuple[dict[str, int], int]] = field(default_factory=dict)

    def __call__(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> Any:
        self.on_commit(span)
        self.tables[span.index] = table
        self.facts[span.index] = (skipped, truncated)

    def bits(self) -> dict[int, bytes]:
        return {i: embedding_matrix(t["embedding"]).tobytes() for i, t in self.tables.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert-mean", tmp_path_factory.mktemp("models") / "bert-mean")


@dataclass
class Slicer:
    """Makes and runs the work of one slice."""

    model: Path
    reader: FakeReader = field(default_factory=FakeReader)
    commit: FakeCommit = field(default_factory=FakeCommit)
    stop: StopRequest = field(default_factory=StopRequest)
    reports: list[Progress] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)

    def work(self, indices: list[int] | None = None) -> SliceWork:
        spec = {
            "dataset": {"source": "parquet", "path": "x", "split": "train"},
            "model": {"name": "tiny", "dtype": "float32", "device": "cpu"},
            "encode": {"tokens_per_batch": 512},
            "output": {"keep_columns": []},
        }
        for section, values in self.spec.items():
            spec[section] = spec[section] | values
        split = SplitPlan(
            name="train",
            dataset="d",
            revision=None,
            rows=N_ROWS,
            rows_per_shard=ROWS_PER_SHARD,
            text_bytes=0,
            files=(),
            identity=(),
            slices=(Slice(index=0, shard_start=0, shard_stop=4, text_bytes=0),),
            output_dir="out",
            manifest="manifest.json",
        )
        plan = Plan(
            kind="embed",
            name="t",
            run_id="t-12345678",
            plan_sha256="12345678",
            created_at="2026-01-02T03:04:05+00:00",
            workspace="/nowhere",
            spec=spec,
            model={"name": "tiny", "path": str(self.model)},
            splits=(split,),
        )
        wanted = range(split.n_shards) if indices is None else indices
        return SliceWork(
            plan=plan,
            split=split,
            spans=tuple(split.span(index) for index in wanted),
            commit=self.commit,
            stop=self.stop,
            report=self.reports.append,
            threads=1,
        )

    def run(self, indices: list[int] | None = None) -> SliceOutcome:
        return embed_slice(self.work(indices), self.reader)


def test_slice_commits_each_shard_with_its_rows_in_order(model: Path) -> None:
    slicer = Slicer(model)
    outcome = slicer.run()
    assert sorted(slicer.commit.tables) == [0, 1, 2, 3] and not outcome.interrupted
    rows = [row for i in range(4) for row in slicer.commit.tables[i]["row_index"].to_pylist()]
    assert rows == [row for row in range(N_ROWS) if row % 10 != 3]
    assert slicer.commit.facts[0] == ({"empty_text": 4}, slicer.commit.facts[0][1])
    table = slicer.commit.tables[0]
    assert table["text"][1].as_py() == slicer.reader.text_of(1)
    assert table["model"][0].as_py() == "tiny" and table["source"][0].as_py() == "parquet"
    norms = np.linalg.norm(embedding_matrix(table["embedding"]), axis=1)
    assert np.allclose(norms, 1, atol=1e-5)


def test_slice_measures_stages_tokens_and_what_it_ran_on(model: Path) -> None:
    slicer = Slicer(model)
    outcome = slicer.run()
    assert set(outcome.stages) == {"loader", "encoder", "writer"}
    assert all(times.busy_s > 0 and times.idle_s >= 0 for times in outcome.stages.values())
    assert 0 < outcome.n_tokens <= outcome.n_padded_tokens < 1.2 * outcome.n_tokens
    assert outcome.elapsed_s > outcome.setup_s > 0
    facts = outcome.runtime
    assert facts["embedding_dim"] == 64 and facts["max_tokens"] == 128
    assert facts["attention_impl"] == PACKED and facts["dtype"] == "float32"
    assert facts["batching"] == "pack" and facts["workers"] == facts["threads"]
    assert facts["tokens_per_batch"] == 512 and facts["threads"] == 1 and facts["torch"]
    last = slicer.reports[-1]
    assert last == Progress(
        rows=N_ROWS,
        n_tokens=outcome.n_tokens,
        n_padded_tokens=outcome.n_padded_tokens,
        stage="done",
    )
    assert slicer.reports[0].stage == "loading model"


def test_slice_reports_while_a_stage_is_slow(model: Path) -> None:
    slicer = Slicer(model, reader=FakeReader(on_read=lambda span: time.sleep(1.2)))
    slicer.run([0])
    assert sum(report.stage == "embedding" for report in slicer.reports) >= 2


def test_slice_gives_the_same_bits_in_any_order_and_division(model: Path) -> None:
    whole = Slicer(model)
    whole.run()
    parts = FakeCommit()
    for indices in ([3], [1, 0], [2]):
        Slicer(model, commit=parts).run(indices)
    assert parts.bits() == whole.commit.bits()


def test_slice_with_shards_of_no_rows_commits_them_empty(model: Path) -> None:
    class Nothing(FakeReader):
        def read(self, span: ShardSpan) -> FakeRows:
            rows = super().read(span)
            none = pa.array([], pa.string())
            return FakeRows(rows.row_index[:0], none, [], none, {"empty_text": span.n_rows})

    slicer = Slicer(model, reader=Nothing())
    outcome = slicer.run([0, 3])
    assert not outcome.interrupted and slicer.reports[-1].rows == 70
    assert slicer.commit.tables[3].num_rows == 0
    assert slicer.commit.tables[3]["embedding"].type.list_size == 64


def test_slice_counts_truncated_rows_and_can_refuse_them(model: Path) -> None:
    texts = FakeReader(text_of=lambda row: "word " * (500 if row == 47 else 3))
    slicer = Slicer(model, reader=texts)
    slicer.run()
    assert [slicer.commit.facts[i][1] for i in range(4)] == [0, 1, 0, 0]
    refusing = Slicer(model, reader=texts, spec={"model": {"on_too_long": "error"}})
    with pytest.raises(InputError, match=r"row_index=47; \d+ tokens, limit 128"):
        refusing.run()


def test_slice_stores_float16(model: Path) -> None:
    slicer = Slicer(model, spec={"output": {"dtype": "float16", "keep_text": False}})
    slicer.run([0])
    table = slicer.commit.tables[0]
    assert embedding_matrix(table["embedding"]).dtype == np.float16
    assert table["text"].null_count == table.num_rows


def test_slice_without_shards_loads_nothing(model: Path) -> None:
    slicer = Slicer(model / "does not exist")
    assert not slicer.run([]).interrupted


# Errors


def fail_at(index: int, error: Exception) -> Callable[[ShardSpan], None]:
    def fail(span: ShardSpan) -> None:
        if span.index == index:
            raise error

    return fail


def test_slice_ends_with_the_error_of_its_loader(model: Path) -> None:
    error = InputError("Parquet file is damaged: x.parquet")
    slicer = Slicer(model, reader=FakeReader(on_read=fail_at(2, error)))
    with pytest.raises(InputError) as caught:
        slicer.run()
    assert caught.value is error


def test_slice_ends_with_the_error_of_its_writer_in_seconds(model: Path) -> None:
    error = OutputError("Disk is full: shard-00000.parquet")
    slicer = Slicer(model, commit=FakeCommit(on_commit=fail_at(0, error)))
    start = time.perf_counter()
    with pytest.raises(OutputError) as caught:
        slicer.run()
    assert caught.value is error and time.perf_counter() - start < 10


def test_slice_ends_with_the_error_of_its_report(model: Path) -> None:
    slicer = Slicer(model, reader=FakeReader(on_read=lambda span: time.sleep(0.7)))
    error = OutputError("Event log cannot be written")

    def report(progress: Progress) -> None:
        if progress.stage == "embedding":
            raise error

    slicer.reports = type("Reports", (list,), {"append": staticmethod(report)})()
    with pytest.raises(OutputError) as caught:
        slicer.run()
    assert caught.value is error


def test_slice_with_a_stuck_reader_ends_with_the_error_of_another_stage(model: Path) -> None:
    def read(span: ShardSpan) -> None:
        if span.index == 1:
            time.sleep(60)

    error = OutputError("Disk is full")
    slicer = Slicer(
        model, reader=FakeReader(on_read=read), commit=FakeCommit(on_commit=fail_at(0, error))
    )
    start = time.perf_counter()
    with pytest.raises(OutputError):
        slicer.run()
    assert time.perf_counter() - start < 20


def test_slice_refuses_vectors_that_are_not_finite(model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for path in model.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(model)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(model)).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    bias = next(name for name in weights if name.endswith("encoder.layer.3.output.LayerNorm.bias"))
    weights[bias][0] = np.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"row_index=0; 36 rows"):
        Slicer(tmp_path).run()


# Stopping


def test_slice_told_to_stop_finishes_the_shard_in_hand(model: Path) -> None:
    slicer = Slicer(model)
    slicer.commit.on_commit = lambda span: slicer.stop.request(60)
    outcome = slicer.run()
    done = sorted(slicer.commit.tables)
    assert outcome.interrupted and done[0] == 0 and len(done) < 4
    assert all(table.num_rows == 36 for table in slicer.commit.tables.values())
    assert slicer.reports[-1].stage == "embedding"


def test_slice_told_to_stop_at_once_drops_the_shard_in_hand(model: Path) -> None:
    slicer = Slicer(model)

    def read(span: ShardSpan) -> None:
        if span.index == 1:
            slicer.stop.request(0)

    slicer.reader.on_read = read
    outcome = slicer.run()
    assert outcome.interrupted and len(slicer.commit.tables) <= 1


def test_slice_told_to_stop_while_it_waits_for_rows_does_not_wait(model: Path) -> None:
    slicer = Slicer(model)

    def read(span: ShardSpan) -> None:
        slicer.stop.request(60)
        time.sleep(30)

    slicer.reader.on_read = read
    start = time.perf_counter()
    assert slicer.run().interrupted
    assert time.perf_counter() - start < 15


def test_slice_told_to_stop_before_it_began_loads_nothing(model: Path) -> None:
    slicer = Slicer(model / "does not exist")
    slicer.stop.request(60)
    assert slicer.run().interrupted


# The parts that keep it from hanging


def test_channel_nobody_reads_stalls_with_a_line() -> None:
    channel: Channel[int] = Channel(Flow(stall_s=0.3), "batches", 1)
    channel.put(1, StageClock())
    clock = StageClock()
    with pytest.raises(TimeoutError, match="waiting to hand on batches"):
        channel.put(2, clock)
    assert clock.times.idle_s >= 0.3


def test_channel_of_a_failed_flow_is_closed() -> None:
    flow = Flow()
    flow.fail(ValueError("first"))
    flow.fail(ValueError("second"))
    with pytest.raises(ClosedError):
        Channel(flow, "batches", 1).get(StageClock())
    assert str(flow.error) == "first"


# The whole path


def test_run_slice_reads_parquet_and_forks_without_a_warning(model: Path, tmp_path: Path) -> None:
    code = f"""
import subprocess
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from dataclasses import replace
from chatspace.data.inputs import InputFile
from chatspace.hf_embed.work import run_slice
from tests.test_hf_embed_pipeline import Slicer
path = Path({str(tmp_path)!r}) / "in.parquet"
texts = ["row " * (i % 9 + 1) if i % 7 else "" for i in range(150)]
pq.write_table(pa.table({{"text": texts}}), path)
stat = path.stat()
file = InputFile(path=str(path), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, rows=150,
                 row_groups=(150,), text_bytes=(0,))
slicer = Slicer(Path({str(model)!r}))
work = slicer.work()
split = replace(work.split, files=(file,))
outcome = run_slice(replace(work, split=split))
subprocess.run(["true"])
assert not outcome.interrupted
print("rows", sum(t.num_rows for t in slicer.commit.tables.values()), slicer.commit.facts[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"rows 128 \(\{'empty_text': 6\}, 0\)", done.stdout), done.stdout
    assert "fork" not in done.stderr and "parallelism" not in done.stderr
    assert callable(run_slice)
