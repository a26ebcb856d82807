"""Converting files to Parquet, plain text as a source, and the commands that do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.data import json_items as json_module
from chatspace.data.convert import Conversion, convert
from chatspace.data.json_items import json_items
from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError, InputError, UserError
from chatspace.spec.dataset import DatasetSection, TextUnit
from tests.stores import command, gzip_bytes, jsonl_bytes, parquet_bytes, s3_store, zstd_bytes

ROWS = [{"text": f"row {i}", "n": i} for i in range(5)]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def converted(path: Path, out: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    return {
        item.split: rows(item.folder) for item in convert(Conversion(path=path, out=out, **options))
    }


def refused(path: Path, out: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(Conversion(path=path, out=out, **options))
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.parquet"))
    return str(caught.value)


def test_convert_json_with_splits_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1], "empty": []}, indent=2))
    found = converted(path, tmp_path / "out")
    assert found == {"train": ROWS, "test": ROWS[:1]}
    record = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert (record["rows"], record["features"]) == (5, {"text": "string", "n": "int64"})
    section = DatasetSection(source="parquet", path=str(tmp_path / "out"), split="test")
    assert len(stage_split(section, "test", tmp_path / "ws", "x").files) == 1


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.zst"])
def test_convert_json_list_or_object_compressed_or_not(tmp_path: Path, ending: str) -> None:
    packed = {".json": bytes, ".json.gz": gzip_bytes, ".json.zst": zstd_bytes}[ending]
    (tmp_path / f"list{ending}").write_bytes(packed(json.dumps(ROWS).encode()))
    (tmp_path / f"one{ending}").write_bytes(packed(b'\xef\xbb\xbf{"text": "a", "tags": ["x"]}'))
    assert converted(tmp_path / f"list{ending}", tmp_path / "a") == {"train": ROWS}
    one = converted(tmp_path / f"one{ending}", tmp_path / "b", split="dev")
    assert one == {"dev": [{"text": "a", "tags": ["x"]}]}


def test_convert_folder_of_json_is_one_split_or_one_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, part in (("10", ROWS[3:]), ("9", ROWS[:3])):
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(part))
    (tmp_path / "in" / "readme.md").write_text("no data")
    assert converted(tmp_path / "in", tmp_path / "a") == {"train": ROWS}
    assert converted(tmp_path / "in", tmp_path / "b", by_file=True) == {
        "9": ROWS[:3],
        "10": ROWS[3:],
    }


def test_convert_arrow_saved_folder_jsonl_and_csv(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    assert converted(tmp_path / "saved", tmp_path / "a") == {"train": ROWS}
    (tmp_path / "x.jsonl.zst").write_bytes(zstd_bytes(jsonl_bytes(ROWS)))
    assert converted(tmp_path / "x.jsonl.zst", tmp_path / "b") == {"train": ROWS}
    (tmp_path / "x.csv").write_text("text\na\n")
    assert converted(tmp_path / "x.csv", tmp_path / "c") == {"train": [{"text": "a"}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1},\n {"a": }]', "Invalid JSON: {path}:2; Expecting value"),
        ('[{"a": 1}\n {"a": 2}]', "Invalid JSON: {path}:2; '{' stands where ',' is expected"),
        ('[{"a": 1},]', "a comma before the end"),
        ('[{"a": "x', "Invalid JSON: {path}:1; Unterminated string"),
        ('[{"a": 1}', "it ends where ',' is expected"),
        ('[{"a": 1}] x', "Invalid JSON: {path}:1; more after the end"),
        ('{"a": 1}\n{"a": 2}\n', "Invalid JSON: {path}:2; more after the end. If each line is an"),
        ("[1, 2]", "Not an object: {path}:1 holds 1; "),
        ('"text"', "Not objects: {path}:1 begins with"),
        ('{"train": [{"a": 1}],\n "meta": {"v": 1}}', "Not a split: {path}:2; 'meta' is no list"),
        ('{"messages": [{"a": 1}], "id": 5}', "If the file is one object, write it as [{...}]."),
        ('{"messages": [{"a": 1}], "x": [5]}', "If the file is one object, write it as [{...}]."),
        ('[{"a": 1},\n{"a": "x"}]', "Type conflict: {path}:2; a is text here"),
        ("", "Empty dataset: "),
        ("[]", "Empty dataset: "),
        ("[" * 100_000, "Not an object: "),
        ('{"train": [{"a": 1}], "..": [{"a": 1}]}', "Unfit split: '..'"),
        ('{"\\ud800": [{"a": 1}]}', "Unfit split: '\\ud800'"),
    ],
)
def test_convert_bad_json_names_its_line_and_leaves_nothing(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    message = refused(path, tmp_path / "out")
    deep = "Invalid JSON" if content.startswith("[[") else expected
    assert expected.replace("{path}", str(path)) in message or deep in message


def test_convert_wrong_paths_and_formats_say_what_is_known(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "No such file" in refused(tmp_path / "no", out)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.xml").touch()
    assert "has a.xml; known: json, jsonl, csv, arrow, text." in refused(tmp_path / "in", out)
    assert "Unknown format: 'xml'; known: " in refused(tmp_path / "in", out, format="xml")
    assert "No csv files: " in refused(tmp_path / "in", out, format="csv")
    (tmp_path / "a.json").write_bytes(b'[{"a": "caf\xe9"}]')
    assert "Not UTF-8: " in refused(tmp_path / "a.json", out)
    (tmp_path / "b.arrow").write_bytes(b"ARROW1\0\0 and then nothing")
    assert "b.arrow" in refused(tmp_path / "b.arrow", out)


def test_convert_never_replaces_what_another_source_gave(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(ROWS))
    first = convert(Conversion(path=tmp_path / "a.json", out=tmp_path / "out"))
    again = convert(Conversion(path=tmp_path / "a.json", out=tmp_path / "out"))
    assert first[0].record["parts"] == again[0].record["parts"]
    with pytest.raises(UserError, match=r"Another dataset there: .*a\.json\. Choose another --out"):
        convert(Conversion(path=tmp_path / "b.json", out=tmp_path / "out"))
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/notes.txt").touch()
    with pytest.raises(UserError, match="Not a staged dataset: "):
        convert(Conversion(path=tmp_path / "a.json", out=tmp_path / "mine"))


@pytest.mark.parametrize(
    ("files", "by_file"),
    [
        ({"x.jsonl": {"a": 1}, "x.jsonl.gz": {"a": 2}}, True),
        ({"a.json": [{"a": 1}], "b.json": {"train": [{"a": 2}]}}, False),
        ({"a.json": {"train": [{"a": 1}]}, "b.json": {"train": [{"a": 2}]}}, True),
        ({"a.json": {"a/b": [{"a": 1}], "a__b": [{"a": 2}]}}, False),
    ],
)
def test_convert_two_splits_of_one_folder_are_refused_before_anything_is_written(
    tmp_path: Path, files: dict[str, Any], by_file: bool
) -> None:
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        packed = gzip_bytes if name.endswith(".gz") else bytes
        (tmp_path / "in" / name).write_bytes(packed(json.dumps(content).encode()))
    message = refused(tmp_path / "in", tmp_path / "out", by_file=by_file)
    assert message.startswith("Same split twice: ")
    assert "would be written more than once. Rename it, convert the files one by one" in message
    assert not (tmp_path / "out").exists()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)  # the first call imports
@given(
    items=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
)
def test_json_items_agree_with_json_load_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = {"train": items, "test": [{"x": 1}]}
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    before = json_module._CHUNK_CHARS
    json_module._CHUNK_CHARS = chunk
    try:
        found = list(json_items(path))
    finally:
        json_module._CHUNK_CHARS = before
    assert [item.row.values for item in found if item.split == "train"] == items
    assert [item.row.values for item in found if item.split == "test"] == [{"x": 1}]
    text = path.read_text(encoding="utf-8").split("\n")
    assert all("{" in text[item.row.line - 1] for item in found)


TEXT = "one\r\ntwo\n\n  \nthree\nfour\n\n\nfive"
LINES = ["one", "two", ".", "..", "three", "four", ".", ".", "five"]
BLANK = {".": "", "..": "  "}


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (
            "line",
            list(
                zip(
                    ["one", "two", ".", "..", "three", "four", ".", ".", "five"],
                    range(1, 10),
                    strict=True,
                )
            ),
        ),
        ("paragraph", [("one\ntwo", 1), ("three\nfour", 5), ("five", 9)]),
        ("file", [("one\ntwo\n\n  \nthree\nfour\n\n\nfive", 1)]),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_stage_text_gives_lines_paragraphs_or_files(
    tmp_path: Path, unit: TextUnit, expected: list[tuple[str, int]], ending: str
) -> None:
    packed = {".txt": bytes, ".txt.gz": gzip_bytes, ".txt.zst": zstd_bytes}[ending]
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / f"in/a{ending}").write_bytes(packed(TEXT.encode()))
    (tmp_path / f"in/deep/b{ending}").write_bytes(packed(b"last\n"))
    section = DatasetSection(source="text", path=str(tmp_path / "in/**/*.*"), text_unit=unit)
    staged = stage_split(section, "train", tmp_path / "ws", "in")
    found = [(r["text"], r["file"], r["line"]) for r in rows(staged.files[0].parent)]
    assert found == [
        *((BLANK.get(text, text), f"a{ending}", line) for text, line in expected),
        ("last", f"deep/b{ending}", 1),
    ]
    assert stage_split(section, "train", tmp_path / "ws", "in") == staged


def test_stage_text_another_unit_is_staged_again_and_is_another_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)

    def stage(**unit: Any) -> list[str]:
        section = DatasetSection(source="text", path=str(tmp_path / "a.txt"), **unit)
        staged = stage_split(section, "train", tmp_path / "ws", "a")
        return [row["text"] for row in rows(staged.files[0].parent)]

    assert len(stage()) == len(stage(text_unit="line")) == 9
    assert stage(text_unit="paragraph") == ["one\ntwo", "three\nfour", "five"]
    assert len(stage()) == 9


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"fine\ncaf\xe9\n", "Not UTF-8: {path}:2. Convert it to UTF-8."),
        ("a.txt", gzip_bytes(b"x\n"), "Compressed: {path} is gzip, and its name does not end in"),
        ("a.txt.gz", gzip_bytes(b"x\n" * 5000)[:-9], "Damaged gzip: {path}; "),
        ("a.txt.zst", gzip_bytes(b"x\n"), "Damaged Zstandard: {path}; "),
        ("a.txt.zst", zstd_bytes(b"x\n" * 5000)[:-3], "Damaged Zstandard: {path}; "),
        ("a.txt", b"", "Empty dataset: "),
    ],
)
def test_stage_text_wrong_input_is_named_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    section = DatasetSection(source="text", path=str(path))
    with pytest.raises(ChatspaceError) as caught:
        stage_split(section, "train", tmp_path / "ws", "a")
    assert expected.format(path=path) in str(caught.value)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_stage_jsonl_and_csv_compressed_give_the_same_rows(tmp_path: Path, ending: str) -> None:
    packed = {"": bytes, ".gz": gzip_bytes, ".zst": zstd_bytes}[ending]
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed(jsonl_bytes(ROWS)))
    (tmp_path / f"a.csv{ending}").write_bytes(packed(b'text\n"a\nb"\n'))
    lines = DatasetSection(source="jsonl", path=str(tmp_path / f"a.jsonl{ending}"))
    staged = stage_split(lines, "train", tmp_path / "ws", "lines")
    assert rows(staged.files[0].parent) == ROWS
    csv = DatasetSection(source="csv", path=str(tmp_path / f"a.csv{ending}"))
    staged = stage_split(csv, "train", tmp_path / "ws", "csv")
    assert rows(staged.files[0].parent) == [{"text": "a\nb"}]


def test_stage_zstandard_of_several_frames_is_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd_bytes(jsonl_bytes(ROWS[:2])) + zstd_bytes(jsonl_bytes(ROWS[2:])))
    section = DatasetSection(source="jsonl", path=str(path))
    staged = stage_split(section, "train", tmp_path / "ws", "a")
    assert rows(staged.files[0].parent) == ROWS


def test_stage_dataset_dict_folder_with_split_placeholder(tmp_path: Path) -> None:
    import datasets

    made = {"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "both")
    for number, path in enumerate((tmp_path / "both", tmp_path / "both" / "{split}")):
        section = DatasetSection(source="arrow", path=str(path), splits=("train", "dev"), name="x")
        for split, wanted in (("train", ROWS), ("dev", ROWS[:2])):
            staged = stage_split(section, split, tmp_path / f"ws{number}", "x")
            assert rows(staged.files[0].parent) == wanted
    missing = DatasetSection(source="arrow", path=str(tmp_path / "both"), split="tests")
    with pytest.raises(ChatspaceError, match=r"has dataset_dict\.json, dev, train"):
        stage_split(missing, "tests", tmp_path / "ws", "x")


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
        (("--name", "b/x", "--source", "s3", "--format", "xml"), "download-dataset source='xml'"),
        (("--name", "b/x", "--source", "kaggle"), "Unknown protocol: "),
        (("--name", "s3://k:pw@b/x"), "path holds a password"),
        (("--name", "s3://k:pw@b/x", "--source", "gs"), "path holds a password"),
        ((), "--name"),
    ],
)
def test_download_dataset_command_wrong_options_are_one_line(
    tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    code, _, errors = command("download-dataset", *words, "--workspace", str(tmp_path))
    assert code == 2
    assert expected in errors
    assert errors.count("\n") == 1
    assert "k:pw" not in errors
    assert not list(tmp_path.rglob("*.parquet"))


def test_convert_folder_of_saved_splits_is_refused_with_what_to_do(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"has test, train\. Convert .*saved/test and so on"):
        convert(Conversion(path=tmp_path / "saved", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
