"""The commands that bring datasets to disk: what they say, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatspace.data.staging import stage_split
from chatspace.spec.dataset import DatasetSection
from tests.stores import command, jsonl_bytes, parquet_bytes, s3_store
from tests.test_data_convert import ROWS, rows


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_store() as system:
        yield system


def test_convert_command_says_what_to_write_into_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    code, out, errors = command("convert", str(path), "--out", str(tmp_path / "out"))
    assert (code, errors) == (0, "")
    assert f"path: {tmp_path / 'out'}, splits: [train, test]" in out
    assert "columns: text (string), n (int64)" in out
    code, _, errors = command("convert", str(tmp_path / "no.json"), "--out", str(tmp_path / "x"))
    assert (code, errors.count("\n")) == (2, 1)
    assert errors.startswith("chatspace: No such file or folder: ")
    words = ("convert", str(path), "--out", str(tmp_path / "x"), "--text-unit", "word")
    assert "known: line, paragraph, file." in command(*words)[2]


@pytest.mark.parametrize("by_file", [False, True])
def test_convert_command_says_which_splits_are_empty(tmp_path: Path, by_file: bool) -> None:
    (tmp_path / "in").mkdir()
    for name, rest in (("a", []), ("b", ROWS)):
        content = {"train": ROWS, "test": [], "dev": rest} if not by_file else {name: ROWS, "t": []}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
    words = ("convert", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    code, out, errors = command(*words, *(["--by-file"] if by_file else []))
    assert (code, errors) == (0, "")
    expected = ["split 't'"] * 2 if by_file else ["split 'test'"]
    empty = [line for line in out.splitlines() if "has no rows in" in line]
    assert [line.split(":")[0] for line in empty] == expected
    assert not (tmp_path / "out" / "test").exists()


@pytest.mark.parametrize("folder", ["p, q", "a: b", "x #y", "{z}", "é 'q' \"r\"", "- 🧑", "plain"])
def test_convert_command_prints_yaml_that_reads_back(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "all.json"
    splits = ["1", "yes", "a, b", "c: d", "train"]
    path.write_text(json.dumps(dict.fromkeys(splits, ROWS)))
    code, out, errors = command("convert", str(path), "--out", str(tmp_path / folder))
    assert (code, errors) == (0, "")
    written = yaml.safe_load(out[out.index("  dataset: ") :])["dataset"]
    assert written == {"source": "parquet", "path": str(tmp_path / folder), "splits": splits}


def test_download_dataset_command_from_s3(s3: Any, tmp_path: Path) -> None:
    s3.pipe("bucket/docs/train.jsonl", jsonl_bytes(ROWS))
    s3.pipe("bucket/pq/train.parquet", parquet_bytes(ROWS))
    workspace = ("--workspace", str(tmp_path / "ws"))
    code, _, errors = command(
        "download-dataset", "--source", "s3", "--name", "bucket/docs", "--format", "jsonl",
        *workspace,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    folder = tmp_path / "ws/datasets/raw/s3/docs/train"
    assert rows(folder) == ROWS
    parquet = ("download-dataset", "--name", "s3://bucket/pq", *workspace)
    assert "downloaded now" in command(*parquet)[1]
    assert "was there already" in command(*parquet)[1]
    home = tmp_path / "ws/datasets/raw/s3/pq"
    section = DatasetSection(source="parquet", path=str(home))
    assert [f.parent for f in stage_split(section, "train", tmp_path, "x").files] == [
        home / "train"
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--name", "s3://b/x", "--subset", "y"), "--subset; s3://b/x is a URL"),
        (("--name", "s3://b/x", "--source", "gs"), "Two sources: --source gs"),
        (("--name", "org/x", "--format", "csv"), "--format csv; the hub's datasets come as"),
        (("--name", "b/x", "--source", "s3", "--format", "xml"), "Unknown format: --format xml; "),
        (("--name", "org/x", "--format", "parqet"), "Did you mean parquet?"),
        (("--name", "b/x", "--source", "kaggle"), "Unknown source: --source kaggle; known: hugg"),
        (("--name", "s3x://b/x"), "Unknown protocol: --name s3x://...; known: hugg"),
        (("--name", "b/x", "--source", "hugginface"), "Did you mean huggingface?"),
        (("--name", "s3://k:pw@b/x"), "path holds a password"),
        (("--name", "s3://k:pw@b/x", "--source", "gs"), "path holds a password"),
        ((), "--name"),
    ],
)
def test_download_dataset_command_wrong_options_are_one_line(
    tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    code, out, errors = command("download-dataset", *words, "--workspace", str(tmp_path))
    assert (code, out) == (2, "")
    assert expected in errors
    assert errors.count("\n") == 1
    assert "k:pw" not in errors
    assert not list(tmp_path.rglob("*.parquet"))
