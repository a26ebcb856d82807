import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.errors import OutputError
from chatspace.shards.gather import Coverage, count_shards, prove_coverage
from chatspace.shards.store import sha256_of
from chatspace.shards.task_manifest import TaskManifest
from tests.shards import OWNER, STRANGER, commit, span_of, store_at

N_SHARDS = 6
SPANS = [span_of(i) for i in range(N_SHARDS)]
STATES = ("recorded", "unrecorded", "other size recorded", "truncated", "absent", "lost")


def manifest_at(tasks: Path, start: int = 0, stop: int = N_SHARDS, **changes: str) -> TaskManifest:
    tasks.mkdir(exist_ok=True)
    path = tasks / f"train-{start:05d}-{stop:05d}.json"
    return TaskManifest.open(path, replace(OWNER, **changes), start, stop)


def prove(root: Path, *, verify: bool = False) -> Coverage:
    return prove_coverage(store_at(root / "shards"), SPANS, root / "tasks", verify=verify)


def put(root: Path, index: int, state: str, manifest: TaskManifest) -> None:
    """Brings one shard into a state; `lost` was recorded, then deleted."""
    if state == "absent":
        return
    store = store_at(root / "shards")
    record = commit(store, index)
    if state == "other size recorded":
        record = replace(record, bytes=record.bytes + 1, sha256="f" * 64)
    if state != "unrecorded":
        manifest.record(record)
    if state == "truncated":
        os.truncate(store.path(span_of(index)), record.bytes - 10)
    if state == "lost":
        store.path(span_of(index)).unlink()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STATES), min_size=N_SHARDS, max_size=N_SHARDS))
def test_prove_coverage_any_mixture_exactly_the_absent_are_missing(states: list[str]) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        manifest = manifest_at(root / "tasks")
        for index, state in enumerate(states):
            put(root, index, state, manifest)
        gone = {i for i, state in enumerate(states) if state in ("truncated", "absent", "lost")}
        coverage = prove(root)
        assert {span.index for span in coverage.missing} == gone
        assert [r.shard_index for r in coverage.records] == sorted(set(range(N_SHARDS)) - gone)
        assert coverage.problems == ()
        assert coverage.complete == (not gone)
        for record in coverage.records:
            path = root / "shards" / Path(record.path).name
            assert (record.sha256, record.bytes) == (sha256_of(path), path.stat().st_size)
        assert prove(root) == coverage
        assert prove(root, verify=True) == coverage


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=4),
    st.sets(st.integers(0, 3)),
)
def test_prove_coverage_overlapping_and_torn_manifests_change_no_record(
    ranges: list[tuple[int, int]], torn: set[int]
) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        records = [commit(store_at(root / "shards"), i) for i in range(N_SHARDS)]
        paths = []
        for start, length in ranges:
            stop = min(start + length, N_SHARDS)
            manifest = manifest_at(root / "tasks", start, stop)
            for record in records[start:stop]:
                manifest.record(record)
            paths.append(manifest.path)
        for position in torn & set(range(len(paths))):
            os.truncate(paths[position], paths[position].stat().st_size // 2)
        coverage = prove(root, verify=True)
        assert coverage.complete
        assert [r.sha256 for r in coverage.records] == [r.sha256 for r in records]


def test_prove_coverage_two_records_of_one_shard_the_later_counts(tmp_path: Path) -> None:
    new = commit(store_at(tmp_path / "shards"), 0)
    others = (
        commit(store_at(tmp_path / str(value)), 0, value=float(value)) for value in range(1, 50)
    )
    old = next(other for other in others if other.bytes == new.bytes)
    assert old.sha256 != new.sha256
    manifest_at(tmp_path / "tasks", 0, 1).record(replace(new, created_at="2026-01-01T00:00:02"))
    manifest_at(tmp_path / "tasks", 0, 2).record(replace(old, created_at="2026-01-01T00:00:01"))
    assert prove(tmp_path).records[0].sha256 == new.sha256


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"shards": null}', "\x00\xff"])
def test_prove_coverage_damaged_manifest_is_logged_and_passed_over(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = manifest_at(tmp_path / "tasks")
    manifest.record(commit(store_at(tmp_path / "shards"), 0))
    manifest.path.write_bytes(text.encode("latin-1"))
    (tmp_path / "tasks" / "a folder.json").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [r.shard_index for r in prove(tmp_path).records] == [0]
    assert "damaged task manifest" in caplog.text


def test_prove_coverage_foreign_manifest_is_refused_by_name(tmp_path: Path) -> None:
    foreign = manifest_at(tmp_path / "tasks", **{"plan_sha256": "b" * 64, "run_id": "docs-bb"})
    foreign.write()
    with pytest.raises(OutputError, match=rf"{foreign.path.name} belongs to run docs-bb"):
        prove(tmp_path)


def test_prove_coverage_manifest_of_another_split_is_not_counted(tmp_path: Path) -> None:
    other = manifest_at(tmp_path / "tasks", 0, 1, split="test")
    other.attempts.append({"attempt": "1_0.r0"})
    other.write()
    mine = manifest_at(tmp_path / "tasks", 1, 2)
    mine.attempts.append({"attempt": "2_0.r0"})
    mine.record(commit(store_at(tmp_path / "shards"), 1))
    assert prove(tmp_path).attempts == ({"shard_start": 1, "shard_stop": 2, "attempt": "2_0.r0"},)


def test_prove_coverage_foreign_shard_is_refused_by_name(tmp_path: Path) -> None:
    commit(store_at(tmp_path / "shards", STRANGER), 3)
    with pytest.raises(OutputError, match=r"shard-00003.parquet belongs to run docs-bbbbbbbb"):
        prove(tmp_path)


def test_prove_coverage_shard_outside_the_plan_is_a_problem(tmp_path: Path) -> None:
    for index in range(N_SHARDS + 1):
        commit(store_at(tmp_path / "shards"), index)
    coverage = prove(tmp_path)
    assert not coverage.missing
    (line,) = coverage.problems
    assert "shard-00006.parquet; the plan ends with shard-00005.parquet" in line
    assert not coverage.complete


def test_prove_coverage_vectors_of_two_lengths_are_a_problem(tmp_path: Path) -> None:
    for index in range(N_SHARDS):
        commit(store_at(tmp_path / "shards"), index, dim=5 if index == 4 else 3)
    (line,) = prove(tmp_path).problems
    assert "shard-00004.parquet embedding_dim=5; others 3" in line


def test_prove_coverage_nothing_there_misses_all(tmp_path: Path) -> None:
    coverage = prove(tmp_path)
    assert coverage.missing == tuple(SPANS)
    assert coverage.records == coverage.problems == coverage.attempts == ()


def test_prove_coverage_listing_older_than_a_manifest_looks_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may list a folder as it was a while ago."""
    manifest = manifest_at(tmp_path / "tasks")
    manifest.record(commit(store_at(tmp_path / "shards"), 2))
    monkeypatch.setattr("chatspace.shards.gather.shard_indexes", lambda _: [])
    assert [r.shard_index for r in prove(tmp_path).records] == [2]


def test_prove_coverage_while_files_vanish_counts_them_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store_at(tmp_path / "shards"), 2)
    shutil.rmtree(tmp_path / "shards")
    monkeypatch.setattr("chatspace.shards.gather.shard_indexes", lambda _: [2])
    assert len(prove(tmp_path).missing) == N_SHARDS


def test_count_shards_only_those_of_the_plan(tmp_path: Path) -> None:
    for index in (0, 2, 5, 6, 100_000):
        (tmp_path / f"shard-{index:05d}.parquet").touch()
    assert count_shards(tmp_path, 6) == 3
    assert count_shards(tmp_path / "absent", 6) == 0
