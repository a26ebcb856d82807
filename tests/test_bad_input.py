"""Bad input: one line on stderr that says what, where, what next; exit code 2; nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.errors import ExitCode
from tests.conftest import texts, write_parquet

SPEC = """\
kind: embed
name: bad
workspace: {folder}/ws
dataset:
  source: {source}
  path: {folder}/{path}
model: {{name: {model}, dtype: float32, device: cpu}}
slurm: {{profile: local, log_dir: {folder}/logs}}
"""


class Case:
    """One folder with data, a spec, and the command line."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def spec(self, source: str = "parquet", path: str = "data.parquet") -> Path:
        text = SPEC.format(folder=self.folder, source=source, path=path, model=self.model)
        spec = self.folder / "spec.yaml"
        spec.write_text(text)
        return spec

    def setup(self, spec: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "chatspace", "setup", str(spec), *options]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=self.folder, check=False
        )

    def refuses(self, done: subprocess.CompletedProcess[str], *words: str) -> None:
        """Asserts exit code 2, one line with these words, and no trace on disk."""
        assert done.returncode == ExitCode.USER_INPUT, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        for word in words:
            assert word in lines[0], lines[0]
        left = [p for p in (self.folder / "ws").rglob("*") if p.is_file()]
        assert left == []
        assert not list(self.folder.glob("*.slurm"))


@pytest.fixture
def case(tmp_path: Path, tiny_model: Path) -> Case:
    return Case(tmp_path, tiny_model)


def test_setup_missing_file_is_refused(case: Case) -> None:
    case.refuses(case.setup(case.spec()), "data.parquet", "dataset.path")


def test_setup_missing_spec_is_refused(case: Case) -> None:
    case.refuses(case.setup(case.folder / "absent.yaml"), "absent.yaml")


def test_setup_empty_dataset_is_refused(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": pa.array([], pa.string())})
    case.refuses(case.setup(case.spec()), "data.parquet", "no rows")


def test_setup_missing_column_lists_the_columns(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"body": ["a"], "title": ["b"]})
    case.refuses(case.setup(case.spec()), "dataset.text_field", "text", "body", "title")


def test_setup_missing_kept_column_lists_the_columns(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": ["a"], "title": ["b"]})
    done = case.setup(case.spec(), "--set", "output.keep_columns=[titel]")
    case.refuses(done, "output.keep_columns", "titel", "title")


def test_setup_column_that_is_not_text_is_refused(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": [1, 2, 3]})
    case.refuses(case.setup(case.spec()), "text", "int64")


def test_setup_truncated_parquet_is_refused(case: Case) -> None:
    path = write_parquet(case.folder / "data.parquet", {"text": texts(100)})
    os.truncate(path, path.stat().st_size // 2)
    case.refuses(case.setup(case.spec()), "data.parquet")


def test_setup_invalid_json_names_file_and_line(case: Case) -> None:
    (case.folder / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
    case.refuses(case.setup(case.spec("jsonl", "data.jsonl")), "data.jsonl:3")


def test_setup_duplicate_ids_name_the_id_and_the_rows(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": ["a"] * 4, "key": ["p", "q", "r", "q"]})
    done = case.setup(case.spec(), "--set", "dataset.id_field=key")
    case.refuses(done, "key", "q", "1", "3")


def test_setup_unknown_key_names_line_known_keys_and_nearest(case: Case) -> None:
    spec = case.spec()
    spec.write_text(spec.read_text() + "encode:\n  tokn_per_batch: 100\n")
    done = case.setup(spec)
    case.refuses(
        done, "spec.yaml:10 encode.tokn_per_batch", "known:", "Did you mean tokens_per_batch?"
    )


def test_setup_wrong_type_names_line_and_what_is_expected(case: Case) -> None:
    done = case.setup(case.spec(), "--set", "slurm.mem_gb=much")
    case.refuses(done, "slurm.mem_gb", "much", "integer")


def test_setup_unknown_model_folder_is_refused(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": ["a"]})
    done = case.setup(case.spec(), "--set", "model.name=./no/such/model")
    case.refuses(done, "no/such/model", "does not exist")


def test_setup_workspace_behind_a_file_says_how_to_choose_another(case: Case) -> None:
    write_parquet(case.folder / "data.parquet", {"text": ["a"]})
    (case.folder / "ws").write_text("a file stands here")
    done = case.setup(case.spec(), "--set", f"workspace={case.folder}/ws/inner")
    assert done.returncode == ExitCode.USER_INPUT
    assert "CHATSPACE_WORKSPACE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_setup_both_spec_and_config_is_refused(case: Case) -> None:
    done = case.setup(case.spec(), "--config", "x.yaml")
    case.refuses(done, "--config")


@pytest.mark.slow
def test_run_full_disk_names_the_file_and_the_next_run_continues(
    case: Case, small_disk: Callable[[int], Path]
) -> None:
    write_parquet(case.folder / "data.parquet", {"text": texts(2000)})
    disk = small_disk(300)
    options = ["--set", f"workspace={disk}/ws", "--set", "output.rows_per_shard=200"]
    run = [sys.executable, "-m", "chatspace", "run", str(case.spec()), *options]
    full = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=case.folder)
    assert full.returncode == ExitCode.USER_INPUT, full.stderr
    assert "No space left" in full.stderr.splitlines()[-1]
    assert str(disk) in full.stderr.splitlines()[-1]
    assert not list(disk.rglob(".*.tmp"))
    done_before = len(list(disk.rglob("shard-*.parquet")))
    assert 0 < done_before < 10
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, timeout=20)
    again = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=case.folder)
    assert again.returncode == 0, again.stderr
    assert "every one accounted for" in again.stdout
    assert len(list(disk.rglob("shard-*.parquet"))) == 10
    assert pq.read_metadata(next(disk.rglob("shard-00000.parquet"))).num_rows == 200
