"""What a file is, told by its first bytes: a wrong `source` is answered with the right one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from chatspace.data.convert import Conversion, convert
from chatspace.data.formats import EXTENSIONS, begin_of, refuse_other_format, told_format
from chatspace.data.inventory import inventory
from chatspace.data.staging import stage_split
from chatspace.errors import UserError
from chatspace.spec.dataset import DatasetSection

TABLE = pa.table({"id": ["a", "b"], "text": ["one, two", "three"]})


def write(path: Path, format_: str) -> Path:
    """Writes the table in a format, whatever the name of the file says."""
    rows = TABLE.to_pylist()
    if format_ == "parquet":
        pq.write_table(TABLE, path)
    elif format_ == "arrow":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, TABLE.schema) as writer:
            writer.write_table(TABLE)
    elif format_ == "stream":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, TABLE.schema) as writer:
            writer.write_table(TABLE)
    elif format_ == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif format_ == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif format_ == "csv":
        path.write_text('id,text\na,"one, two"\nb,three\n')
    else:
        path.write_text("One line.\nAnother.\n")
    return path


def staged(path: Path, source: str, workspace: Path) -> list[str]:
    """Returns the texts that a run would read."""
    section = DatasetSection.model_validate({"source": source, "path": str(path)})
    files = inventory(stage_split(section, "train", workspace, "x").files, section)
    return [text for file in files for text in pq.read_table(file.path)["text"].to_pylist()]


@pytest.mark.parametrize("held", EXTENSIONS)
@pytest.mark.parametrize("said", EXTENSIONS)
def test_stage_wrong_source_says_what_the_file_is_and_the_advice_works(
    tmp_path: Path, said: str, held: str
) -> None:
    path = write(tmp_path / f"rows{EXTENSIONS[held][0]}", held)
    if held == said or (said, held) in {
        ("text", "jsonl"),
        ("text", "csv"),
        ("csv", "text"),  # a header of one column
    }:
        refuse_other_format(path, said)
        return
    with pytest.raises(UserError) as caught:
        staged(path, said, tmp_path / "wrong")
    message = str(caught.value)
    assert str(path) in message
    advised = message.removesuffix(".").rpartition("Set dataset.source to ")[2]
    assert advised == held
    assert len(staged(path, advised, tmp_path / "right")) == 2


def test_stage_folder_of_misnamed_files_has_advice_that_works(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "rows.jsonl", "parquet")
    with pytest.raises(UserError, match=r"to parquet, and dataset\.path to the file or a glob: "):
        staged(tmp_path / "in", "jsonl", tmp_path / "wrong")
    assert len(staged(tmp_path / "in" / "*.jsonl", "parquet", tmp_path / "right")) == 2


@pytest.mark.parametrize(
    ("name", "held", "said", "found"),
    [
        ("a.jsonl", "parquet", "jsonl", "parquet"),
        ("a.csv", "parquet", "csv", "parquet"),
        ("a.txt", "stream", "text", "arrow"),
        ("a.arrow", "stream", "arrow", None),
        ("a.json", "json", "jsonl", "json"),
        ("a.json", "json", "text", None),
        ("a.txt", "jsonl", "jsonl", None),
        ("a", "text", "jsonl", None),
        ("a.txt", "text", "jsonl", "text"),
        ("a.parquet", "text", "jsonl", None),  # damaged, and no Parquet whatever its name
        ("a.parquet", "text", "arrow", None),
    ],
)
def test_told_format_goes_by_the_bytes_before_the_name(
    tmp_path: Path, name: str, held: str, said: str, found: str | None
) -> None:
    assert told_format(begin_of(write(tmp_path / name, held)), name, said) == found


@pytest.mark.parametrize(
    ("begin", "found"),
    [
        (b'{"text": "' + b"x" * 100_000, None),
        (b'[{"role": "user"}]\n[{"role": "user"}]\n', None),
        (b'[{"text": "one"},\n{"text": "two"}]', "json"),
        (b'{"text": broken\n', None),
        (b'\xef\xbb\xbf{"text": "one"}\n', None),
        (b"", None),
        (b"\n<!DOCTYPE html>\n<html>", "html"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "lfs"),
    ],
)
def test_told_format_of_json_lines_refuses_only_what_is_surely_none(
    begin: bytes, found: str | None
) -> None:
    assert told_format(begin[: 1 << 16], "a.jsonl", "jsonl") == found


def test_told_format_looks_into_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    assert told_format(begin_of(path), path.name, "csv") == "jsonl"


@pytest.mark.parametrize("format_", [None, "parquet", "jsonl"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_convert_parquet_says_that_it_can_be_used_as_it_is(
    tmp_path: Path, format_: str | None, is_folder: bool
) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "rows.parquet", "parquet")
    asked = path.parent if is_folder and format_ != "jsonl" else path
    with pytest.raises(UserError) as caught:
        convert(Conversion(path=asked, out=tmp_path / "out", format=format_))
    assert str(asked) in str(caught.value)
    assert "It needs no conversion: name it in a run spec, with source: parquet." in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()


def test_convert_wrong_format_says_which_to_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.dat", "arrow")
    with pytest.raises(UserError, match=r"it is Arrow\. Name it with --from arrow"):
        convert(Conversion(path=path, out=tmp_path / "out", format="jsonl"))
    (done,) = convert(Conversion(path=path, out=tmp_path / "out", format="arrow"))
    assert done.record["rows"] == 2
