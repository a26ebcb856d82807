import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from chatspace.errors import OutputError
from chatspace.shards.task_manifest import TaskManifest, read_task_manifest
from tests.shards import OWNER, STRANGER, commit, store_at


def open_at(folder: Path) -> TaskManifest:
    return TaskManifest.open(folder / "tasks" / "train-00000-00004.json", OWNER, 0, 4)


def attempt(name: str, state: str = "running") -> dict[str, str]:
    return {"attempt": name, "started_at": "2026-01-01T00:00:00", "state": state}


def test_record_then_open_gives_the_same(tmp_path: Path) -> None:
    manifest = open_at(tmp_path)
    assert (manifest.attempts, manifest.shards) == ([], {})
    manifest.attempts.append(attempt("1_0.r0"))
    records = [commit(store_at(tmp_path), index) for index in (2, 0)]
    for record in records:
        manifest.record(record)
    again = open_at(tmp_path)
    assert again == manifest
    assert again.shards == {2: records[0], 0: records[1]}
    content = json.loads(manifest.path.read_text())
    assert [shard["shard_index"] for shard in content["shards"]] == [0, 2]
    assert content["plan_sha256"] == OWNER.plan_sha256
    assert [p.name for p in manifest.path.parent.iterdir()] == [manifest.path.name]


def test_write_vectors_that_are_not_finite_can_be_read_again(tmp_path: Path) -> None:
    manifest = open_at(tmp_path)
    manifest.record(commit(store_at(tmp_path), 0, value=math.nan))
    assert math.isnan(open_at(tmp_path).shards[0].min_norm or 0)


def test_write_two_executions_at_once_keep_each_other_s_records(tmp_path: Path) -> None:
    one, two = open_at(tmp_path), open_at(tmp_path)
    for manifest, name in ((one, "1_0.r0"), (two, "2_0.r0")):
        manifest.attempts.append(attempt(name))
        manifest.write()
    one.record(commit(store_at(tmp_path), 0))
    two.record(commit(store_at(tmp_path), 1))
    one.attempts[-1]["state"] = "finished"
    one.write()
    two.record(commit(store_at(tmp_path), 2))
    there = open_at(tmp_path)
    assert sorted(there.shards) == [0, 1, 2]
    assert {a["attempt"]: a["state"] for a in there.attempts} == {
        "1_0.r0": "finished",
        "2_0.r0": "running",
    }


def test_record_shard_written_again_replaces_the_earlier(tmp_path: Path) -> None:
    manifest = open_at(tmp_path)
    old = commit(store_at(tmp_path), 0)
    manifest.record(old)
    again = open_at(tmp_path)
    again.record(replace(old, sha256="f" * 64))
    assert open_at(tmp_path).shards[0].sha256 == "f" * 64


def test_open_manifest_of_another_plan_starts_anew(tmp_path: Path) -> None:
    mine = open_at(tmp_path)
    foreign = TaskManifest(path=mine.path, owner=STRANGER, shard_start=0, shard_stop=4)
    foreign.attempts.append(attempt("9_0.r0"))
    foreign.write()
    assert open_at(tmp_path).attempts == []


@pytest.mark.parametrize("keep", [0, 1, 50, -3])
def test_read_task_manifest_torn_is_none_and_is_written_anew(tmp_path: Path, keep: int) -> None:
    manifest = open_at(tmp_path)
    record = commit(store_at(tmp_path), 0)
    manifest.record(record)
    os.truncate(manifest.path, keep if keep >= 0 else manifest.path.stat().st_size + keep)
    assert read_task_manifest(manifest.path) is None
    again = open_at(tmp_path)
    again.record(record)
    assert open_at(tmp_path).shards == {0: record}


@pytest.mark.parametrize(
    ("key", "value"),
    [("attempts", [1]), ("attempts", None), ("shards", [{}]), ("shard_start", "x"), ("split", 3)],
)
def test_read_task_manifest_wrong_types_are_none(tmp_path: Path, key: str, value: object) -> None:
    manifest = open_at(tmp_path)
    manifest.record(commit(store_at(tmp_path), 0))
    content = json.loads(manifest.path.read_text())
    manifest.path.write_text(json.dumps({**content, key: value}))
    assert read_task_manifest(manifest.path) is None


def test_read_task_manifest_of_a_later_version_keeps_what_is_known(tmp_path: Path) -> None:
    manifest = open_at(tmp_path)
    manifest.record(commit(store_at(tmp_path), 0))
    content = json.loads(manifest.path.read_text())
    content["shards"][0]["new"] = content["new"] = 1
    manifest.path.write_text(json.dumps(content))
    assert open_at(tmp_path) == manifest


def test_write_file_in_the_way_names_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "tasks").touch()
    with pytest.raises(OutputError, match=r"Cannot write: .*tasks/train-00000-00004.json"):
        open_at(tmp_path).write()
