"""Shards that are damaged on disk are found, said and done again; those that are forbidden, not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from chatspace.errors import ExitCode, IncompleteError, OutputError
from chatspace.jobs.gather import verify_run
from chatspace.jobs.setup import set_up
from chatspace.layout import Layout
from chatspace.mend.damaged import look_at_shards
from chatspace.plan.model import Plan
from tests.conftest import SpecMaker
from tests.test_exactly_once import digests, run_all
from tests.vector_runs import random_vectors, vector_run

# Root may read everything unless it gives its capabilities up.
AS_A_USER = [] if os.getuid() else ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


def shard(plan: Plan, index: int) -> Path:
    split = plan.splits[0]
    return Path(plan.workspace) / split.output_dir / split.span(index).file_name


def truncate(plan: Plan, index: int) -> None:
    os.truncate(shard(plan, index), shard(plan, index).stat().st_size // 2)


def flip(plan: Plan, index: int) -> None:
    """Changes a byte of the first column, and none of the footer."""
    column = pq.read_metadata(shard(plan, index)).row_group(0).column(0)
    content = bytearray(shard(plan, index).read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 255
    shard(plan, index).write_bytes(content)


def folder_of(plan: Plan) -> str:
    return str(Layout(Path(plan.workspace)).run(plan.run_id).folder)


def chatspace(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*AS_A_USER, sys.executable, "-m", "chatspace", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def five(tmp_path: Path) -> Plan:
    """A run with five shards, gathered."""
    return vector_run(tmp_path / "ws", random_vectors(80))


def test_look_at_shards_that_are_whole_finds_no_damage(five: Plan) -> None:
    for verify in (False, True):
        files = look_at_shards(five, verify=verify)
        assert files.whole == {"train": {0, 1, 2, 3, 4}} and files.damaged == {"train": set()}
        assert files.lines(five.run_id) == []


@pytest.mark.parametrize("verify", [False, True])
def test_look_at_shards_tells_the_damaged_from_the_absent(five: Plan, verify: bool) -> None:
    truncate(five, 1)
    truncate(five, 2)
    shard(five, 4).unlink()
    files = look_at_shards(five, verify=verify)
    assert files.whole == {"train": {0, 3}} and files.damaged == {"train": {1, 2}}
    (line,) = files.lines("r")
    assert line == "r: 2 damaged shards of split train, done again: 1-2"


def test_look_at_shards_sets_flipped_bytes_aside_when_it_reads_all(five: Plan) -> None:
    flip(five, 3)
    assert look_at_shards(five).damaged == {"train": set()}
    assert look_at_shards(five, verify=True).damaged == {"train": {3}}
    assert not shard(five, 3).exists()
    assert shard(five, 3).with_name(".shard-00003.parquet.damaged").exists()


def test_look_at_shards_of_another_run_is_refused(five: Plan) -> None:
    with pytest.raises(OutputError, match="Output of another run: "):
        look_at_shards(replace(five, plan_sha256="f" * 64))


@pytest.mark.parametrize("has_scheduler", [False, True])
def test_verify_advises_what_works_where_the_run_is(five: Plan, has_scheduler: bool) -> None:
    scheduler = "slurm" if has_scheduler else "none"
    plan = replace(five, cluster={**five.cluster, "scheduler": scheduler})
    flip(plan, 3)
    truncate(plan, 1)
    with pytest.raises(IncompleteError) as caught:
        verify_run(plan)
    folder = folder_of(plan)
    assert f"chatspace run {folder} --verify" in str(caught.value)
    assert (f"chatspace resubmit {folder} --verify" in str(caught.value)) == has_scheduler
    shard(plan, 3).unlink()
    with pytest.raises(IncompleteError) as caught:
        verify_run(plan)
    assert f"chatspace run {folder}" in str(caught.value)
    assert ("chatspace resubmit" in str(caught.value)) == has_scheduler
    assert ("sbatch" in str(caught.value)) == has_scheduler


@pytest.mark.slow
def test_run_does_damaged_shards_again_and_the_files_are_the_same(
    make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("CHATSPACE_THREADS", "1")
    plan = set_up(make_spec(output={"rows_per_shard": 100}, slices={"count": 1})).plan
    run_all(plan)
    undisturbed, folder = digests(plan), folder_of(plan)
    truncate(plan, 1)
    done = chatspace("run", folder)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert f"{plan.run_id}: 1 damaged shard of split train, done again: 1\n" in done.stdout
    assert digests(plan) == undisturbed
    flip(plan, 2)
    found = chatspace("verify", folder)
    assert found.returncode == ExitCode.INCOMPLETE
    assert found.stderr.rstrip().endswith(f"chatspace run {folder} --verify")
    done = chatspace("run", folder, "--verify")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert digests(plan) == undisturbed and verify_run(plan) == {"train": 3}
    log = (Path(folder) / "logs" / "train-00000.log").read_text()
    assert log.count(" train slice 0 begins on ") == 2
    assert log.count("INFO start run=") == 2
    shard(plan, 0).chmod(0)
    refused = chatspace("run", folder)
    assert refused.returncode == ExitCode.USER_INPUT
    assert refused.stderr.startswith(f"chatspace: Shard may not be read: {shard(plan, 0)}; ")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "RUN"),
        ("search", "RUN", "--like", "docs/train/3"),
        ("export", "RUN", "--to", "numpy", "--out", "OUT"),
        ("duplicates", "RUN"),
    ],
)
def test_shard_that_may_not_be_read_is_one_line(
    five: Plan, tmp_path: Path, words: tuple[str, ...]
) -> None:
    shard(five, 0).chmod(0)
    given = {"RUN": folder_of(five), "OUT": str(tmp_path / "out")}
    done = chatspace(*(given.get(word, word) for word in words))
    assert done.returncode == ExitCode.USER_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"chatspace: Shard may not be read: {shard(five, 0)}; Permission denied")
    assert "chmod u+r" in line
