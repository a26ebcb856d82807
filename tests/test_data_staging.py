import errno
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.data import staged_folder, staged_split
from chatspace.data.inventory import check_unique_ids, inventory
from chatspace.data.staged_split import StagedSplit
from chatspace.data.staging import stage_split
from chatspace.errors import InputError, OutputError
from chatspace.spec.dataset import DatasetSection


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


def stage(path: Path, source: str, workspace: Path, **dataset: Any) -> StagedSplit:
    section = DatasetSection(**{"source": source, "path": str(path), **dataset})
    return stage_split(section, "train", workspace, "data")


def rows(staged: StagedSplit) -> list[dict[str, Any]]:
    return [row for file in staged.files for row in pq.read_table(file).to_pylist()]


def refused(path: Path, source: str, workspace: Path, **dataset: Any) -> str:
    with pytest.raises(InputError) as caught:
        stage(path, source, workspace, **dataset)
    assert "\n" not in str(caught.value)
    assert not list(workspace.rglob("*.*"))
    return str(caught.value)


def jsonl(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_stage_parquet_is_used_where_it_lies(tmp_path: Path, workspace: Path) -> None:
    for name in ("a/1.parquet", "b/2.parquet"):
        (tmp_path / name).parent.mkdir()
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / name)
    staged = stage(tmp_path / "*" / "*.parquet", "parquet", workspace)
    assert [str(f.relative_to(tmp_path)) for f in staged.files] == ["a/1.parquet", "b/2.parquet"]
    stat = staged.files[0].stat()
    assert staged.identity[0] == {
        "name": "a/1.parquet",
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    assert not workspace.exists()


def test_stage_jsonl_keeps_every_value(tmp_path: Path, workspace: Path) -> None:
    given = [
        {"text": "emoji 🧑\u0000 \u202e", "n": 1, "x": 1, "tags": [], "empty": {}},
        {"text": None, "n": 2**62, "x": 1.5, "tags": ["a"], "deep": {"a": [{"b": True}]}},
        {"text": "2024-01-01", "n": None},
    ]
    staged = stage(jsonl(tmp_path / "a.jsonl", given[0], "", "  ", *given[1:]), "jsonl", workspace)
    assert [str(f.relative_to(workspace)) for f in staged.files] == [
        "datasets/processed/data/train/part-00000.parquet"
    ]
    found = rows(staged)
    assert [row["text"] for row in found] == [row["text"] for row in given]
    assert [row["n"] for row in found] == [1, 2**62, None]
    assert [row["x"] for row in found] == [1.0, 1.5, None]
    assert [row["tags"] for row in found] == [[], ["a"], None]
    assert found[1]["deep"] == {"a": [{"b": True}]}
    assert inventory(staged.files, DatasetSection(source="parquet", path="x"))[0].rows == 3


def test_stage_jsonl_gz_byte_order_mark_and_long_line(tmp_path: Path, workspace: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps({"text": "x" * (3 << 20)}).encode()
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + line + b"\r\n" + line, mtime=0))
    assert [len(row["text"]) for row in rows(stage(path, "jsonl", workspace))] == [3 << 20] * 2


def test_stage_jsonl_half_a_surrogate_pair_is_replaced(tmp_path: Path, workspace: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", r'{"text": "a\ud83d"}', r'{"text": "\ud83d\ude00"}')
    assert [row["text"] for row in rows(stage(path, "jsonl", workspace))] == ["a\ufffd", "😀"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"text": "a"}', '{"text": "b"'], "Invalid JSON: {path}:2; "),
        (['{"text": "a"}', "", "[1]"], "Not an object: {path}:3 holds [1]; "),
        (['{"text": "a"}', '{"text": 5}'], "Type conflict: {path}:2; text is an integer here"),
        (['{"text": "a", "m": {"k": [1]}}', '{"m": {"k": ["b"]}}'], "{path}:2; m.k[] is text here"),
        (['{"text": "a", "n": 99999999999999999999}'], "{path}:1; n is an integer of more than 64"),
        (['{"text": "a", "n": true}', '{"n": 1}'], "{path}:2; n is an integer here and true"),
        (['{"body": "a"}'], "Missing column: dataset.text_field='text'; {path} has body."),
        (['{"text": 5}', '{"text": 6}'], "Not text: dataset.text_field='text'; it is int64"),
        (["", "  "], "Empty dataset: {path} holds no rows."),
        (['{"text": "a", "d": ' + "[" * 100_000 + "}"], "Invalid JSON: {path}:1; "),
    ],
)
def test_stage_jsonl_bad_line_is_named_and_nothing_is_written(
    tmp_path: Path, workspace: Path, lines: list[str], expected: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", *lines)
    assert expected.format(path=path) in refused(path, "jsonl", workspace)


def test_stage_jsonl_not_utf8_or_damaged_gzip_is_named(tmp_path: Path, workspace: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert f"Not UTF-8: {path}:2." in refused(path, "jsonl", workspace)
    damaged = tmp_path / "b.jsonl.gz"
    damaged.write_bytes(gzip.compress(os.urandom(5000) * 3)[:-2000])
    assert refused(damaged, "jsonl", workspace).startswith(("Damaged gzip", "Not UTF-8", "Invalid"))
    damaged.write_bytes(b'{"text": "a"}\n')
    assert refused(damaged, "jsonl", workspace).startswith(f"Damaged gzip: {damaged}; ")


def test_stage_csv_every_value_stays_text(tmp_path: Path, workspace: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufefftext,code\n"a, ""b""\nc",007\n,\n' + "x" * 200_000 + ",1\n")
    assert rows(stage(path, "csv", workspace)) == [
        {"text": 'a, "b"\nc', "code": "007"},
        {"text": "", "code": ""},
        {"text": "x" * 200_000, "code": "1"},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"text,n\na,1\nb\n", "Broken row: {path}:3 has 1 fields, the header 2."),
        (b"text,n\na,1,2\n", "Broken row: {path}:2 has 3 fields, the header 2."),
        (b'text,n\n"a,1\n', "Invalid CSV: {path}:"),
        (b'text,n\n"a"b,1\n', "Invalid CSV: {path}:2;"),
        (b"text,n\ncaf\xe9,1\n", "Not UTF-8: {path}:2."),
        (b"body,n\na,1\n", "Missing column: dataset.text_field='text'; {path} has body, n."),
        (b"text,text\na,1\n", "Ambiguous column: {path}:1 names 'text' twice."),
        (b"", "Empty dataset: "),
        (b"text,n\n", "Empty dataset: "),
    ],
)
def test_stage_csv_bad_row_is_named_and_nothing_is_written(
    tmp_path: Path, workspace: Path, text: bytes, expected: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    assert expected.format(path=path) in refused(path, "csv", workspace)


def test_stage_csv_headers_that_differ_are_refused(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "1.csv").write_text("text,n\na,1\n")
    (tmp_path / "2.csv").write_text("n,text\n1,a\n")
    assert "Headers differ: " in refused(tmp_path / "*.csv", "csv", workspace)


@pytest.mark.parametrize("make", [pa.ipc.new_file, pa.ipc.new_stream])
def test_stage_arrow_file_and_stream(tmp_path: Path, workspace: Path, make: Any) -> None:
    table = pa.table({"text": ["a", None], "n": [1, 2]}, metadata={"huggingface": "x"})
    with make(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert rows(stage(tmp_path / "a.arrow", "arrow", workspace)) == table.to_pylist()


def test_stage_arrow_folder_saved_by_datasets(tmp_path: Path, workspace: Path) -> None:
    saved = datasets.Dataset.from_dict({"text": [str(i) for i in range(25)]})
    saved.save_to_disk(tmp_path / "one", num_shards=12)
    staged = stage(tmp_path / "one", "arrow", workspace)
    assert [row["text"] for row in rows(staged)] == saved["text"][:]
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "both")
    section = DatasetSection(source="arrow", path=str(tmp_path / "both"))
    assert len(rows(stage_split(section, "train", workspace, "both"))) == 25


def test_stage_arrow_bad_file_is_named(tmp_path: Path, workspace: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(b"no arrow at all")
    assert refused(path, "arrow", workspace).startswith(f"Not an Arrow file: {path};")
    path.write_bytes(b"")
    assert str(path) in refused(path, "arrow", workspace)
    table = pa.table({"text": ["a" * 10_000] * 100})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    path.write_bytes(path.read_bytes()[:-300_000])
    assert refused(path, "arrow", workspace).startswith(f"Damaged Arrow file: {path}; ")


def test_stage_again_with_the_same_sources_does_nothing(tmp_path: Path, workspace: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    first = stage(path, "jsonl", workspace)
    before = first.files[0].stat()
    assert stage(path, "jsonl", workspace) == first
    os.utime(path)  # the same bytes, another time
    assert stage(path, "jsonl", workspace) == first
    assert first.files[0].stat() == before


def test_stage_identity_is_that_of_the_sources_in_every_workspace(
    tmp_path: Path, workspace: Path
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    copy = tmp_path / "copy" / "a.jsonl"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    first = stage(path, "jsonl", workspace)
    assert stage(copy, "jsonl", tmp_path / "other").identity == first.identity
    assert stage(copy, "jsonl", workspace) == first
    assert set(first.identity[0]) == {"name", "bytes", "sha256"}


def test_stage_changed_source_goes_beside_the_folder_and_says_which(
    tmp_path: Path, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    first = stage(path, "jsonl", workspace)
    jsonl(path, {"text": "b"})
    os.utime(path, ns=(1, 1))
    with caplog.at_level("INFO"):
        second = stage(path, "jsonl", workspace)
    assert second.identity != first.identity
    assert rows(second) == [{"text": "b"}]
    assert "reason=changed files=a.jsonl" in caplog.text
    assert rows(first) == [{"text": "a"}]
    assert first.folder == workspace / "datasets/processed/data/train"
    assert second.folder is not None
    assert second.folder.parent == first.folder.parent
    assert second.folder.name.startswith("train@")


def test_stage_another_dataset_of_the_same_label_is_refused(
    tmp_path: Path, workspace: Path
) -> None:
    (tmp_path / "x").mkdir()
    stage(jsonl(tmp_path / "a.jsonl", {"text": "a"}), "jsonl", workspace)
    with pytest.raises(OutputError, match="Another dataset of that name"):
        stage(jsonl(tmp_path / "x" / "a.jsonl", {"text": "b"}), "jsonl", workspace)


def test_stage_the_same_file_as_another_source_is_refused(tmp_path: Path, workspace: Path) -> None:
    path = jsonl(tmp_path / "a", {"text": "a"})
    stage(path, "jsonl", workspace)
    with pytest.raises(OutputError, match=r"was staged from jsonl of .* this one is csv of"):
        stage(path, "csv", workspace)


def test_stage_into_a_folder_of_the_user_is_refused(tmp_path: Path, workspace: Path) -> None:
    folder = workspace / "datasets/processed/data/train"
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    with pytest.raises(OutputError, match="Not a staged dataset: "):
        stage(jsonl(tmp_path / "a.jsonl", {"text": "a"}), "jsonl", workspace)
    assert (folder / "mine.txt").exists()


def test_stage_damaged_part_is_staged_again(tmp_path: Path, workspace: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    first = stage(path, "jsonl", workspace)
    first.files[0].write_bytes(b"short")
    assert rows(stage(path, "jsonl", workspace)) == [{"text": "a"}]


def test_stage_leftovers_of_a_killed_process_are_removed(tmp_path: Path, workspace: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    folder = workspace / "datasets/processed/data"
    mine = staged_folder.temp_path(folder / "train").name.removesuffix(f"{os.getpid()}.tmp")
    for name in (f"{mine}999999999.tmp", f"{mine}{os.getpid()}.tmp", f"{mine}1.tmp"):
        (folder / name).mkdir(parents=True)
    stage(path, "jsonl", workspace)
    assert sorted(p.name for p in folder.iterdir()) == [f"{mine}1.tmp", "train"]


def test_stage_full_disk_names_the_folder_and_leaves_nothing(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")

    path = jsonl(tmp_path / "a.jsonl", {"text": "a"})
    monkeypatch.setattr(staged_folder.pq.ParquetWriter, "write_table", full)
    with pytest.raises(OutputError, match=r"Cannot write: .*/train; No space left on device"):
        stage(path, "jsonl", workspace)
    assert not workspace.exists()
    monkeypatch.undo()
    assert len(rows(stage(path, "jsonl", workspace))) == 1


def test_stage_file_in_the_way_of_the_workspace_is_an_output_error(
    tmp_path: Path, workspace: Path
) -> None:
    workspace.touch()
    with pytest.raises(OutputError, match="Cannot write: "):
        stage(jsonl(tmp_path / "a.jsonl", {"text": "a"}), "jsonl", workspace)


def test_stage_many_rows_make_several_groups_and_parts(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_folder, "_GROUP_ROWS", 8192)
    monkeypatch.setattr(staged_folder, "_PART_BYTES", 300_000)
    path = jsonl(tmp_path / "a.jsonl", *({"text": f"row {i:06d}"} for i in range(40_000)))
    staged = stage(path, "jsonl", workspace)
    assert len(staged.files) > 1
    assert [row["text"] for row in rows(staged)] == [f"row {i:06d}" for i in range(40_000)]
    record = json.loads((staged.files[0].parent / "dataset.json").read_text())
    assert record["rows"] == sum(part["rows"] for part in record["parts"]) == 40_000


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("csv", "id,text\nx,a\ny,b\nx,c\n", "'id' is 'x' in {path}:2 and in {path}:4. Remove one"),
        ("csv", 'id,text\nx,"a\n\nb"\nx,c\n', "'id' is 'x' in {path}:4 and in {path}:5. "),
        (
            "jsonl",
            '{"id": 1, "text": "a"}\n\n{"id": 1, "text": "b"}\n',
            "'id' is '1' in {path}:1 and in {path}:3. ",
        ),
        (
            "jsonl",
            '{"id": "x", "text": "a"}\n{"text": "b"}\n',
            "Missing id: dataset.id_field='id' is null in {path}:2. ",
        ),
        ("jsonl", '{"id": 1.5, "text": "a"}\n', "Not usable as ids: "),
    ],
)
def test_stage_bad_ids_name_the_source_line_and_nothing_stays(
    tmp_path: Path, workspace: Path, source: str, text: str, expected: str
) -> None:
    path = tmp_path / f"a.{source}"
    path.write_text(text)
    assert expected.format(path=path) in refused(path, source, workspace, id_field="id")
    assert not workspace.exists()


def test_stage_arrow_duplicate_id_names_row_and_file(tmp_path: Path, workspace: Path) -> None:
    for name in ("a", "b"):
        table = pa.table({"text": ["a", "b"], "id": [name, "x"]})
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    error = refused(tmp_path / "*.arrow", "arrow", workspace, id_field="id")
    assert f"row 1 of {tmp_path}/a.arrow and in row 1 of {tmp_path}/b.arrow" in error


def test_stage_duplicate_id_after_a_change_keeps_the_old_folder(
    tmp_path: Path, workspace: Path
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "a", "id": 1})
    first = stage(path, "jsonl", workspace, id_field="id")
    jsonl(path, {"text": "a", "id": 1}, {"text": "b", "id": 1})
    with pytest.raises(InputError, match="Duplicate id"):
        stage(path, "jsonl", workspace, id_field="id")
    assert rows(first) == [{"text": "a", "id": 1}]
    assert sorted(p.name for p in first.files[0].parent.parent.iterdir()) == ["train"]


def test_stage_ids_are_checked_once_for_each_field_and_number_of_rows(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[str, int]] = []

    def check(files: Any, id_field: str, max_rows: int, **options: Any) -> None:
        checked.append((id_field, max_rows))
        check_unique_ids(files, id_field, max_rows, **options)

    monkeypatch.setattr(staged_split, "check_unique_ids", check)
    lines = [{"text": "a", "id": 1, "n": 1}, {"text": "b", "id": 2, "n": 2}, {"id": 2, "n": 3}]
    path = jsonl(tmp_path / "a.jsonl", *lines)
    stage(path, "jsonl", workspace)
    assert not checked
    for _ in range(2):
        stage(path, "jsonl", workspace, id_field="n")
        stage(path, "jsonl", workspace, id_field="n", max_rows=1)
        stage(path, "jsonl", workspace, id_field="id", max_rows=2)
    assert checked == [("n", 3), ("id", 2)]
    with pytest.raises(InputError, match=r"Duplicate id: .* in .*a\.jsonl:2 and in .*a\.jsonl:3"):
        stage(path, "jsonl", workspace, id_field="id")
