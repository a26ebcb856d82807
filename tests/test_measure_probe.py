from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from chatspace.data.inputs import InputFile
from chatspace.errors import InputError, UnfitEnvironmentError
from chatspace.jobs.setup import plan_run, set_up
from chatspace.layout import Layout
from chatspace.measure.forecast import (
    Probe,
    SplitSample,
    as_yaml,
    forecast,
    memory_to_ask,
    overrides_of,
    range_text_bytes,
    suggest,
    time_to_ask,
)
from chatspace.measure.probe import read_probe, sample_ranges, spec_key, write_probe
from chatspace.measure.probe_job import submit_probe, wait_for_probe
from chatspace.measure.probe_use import keep_probe, use_probe
from chatspace.measure.probe_view import probe_json, render_probe_result
from chatspace.plan.model import Plan, Slice, SplitPlan
from chatspace.plan.slicing import make_slices
from chatspace.plan.store import save_plan
from chatspace.spec.base import RunSpec
from tests.conftest import SpecMaker, texts, write_parquet


def split_of(
    rows: int, rows_per_shard: int, n_slices: int = 1, *, name: str = "train", byte: int = 100
) -> SplitPlan:
    n_shards = -(-rows // rows_per_shard)
    edges = [n_shards * i // n_slices for i in range(n_slices + 1)]
    slices = tuple(
        Slice(
            index=i,
            shard_start=edges[i],
            shard_stop=edges[i + 1],
            text_bytes=(min(edges[i + 1] * rows_per_shard, rows) - edges[i] * rows_per_shard)
            * byte,
        )
        for i in range(n_slices)
    )
    file = InputFile(
        path="x", bytes=1, mtime_ns=1, rows=rows, row_groups=(rows,), text_bytes=(rows * byte,)
    )
    return SplitPlan(
        name=name,
        dataset="d",
        revision=None,
        rows=rows,
        rows_per_shard=rows_per_shard,
        text_bytes=rows * byte,
        files=(file,),
        identity=(),
        slices=slices,
        output_dir=f"embeddings/{name}",
        manifest=f"indexes/{name}/manifest.json",
    )


def plan_of(*splits: SplitPlan, **cluster: Any) -> Plan:
    settings = {"time": "02:00:00", "grace_s": 120, "gpus_per_task": 0, "nodes": 1, "mem_gb": 8}
    return Plan(
        kind="embed",
        name="t",
        run_id="t-1",
        plan_sha256="1",
        created_at="",
        workspace="/nowhere",
        spec={},
        model={},
        splits=splits,
        cluster={**settings, **cluster},
    )


def sample_of(split: str = "train", **values: Any) -> SplitSample:
    return SplitSample(
        **{
            "split": split,
            "ranges": 10,
            "rows": 1000,
            "text_bytes": 100_000,
            "n_tokens": 20_000,
            "n_padded_tokens": 20_000,
            "tokens_per_s": 1000.0,
            "startup_s": 20.0,
            "bytes_written": 1_500_000,
            "bytes_per_file": 4000,
            "largest_range": 500,
            **values,
        }
    )


def probe_of(*samples: SplitSample, **values: Any) -> Probe:
    return Probe(
        **{
            "run_id": "t-1",
            "spec_key": "k",
            "created_at": "2026-11-21T09:00:00+00:00",
            "attempt": "12.r0",
            "host": "n1",
            "device_name": "some processor",
            "gpu": None,
            "dtype": "float32",
            "threads": 2,
            "seconds": 60.0,
            "tokens_per_batch": 2048,
            "samples": samples or (sample_of(),),
            "runtime": {},
            "usage": {"host_mem_peak_mb": 1024},
            "stages": {},
            **values,
        }
    )


# The sample


@settings(deadline=None)
@given(
    rows=st.integers(1, 200_000), rows_per_shard=st.integers(1, 9000), n_slices=st.integers(1, 7)
)
def test_sample_ranges_are_disjoint_inside_and_no_more_than_a_slice(
    rows: int, rows_per_shard: int, n_slices: int
) -> None:
    split = split_of(rows, rows_per_shard, min(n_slices, -(-rows // rows_per_shard)))
    ranges = sample_ranges(split)
    assert ranges
    assert ranges == sample_ranges(split)
    ordered = sorted(ranges)
    assert ordered[0][0] >= 0
    assert ordered[-1][1] <= rows
    assert all(a[1] <= b[0] for a, b in pairwise(ordered))
    most = max(sum(s.n_rows for s in split.spans(slice_)) for slice_ in split.slices)
    assert sum(stop - start for start, stop in ranges) <= most
    assert all(0 < stop - start <= rows_per_shard for start, stop in ranges)


def test_sample_ranges_of_every_beginning_are_spread_evenly() -> None:
    ranges = sample_ranges(split_of(1_000_000, 8192))
    for n in (8, 16, 32):
        middles = sorted((start + stop) / 2 for start, stop in ranges[:n])
        gaps = [b - a for a, b in zip([0.0, *middles], [*middles, 1e6], strict=True)]
        assert max(gaps) < 3.5 * 1e6 / n


def test_sample_ranges_grow_to_whole_shards_and_none_outweighs_the_rest() -> None:
    sizes = [stop - start for start, stop in sample_ranges(split_of(1_000_000, 8192))]
    assert sizes[0] == 256
    assert 8192 in sizes
    assert all(size <= max(256, sum(sizes[:i]) / 8) for i, size in enumerate(sizes))


def test_range_text_bytes_counts_by_row_group() -> None:
    split = replace(
        split_of(200, 50),
        files=(
            InputFile(
                path="x", bytes=1, mtime_ns=1, rows=200,
                row_groups=(100, 100), text_bytes=(1000, 9000),
            ),
        ),
    )  # fmt: skip
    assert range_text_bytes(split, [(0, 10)]) == 100
    assert range_text_bytes(split, [(90, 110)]) == 1000
    assert range_text_bytes(split, [(0, 100), (100, 200)]) == 10_000


# The prediction


def test_forecast_is_startup_and_tokens_of_the_slice_at_the_probes_speed() -> None:
    plan = plan_of(split_of(100_000, 1000, 4))
    found = forecast(probe_of(), plan)
    assert found.n_tokens == 2_000_000  # 100 bytes a row, 0.2 tokens a byte
    assert found.tokens_per_row == 20
    assert found.tasks == 4
    assert found.slowest_task_s == pytest.approx(20 + 500)
    assert found.device_hours == pytest.approx(4 * 520 / 3600)
    assert found.rows_per_s == pytest.approx(50)
    assert found.output_bytes == 100_000 * 1500 + 100 * 4000


def test_forecast_follows_bytes_of_text_and_not_rows() -> None:
    even = split_of(10_000, 100, 2)
    heavy = replace(even.slices[1], text_bytes=9 * even.slices[0].text_bytes)
    split = replace(even, slices=(even.slices[0], heavy), text_bytes=10 * 500_000)
    found = forecast(probe_of(), plan_of(split))
    assert found.slowest_task == "train 1"
    assert found.slowest_task_s - 20 == pytest.approx(9 * (500_000 * 0.2 / 1000))


def test_forecast_of_a_split_without_a_sample_shares_that_of_the_largest() -> None:
    plan = plan_of(split_of(100_000, 1000, 2), split_of(1000, 1000, name="test"))
    found = forecast(probe_of(), plan)
    assert found.tasks == 3
    assert found.n_tokens == 2_020_000


def test_forecast_of_a_task_with_four_gpus_divides_the_work_and_adds_the_memory() -> None:
    plan = plan_of(split_of(100_000, 500), gpus_per_task=4)
    found = forecast(probe_of(gpu="H200"), plan)
    assert found.slowest_task_s == pytest.approx(20 + 2000 / 4)
    assert found.device_hours == pytest.approx(4 * 520 / 3600)
    assert found.mem_gb == pytest.approx(4)


@pytest.mark.parametrize("rows", [20_000, 1_000_000, 40_000_000])
def test_suggest_fills_half_of_the_walltime(rows: int) -> None:
    plan = plan_of(split_of(rows, 1000))
    found = suggest(probe_of(), plan)
    assert found.slowest_task_s <= 3600 + 1
    assert not found.is_tight
    if found.count > 1:  # one task less would not fit
        assert 20 + rows * 20 / 1000 / (found.count - 1) > 3500
    assert found.time <= "02:00:00"


def test_suggest_with_slices_that_are_kept_has_the_walltime_for_them() -> None:
    plan = plan_of(split_of(1_000_000, 1000, 20), time="10:00:00")
    assert suggest(probe_of(), plan).count == 2
    assert suggest(probe_of(), plan, keep_slices=True).time == "00:30:00"
    assert suggest(probe_of(), plan).time == "04:15:00"


def test_forecast_of_a_corpus_without_text_is_startup_alone() -> None:
    empty = sample_of(n_tokens=0, text_bytes=0, tokens_per_s=1.0)
    plan = plan_of(split_of(1000, 100, byte=0))
    found = forecast(probe_of(empty), plan)
    assert (found.n_tokens, found.tokens_per_s) == (0, 0)
    assert found.slowest_task_s == 20
    assert suggest(probe_of(empty), plan).count == 1


def test_suggest_says_when_a_shard_is_too_long_for_a_task() -> None:
    found = suggest(probe_of(), plan_of(split_of(1_000_000, 500_000)))
    assert found.is_tight
    assert found.count == 2
    assert found.time == "02:00:00"


def weighted(weights: Sequence[int], name: str = "train") -> SplitPlan:
    """A split whose shards, of one row each, weigh what is given."""
    file = InputFile(
        path="x", bytes=1, mtime_ns=1, rows=len(weights),
        row_groups=(1,) * len(weights), text_bytes=tuple(weights),
    )  # fmt: skip
    return replace(split_of(len(weights), 1, name=name), files=(file,), text_bytes=sum(weights))


# One byte a second, of which a task may work 60: the least that is suggested.
SLOW = probe_of(sample_of(tokens_per_s=0.2, startup_s=0.0))


def heaviest_slice(weights: Sequence[int], count: int) -> int:
    slices = make_slices(np.array(weights), min(count, len(weights)))
    return max(slice_.text_bytes for slice_ in slices)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=20), min_size=1, max_size=2))
def test_suggest_any_weights_is_the_first_count_that_fits_or_leaves_the_heaviest_shard_alone(
    weights: list[list[int]],
) -> None:
    splits = [weighted(w, f"s{i}") for i, w in enumerate(weights)]
    found = suggest(SLOW, plan_of(*splits, time="00:01:00"))
    shard = max(map(max, weights))
    fits = (
        count
        for count in range(1, 21)
        if max(heaviest_slice(w, count) for w in weights) <= max(60, shard)
    )
    assert found.count == next(fits)
    assert found.is_tight == (shard > 60)
    assert found.slowest_task_s == pytest.approx(
        max(heaviest_slice(w, found.count) for w in weights)
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("excess", [0.999, 1.001])
def test_suggest_of_20000_shards_of_which_one_is_about_a_task_ends(excess: float) -> None:
    weights = (np.random.default_rng(0).pareto(2.5, 20_000) * 1e6).astype(np.int64) + 1
    limit_s = 2 * 10 * 3600
    bytes_per_s = weights.max() / (limit_s / 2) / excess
    probe = probe_of(sample_of(tokens_per_s=0.2 * bytes_per_s, startup_s=0.0))
    found = suggest(probe, plan_of(weighted(weights.tolist()), time="20:00:00"))
    assert found.is_tight == (excess > 1)
    allowed = max(weights.max(), limit_s / 2 * bytes_per_s)
    assert heaviest_slice(weights.tolist(), found.count) <= allowed
    assert heaviest_slice(weights.tolist(), found.count - 1) > allowed


def test_time_and_memory_have_a_margin_and_are_round() -> None:
    assert time_to_ask(60, grace_s=120) == "00:10:00"
    assert time_to_ask(3600, grace_s=120) == "01:35:00"
    assert time_to_ask(30 * 3600, grace_s=120) == "45:05:00"
    assert time_to_ask(30 * 3600, grace_s=120, limit_s=7200) == "02:00:00"
    assert memory_to_ask(0.4) == 2
    assert memory_to_ask(10.0) == 14


def test_suggestion_as_yaml_is_a_part_of_a_run_spec() -> None:
    lines = as_yaml(overrides_of(suggest(probe_of(), plan_of(split_of(20_000, 100)))))
    assert yaml.safe_load("\n".join(lines)) == {
        "slices": {"count": 1},
        "slurm": {"time": "00:15:00", "mem_gb": 2},
        "encode": {"tokens_per_batch": 2048},
    }


def test_probe_result_is_read_at_80_columns_and_warns_of_another_device() -> None:
    plan = plan_of(split_of(100_000, 1000, 4), gpus_per_task=1, cpus_per_task=8)
    probe = probe_of(sample_of(row_tokens={"p10": 2.0, "p50": 12.0, "p90": 60.0}))
    console = Console(width=80, file=io.StringIO())
    console.print(render_probe_result(probe, plan, setup_command="chatspace setup s.yaml"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "8:40 each on average" in text
    assert "task-hours" in text
    assert "Tasks ask for a GPU and this was measured without one" in text
    assert '    time: "00:55:00"' in text
    assert "busy with other work" not in text
    console = Console(width=80, file=io.StringIO())
    busy = replace(probe, usage={"host_mem_peak_mb": 900, "cpus_mean": 0.3})
    console.print(render_probe_result(busy, plan, setup_command="chatspace setup s.yaml"))
    assert isinstance(console.file, io.StringIO)
    assert "the probe got 0.3 of 2 cores" in " ".join(console.file.getvalue().split())
    shown = probe_json(probe, plan)
    assert json.loads(json.dumps(shown))["suggestion"]["spec"]["slices.count"] == "1"


# Taking it


def probed(spec: RunSpec, **values: Any) -> Plan:
    """Leaves a probe of the spec, as `chatspace probe` does."""
    plan = plan_run(spec)
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    key = spec_key(plan.kind, plan.spec)
    write_probe(probe_of(run_id=plan.run_id, spec_key=key, **values), run.probe)
    save_plan(plan, run.probe_folder / "plan.json")
    return plan


def test_use_probe_takes_what_the_spec_does_not_set(make_spec: SpecMaker) -> None:
    spec = make_spec(slices={"max_tasks": 2}, slurm={"mem_gb": 3})
    probed(spec)
    used = use_probe(spec)
    assert used.overrides == ("slurm.time=00:10:00", "encode.tokens_per_batch=2048")
    text = "\n".join(used.lines)
    assert "slices.count: 1 not taken, the spec sets slices.max_tasks" in text
    assert "slurm.mem_gb: 2 not taken, the spec sets slurm.mem_gb" in text


def test_use_probe_again_gives_the_same_run(make_spec: SpecMaker) -> None:
    spec = make_spec()
    probed(spec)
    runs = []
    for _ in range(2):
        used = use_probe(spec)
        done = set_up(make_spec(encode={"tokens_per_batch": 2048}))
        keep_probe(used.probe, done.plan)
        runs.append((done.plan.run_id, used.overrides))
    assert runs[0] == runs[1]
    kept = read_probe(Layout(Path(done.plan.workspace)).run(done.plan.run_id).probe)
    assert kept == used.probe


def test_use_probe_of_a_run_that_is_set_up_keeps_its_identity(make_spec: SpecMaker) -> None:
    spec = make_spec()
    probed(spec)
    set_up(spec)
    used = use_probe(spec)
    assert not [text for text in used.overrides if text.startswith("encode.")]
    assert "would become another run" in used.lines[-1]


def test_use_probe_without_one_says_how_to_make_it(make_spec: SpecMaker) -> None:
    probed(make_spec(output={"dtype": "float16"}))
    with pytest.raises(InputError, match=r"Run `chatspace probe SPEC` first\."):
        use_probe(make_spec())


def test_use_probe_of_a_cpu_for_tasks_with_gpus_is_refused(make_spec: SpecMaker) -> None:
    spec = make_spec(slurm={"gpus_per_task": 1})
    probed(spec)
    with pytest.raises(InputError, match="--submit"):
        use_probe(spec)
    probed(spec, gpu="NVIDIA H200")
    assert use_probe(spec).overrides


# As a job


class FakeScheduler:
    """Keeps what it is given; `state` is that of every job."""

    def __init__(self, state: str = "PENDING") -> None:
        self.state, self.checked, self.submitted = state, "", list[Path]()

    def check(self, script: str) -> None:
        self.checked = script

    def submit(self, script: Path, *, after: Sequence[str] = ()) -> str:
        self.submitted.append(script)
        return str(11 + len(self.submitted))

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(job_ids, self.state)

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise AssertionError(job_ids)


def test_submit_probe_has_the_directives_of_the_run_and_one_process(make_spec: SpecMaker) -> None:
    slurm = {"partition": "gpu", "gpus_per_task": 4, "time": "24:00:00", "account": "proj1"}
    plan = plan_run(make_spec(slurm={**slurm, "profile": "generic"}))
    scheduler = FakeScheduler()
    job = submit_probe(plan, scheduler, seconds=90)
    (script,) = scheduler.submitted
    text = script.read_text()
    assert text == scheduler.checked
    for line in ("partition=gpu", "account=proj1", "time=12", "ntasks=1", "gres=gpu:1"):
        assert f"#SBATCH --{line}\n" in text, text
    assert "--array" not in text
    assert subprocess.run(["bash", "-n", str(script)], timeout=10).returncode == 0
    assert job.log.name == f"{plan.run_id}-probe-12.out"
    assert not Layout(Path(plan.workspace)).run(plan.run_id).plan.exists()


def test_submit_probe_again_waits_for_the_one_in_the_queue(make_spec: SpecMaker) -> None:
    plan, scheduler = plan_run(make_spec()), FakeScheduler("RUNNING")
    first = submit_probe(plan, scheduler, seconds=60)
    again = submit_probe(plan, scheduler, seconds=60)
    assert (again.job_id, again.is_new) == (first.job_id, False)
    scheduler.state = "COMPLETED"
    assert submit_probe(plan, scheduler, seconds=60).is_new


def test_wait_for_probe_returns_the_result_of_that_job_alone(make_spec: SpecMaker) -> None:
    plan, scheduler = plan_run(make_spec()), FakeScheduler("RUNNING")
    job = submit_probe(plan, scheduler, seconds=60)
    path = Layout(Path(plan.workspace)).run(plan.run_id).probe
    write_probe(probe_of(attempt="11.r0"), path)
    with pytest.raises(TimeoutError, match="job 12 is PENDING after 0 minutes"):
        wait_for_probe(plan, job, scheduler, wait_min=0, say=lambda _: None)
    write_probe(probe_of(attempt="12.r0"), path)
    found = wait_for_probe(plan, job, scheduler, wait_min=1, say=lambda _: None)
    assert found.attempt == "12.r0"


def test_wait_for_probe_of_a_failed_job_shows_the_end_of_its_log(
    make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("ASK_S", 0.05), ("LOOK_S", 0.02), ("LATE_FILE_S", 0.1)):
        monkeypatch.setattr(f"chatspace.measure.probe_job.{name}", seconds)
    plan, scheduler = plan_run(make_spec()), FakeScheduler("FAILED")
    job = submit_probe(plan, scheduler, seconds=60)
    job.log.write_text("some lines\nchatspace: Model not found: x.\n")
    said: list[str] = []
    with pytest.raises(UnfitEnvironmentError, match="job 12 FAILED; chatspace: Model not found"):
        wait_for_probe(plan, job, scheduler, wait_min=1, say=said.append)
    assert said == ["job 12: FAILED"]


# The whole of it


@pytest.mark.slow
def test_probe_predicts_the_run_and_leaves_its_output_alone(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = texts(5000)
    # The later half is longer: rows alone would not tell how long a slice takes.
    corpus = [t if i < 2500 else f"{t} {t}" for i, t in enumerate(corpus)]
    write_parquet(tmp_path / "data" / "train.parquet", {"text": corpus}, row_group_size=500)
    write_parquet(tmp_path / "data" / "test.parquet", {"text": texts(50, 5)})
    (tmp_path / "spec.yaml").write_text(
        "kind: embed\nname: p\nworkspace: ws\n"
        "dataset: {source: parquet, path: 'data/{split}.parquet', splits: [train, test]}\n"
        f"model: {{name: {tiny_model}, dtype: float32, device: cpu, max_tokens: 128}}\n"
        "output: {rows_per_shard: 500}\nslices: {count: 1}\nslurm: {profile: local}\n"
    )

    def chatspace(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "chatspace", *words],
            cwd=tmp_path, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True,
            timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = json.loads(chatspace("probe", "spec.yaml", "--minutes", "0.1", "--json"))
    (folder,) = (tmp_path / "ws" / "runs").iterdir()
    assert not (tmp_path / "ws" / "embeddings").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["probe", "probe.json"]
    assert [p.name for p in (folder / "probe").iterdir()] == ["plan.json"]
    assert [sample["split"] for sample in shown["samples"]] == ["train"]
    assert shown["samples"][0]["row_tokens"]["p90"] > shown["samples"][0]["row_tokens"]["p10"] > 0
    begun = time.monotonic()
    chatspace("run", "spec.yaml")
    report = json.loads(chatspace("report", str(folder), "--json"))
    ratios = report["ratios"]
    with capsys.disabled():
        print(f"\nrun over probe: {ratios} (run took {time.monotonic() - begun:.0f} s)")
    assert report == json.loads((folder / "report.json").read_text())
    # What does not depend on how busy this machine is.
    for key in ("tokens_per_row", "n_tokens", "output_bytes"):
        assert 0.9 < ratios[key] < 1.1, key
    assert 0.7 < ratios["mem_gb"] < 1.4
    # What does: other tests run beside this one.
    assert 0.2 < ratios["tokens_per_s"] < 5
