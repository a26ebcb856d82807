"""What the dataset manifest says of how a split was computed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from chatspace.jobs.gather import gather_run, split_store
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.shards.task_manifest import TaskManifest
from tests.plans import plan_of, split_plan
from tests.shards import commit, span_of, table_of

N_SHARDS = 4


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path, (split_plan(rows=4 * N_SHARDS, rows_per_shard=4, count=N_SHARDS),))


def add_task(plan: Plan, index: int, dtype: str | None, *, node: str, **facts: Any) -> None:
    """Writes the shard and the task manifest of a slice; without a dtype as if it was killed."""
    attempt = facts.get("attempt", f"12_{index}.r0")
    (split,) = plan.splits
    path = Layout(Path(plan.workspace)).run(plan.run_id).task_manifest("train", f"{index:05d}")
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = TaskManifest.open(path, plan.owner(split), index, index + 1)
    ended = {"stages": {}, "n_tokens": 7, "n_padded_tokens": 8, "runtime": {"dtype": dtype}}
    manifest.attempts.append(
        {"attempt": attempt, "host": node, **(ended if dtype else {"state": "running"}), **facts}
    )
    manifest.record(commit(split_store(plan, split, attempt), index))


def test_gather_one_dtype_says_which_and_warns_of_nothing(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(N_SHARDS):
        add_task(plan, index, "bfloat16", node="gpu-01")
    with caplog.at_level(logging.WARNING):
        (gathered,) = gather_run(plan)
    assert gathered.content["compute_dtypes"] == ["bfloat16"]
    assert gathered.content["notes"] == []
    assert caplog.records == []


def test_gather_adds_up_the_stages_that_the_kind_names(plan: Plan) -> None:
    times = {"requests": {"busy_s": 1.5, "idle_s": 0.25}}
    for index in range(N_SHARDS):
        add_task(plan, index, "float32", node="gpu-01", stages=times)
    (gathered,) = gather_run(plan)
    total = {"requests": {"busy_s": 1.5 * N_SHARDS, "idle_s": 0.25 * N_SHARDS}}
    assert gathered.content["stages"] == total


def test_gather_two_dtypes_names_the_nodes_of_the_rarer_and_the_key(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    add_task(plan, 0, "bfloat16", node="gpu-01")
    add_task(plan, 1, "float32", node="old.example.org", slurm={"node": "old-07"})
    add_task(plan, 2, "bfloat16", node="gpu-02")
    add_task(plan, 3, None, node="gone-01")
    with caplog.at_level(logging.WARNING):
        (gathered,) = gather_run(plan)
    published = json.loads(gathered.manifest.read_text())
    assert published["compute_dtypes"] == ["bfloat16", "float32"]
    (note,) = published["notes"]
    assert "1 of 4 shards not in bfloat16, on old-07." in note
    assert "set model.dtype: bfloat16 or model.dtype: float32" in note
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{plan.run_id} split train: {note}"


def test_gather_again_warns_again(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(N_SHARDS):
        add_task(plan, index, "float16" if index else "float32", node=f"n{index}")
    gather_run(plan)
    with caplog.at_level(logging.WARNING):
        gather_run(plan)
    assert len(caplog.records) == 2 and "shards not in float16, on n0" in caplog.text


def test_gather_dtype_of_an_execution_without_a_shard_does_not_count(plan: Plan) -> None:
    for index in range(N_SHARDS):
        add_task(plan, index, "bfloat16", node="gpu-01")
    layout = Layout(Path(plan.workspace)).run(plan.run_id)
    late = TaskManifest.open(
        layout.task_manifest("train", "late"), plan.owner(plan.splits[0]), 0, 1
    )
    late.attempts.append({"attempt": "12_0.r1", "host": "cpu-01", "runtime": {"dtype": "float32"}})
    late.write()
    assert gather_run(plan)[0].content["compute_dtypes"] == ["bfloat16"]


def test_gather_without_a_single_vector_warns(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    (split,) = plan.splits
    for index in range(N_SHARDS):
        path = Layout(Path(plan.workspace)).run(plan.run_id).task_manifest("train", f"{index:05d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest = TaskManifest.open(path, plan.owner(split), index, index + 1)
        span, store = span_of(index), split_store(plan, split)
        nothing = table_of(span).slice(0, 0)
        manifest.record(store.commit(span, nothing, skipped={"no_turns": 4}, truncated=0))
    with caplog.at_level(logging.WARNING):
        (gathered,) = gather_run(plan)
    assert gathered.content["rows_embedded"] == 0
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"Nothing was embedded: {plan.run_id} split train; ")
    assert "all of 16 rows were skipped (no_turns 16). Check " in warning


def test_gather_counts_the_shards_that_were_done_again_and_not_those_that_were_resumed(
    plan: Plan,
) -> None:
    def at(minute: int) -> str:
        return f"2026-01-01T00:{minute:02}:00+00:00"

    done = {"state": "finished", "started_at": at(0), "finished_at": at(5)}
    for index in range(N_SHARDS):
        stopped = {**done, "state": "interrupted"} if index == 1 else done
        add_task(plan, index, "float32", node="gpu-01", **stopped)
    (gathered,) = gather_run(plan)
    assert gathered.content["shards_redone"] == 0
    (split,) = plan.splits
    for index in (1, 2):  # as `chatspace run --verify` does again what it set aside
        split_store(plan, split).set_aside(span_of(index))
        again = {"attempt": f"13_{index}.r0", "started_at": at(9), "finished_at": at(10)}
        add_task(plan, index, "float32", node="gpu-01", **done | again)
    (gathered,) = gather_run(plan)
    assert gathered.content["shards_redone"] == 1
    assert gathered.content["n_tokens"] == 7 * (N_SHARDS + 2)
