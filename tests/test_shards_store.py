import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.errors import OutputError
from chatspace.shards.records import Owner
from chatspace.shards.store import (
    FOREIGN_HOST_TEMP_AGE_S,
    first_foreign_shard,
    footer_owner,
    read_shard_footer,
    sha256_of,
    shard_indexes,
)
from chatspace.shards.vectors import norm_range
from tests.shards import OWNER, STRANGER, commit, span_of, store_at, table_of


def test_commit_record_says_what_is_on_disk(tmp_path: Path) -> None:
    store = store_at(tmp_path / "new" / "folder", attempt="12_3.r0")
    span = span_of(2)
    table = table_of(span).slice(0, 3)
    record = store.commit(span, table, skipped={"empty_text": 1}, truncated=2)
    path = store.path(span)
    assert path.name == "shard-00002.parquet"
    assert (record.path, record.bytes) == ("embeddings/x/shard-00002.parquet", path.stat().st_size)
    assert record.sha256 == sha256_of(path)
    assert (record.rows, record.rows_skipped, record.rows_truncated) == (3, {"empty_text": 1}, 2)
    assert (record.row_start, record.row_stop, record.embedding_dim) == (8, 12, 3)
    assert (record.min_norm, record.max_norm) == norm_range(
        pq.read_table(path)["embedding"].combine_chunks().values.to_numpy().reshape(3, 3)
    )
    assert record.attempt == "12_3.r0"
    assert store.is_done(span)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_commit_again_after_a_loss_is_byte_identical(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    first = commit(store, 0)
    content = store.path(span_of(0)).read_bytes()
    store.path(span_of(0)).unlink()
    time.sleep(0.01)
    assert commit(store_at(tmp_path, attempt="another"), 0).sha256 == first.sha256
    assert store.path(span_of(0)).read_bytes() == content


def test_commit_whole_shard_is_there_keeps_it(tmp_path: Path) -> None:
    """Another device gives other vectors: what may be published already must not change."""
    first = commit(store_at(tmp_path), 0)
    second = commit(store_at(tmp_path, attempt="late"), 0, value=7.0)
    assert second.sha256 == first.sha256
    assert second.min_norm == first.min_norm
    assert sha256_of(tmp_path / "shard-00000.parquet") == first.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.parquet"]


def test_commit_file_system_without_hard_links_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = commit(store_at(tmp_path), 0)
    assert commit(store_at(tmp_path), 0, value=7.0).sha256 == first.sha256
    assert sha256_of(tmp_path / "shard-00000.parquet") == first.sha256


def test_commit_many_at_once_one_file_and_one_checksum(tmp_path: Path) -> None:
    """Two attempts of one slice, as after a requeue whose first process still lives."""
    code = (
        "import sys; from pathlib import Path; from tests.shards import commit, store_at\n"
        "store = store_at(Path(sys.argv[1]), attempt=sys.argv[2])\n"
        "sys.stdin.read()\n"
        "print(*(commit(store, i, value=float(sys.argv[2])).sha256 for i in range(8)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    racers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(2)
    ]
    time.sleep(1.0)
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    answers = []
    for racer in racers:
        assert racer.stdout is not None
        answers.append(racer.stdout.read().decode().split())
        assert racer.wait(timeout=60) == 0
    on_disk = [sha256_of(tmp_path / f"shard-{i:05d}.parquet") for i in range(8)]
    assert answers == [on_disk, on_disk]
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("owner", [STRANGER, replace(OWNER, split="test")])
def test_commit_and_read_foreign_shard_is_refused_by_name(tmp_path: Path, owner: Owner) -> None:
    commit(store_at(tmp_path, owner), 0)
    content = (tmp_path / "shard-00000.parquet").read_bytes()
    ours = store_at(tmp_path)
    for act in (lambda: ours.is_done(span_of(0)), lambda: commit(ours, 0)):
        with pytest.raises(OutputError, match=f"shard-00000.parquet belongs to run {owner.run_id}"):
            act()
    assert (tmp_path / "shard-00000.parquet").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("metadata", [{}, {b"chatspace": b"[1]"}, {b"chatspace": b"{torn"}])
def test_commit_file_of_another_program_is_refused(
    tmp_path: Path, metadata: dict[bytes, bytes]
) -> None:
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(metadata), path)
    assert read_shard_footer(path) == {}
    with pytest.raises(OutputError, match="belongs to no run of chatspace"):
        commit(store_at(tmp_path), 0)
    assert pq.read_table(path)["x"].to_pylist() == [1]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_is_done_truncated_file_counts_as_absent_and_is_replaced(tmp_path: Path, keep: int) -> None:
    store = store_at(tmp_path)
    sha256 = commit(store, 0).sha256
    path = store.path(span_of(0))
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    assert not store.is_done(span_of(0))
    assert store.adopt(span_of(0)) is None
    assert first_foreign_shard(tmp_path, OWNER.plan_sha256) is None
    assert commit(store, 0).sha256 == sha256


def test_is_done_damaged_footer_counts_as_absent(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    commit(store, 0)
    path = store.path(span_of(0))
    content = bytearray(path.read_bytes())
    content[-20:-8] = b"x" * 12
    path.write_bytes(content)
    assert not store.is_done(span_of(0))


def test_is_done_other_rows_count_as_absent(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    commit(store, 3)
    (tmp_path / "shard-00003.parquet").rename(tmp_path / "shard-00001.parquet")
    assert not store.is_done(span_of(1))
    assert not store.is_done(span_of(3))
    assert not store.is_done(replace(span_of(1), row_stop=7))


def test_commit_folder_in_the_way_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.parquet").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write: .*shard-00000.parquet"):
        commit(store_at(tmp_path), 0)
    assert len(list(tmp_path.iterdir())) == 1


def test_commit_file_where_the_folder_belongs_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "embeddings").touch()
    with pytest.raises(OutputError, match=r"Cannot write: .*embeddings/x/shard-00000.parquet"):
        commit(store_at(tmp_path / "embeddings" / "x"), 0)


def test_commit_full_disk_leaves_nothing_and_names_the_file(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(64)
    store = store_at(disk)
    span = span_of(0, rows=10_000)
    with pytest.raises(OutputError, match=r"shard-00000.parquet; No space left on device"):
        store.commit(span, table_of(span, dim=8), skipped={}, truncated=0)
    assert list(disk.iterdir()) == []
    commit(store, 0)
    assert store.is_done(span_of(0))


def test_commit_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    span = span_of(0, rows=10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises((OutputError, OSError), match="File too large"):
            store.commit(span, table_of(span, dim=8), skipped={}, truncated=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def temp_of(folder: Path, index: int, pid: int, host: str | None = None) -> Path:
    path = folder / f".shard-{index:05d}.parquet.{host or platform.node()}-{pid}.tmp"
    path.touch()
    return path


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait(timeout=10)
    return process.pid


def test_remove_stale_temps_dead_are_removed_and_living_kept(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    dead, living = temp_of(tmp_path, 0, dead_pid()), temp_of(tmp_path, 1, os.getpid())
    other_slice = temp_of(tmp_path, 9, dead_pid())
    away, away_long = temp_of(tmp_path, 1, 7, "node-2"), temp_of(tmp_path, 2, 7, "node-2")
    old = time.time() - FOREIGN_HOST_TEMP_AGE_S - 60
    os.utime(away_long, (old, old))
    strange = tmp_path / ".shard-00000.parquet.tmp"
    strange.touch()
    assert store.remove_stale_temps([span_of(i) for i in range(3)]) == 2
    assert not dead.exists()
    assert not away_long.exists()
    assert all(path.exists() for path in (living, other_slice, away, strange))


def test_remove_stale_temps_finished_takes_all_of_the_spans(tmp_path: Path) -> None:
    living, other = temp_of(tmp_path, 1, os.getpid()), temp_of(tmp_path, 9, os.getpid())
    assert store_at(tmp_path).remove_stale_temps([span_of(1)], finished=True) == 1
    assert not living.exists()
    assert other.exists()
    assert store_at(tmp_path / "absent").remove_stale_temps([span_of(1)]) == 0


def test_commit_temp_file_removed_by_a_gather_takes_the_shard_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(store_at(tmp_path), 0)
    write = pq.write_table

    def write_and_lose(table: pa.Table, where: Path, **options: object) -> None:
        write(table, where, **options)
        where.unlink()

    monkeypatch.setattr(pq, "write_table", write_and_lose)
    assert commit(store_at(tmp_path), 0).sha256 == first.sha256
    with pytest.raises(OutputError, match="shard-00001"):
        commit(store_at(tmp_path), 1)


def test_adopt_record_equals_what_was_committed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    record = commit(store, 5)
    adopted = store.adopt(span_of(5))
    assert adopted is not None
    assert replace(adopted, created_at=record.created_at, attempt=record.attempt) == record
    assert adopted.attempt == "unrecorded"


def test_first_foreign_shard_is_found_at_either_end(tmp_path: Path) -> None:
    assert first_foreign_shard(tmp_path / "absent", OWNER.plan_sha256) is None
    commit(store_at(tmp_path), 0)
    assert first_foreign_shard(tmp_path, OWNER.plan_sha256) is None
    commit(store_at(tmp_path, STRANGER), 8)
    found = first_foreign_shard(tmp_path, OWNER.plan_sha256)
    assert found is not None and found[0] == tmp_path / "shard-00008.parquet"
    assert footer_owner(found[1]) == "run docs-bbbbbbbb split train"


def test_shard_indexes_only_names_of_shards(tmp_path: Path) -> None:
    names = ["shard-00002.parquet", "shard-100000.parquet", "shard-00000.parquet"]
    for name in [*names, "shard-000003.parquet", "shard-1.parquet", ".shard-00004.parquet.x-1.tmp"]:
        (tmp_path / name).touch()
    assert shard_indexes(tmp_path) == [0, 2, 100_000]
    assert shard_indexes(tmp_path / "absent") == []
    assert shard_indexes(tmp_path / names[0]) == []


def test_norm_range_no_rows_is_none() -> None:
    assert norm_range(np.empty((0, 3), np.float32)) == (None, None)
    assert norm_range(np.array([[3, 4], [0, 1]], np.float16)) == (1.0, 5.0)
