"""Converting files to Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.data import json_items as json_module
from chatspace.data.convert import Conversion, convert
from chatspace.data.json_items import json_items
from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError, InputError, SpecError, UserError
from chatspace.spec.dataset import DatasetSection
from tests.stores import gzip_bytes, jsonl_bytes, zstd_bytes

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


def test_convert_folder_of_saved_splits_converts_each(tmp_path: Path) -> None:
    import datasets

    made = {"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    wanted = {"train": ROWS, "dev": ROWS[:1]}
    assert converted(tmp_path / "saved", tmp_path / "out") == wanted
    assert converted(tmp_path / "saved", tmp_path / "named", format="arrow") == wanted
    with pytest.raises(SpecError, match=r"--from json; .* was saved by datasets"):
        convert(Conversion(path=tmp_path / "saved", out=tmp_path / "no", format="json"))
    (tmp_path / "saved" / "dev" / "state.json").unlink()
    with pytest.raises(InputError, match=r"Damaged dataset: .*saved/dev/state\.json is not there"):
        convert(Conversion(path=tmp_path / "saved", out=tmp_path / "no"))
    for content in ("{}", "[1]", "no json", '{"splits": []}'):
        (tmp_path / "saved" / "dataset_dict.json").write_text(content)
        with pytest.raises(InputError, match="Damaged dataset: "):
            convert(Conversion(path=tmp_path / "saved", out=tmp_path / "no"))
    assert not (tmp_path / "no").exists()
