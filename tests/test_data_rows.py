import json
import os
import re
import subprocess
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.data import cursor
from chatspace.data.conversations import first_assistant_text
from chatspace.data.inventory import inventory
from chatspace.data.rows import PreparedRows, SplitReader
from chatspace.data.selection import RowRange
from chatspace.errors import InputError
from chatspace.shards.records import ShardSpan
from chatspace.spec.dataset import DatasetSection

HOSTILE = [
    "emoji 🧑🏽‍🚀",
    "مرحبا \u202eبالعالم",
    "nul\0inside",
    "\0",
    "line\nbreak\r\n",
    "x" * (1 << 20),
]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def make_reader(
    paths: list[Path], keep_columns: tuple[str, ...] = (), **dataset: Any
) -> SplitReader:
    section = DatasetSection(source="parquet", path="unused", **dataset)
    files = inventory(paths, section)
    return SplitReader(
        section,
        label="data",
        split="train",
        files=files,
        selection=RowRange(),
        keep_columns=keep_columns,
    )


def span(start: int, stop: int) -> ShardSpan:
    return ShardSpan(index=0, row_start=start, row_stop=stop)


def read_all(path: Path, n_rows: int, **options: Any) -> PreparedRows:
    return make_reader([path], **options).read(span(0, n_rows))


def test_read_plain_text_gives_rows_ids_and_empty_metadata(tmp_path: Path) -> None:
    rows = read_all(write(tmp_path / "a.parquet", {"text": ["a", "b"]}), 2)
    assert rows.row_index.dtype == np.int64
    assert rows.row_index.tolist() == [0, 1]
    assert rows.texts == ["a", "b"]
    assert rows.ids.type == pa.string()
    assert rows.ids.to_pylist() == ["data/train/0", "data/train/1"]
    assert rows.metadata.type == pa.string()
    assert rows.metadata.to_pylist() == ["{}", "{}"]
    assert rows.skipped == {}


def test_read_blank_and_null_rows_are_counted_by_reason(tmp_path: Path) -> None:
    texts = ["a", None, "", " \t\n\u00a0", "b", None]
    rows = read_all(write(tmp_path / "a.parquet", {"text": texts}), 6)
    assert rows.row_index.tolist() == [0, 4]
    assert rows.ids.to_pylist() == ["data/train/0", "data/train/4"]
    assert rows.skipped == {"null_text": 2, "empty_text": 2}


def test_read_hostile_texts_survive_unchanged(tmp_path: Path) -> None:
    rows = read_all(write(tmp_path / "a.parquet", {"text": HOSTILE}), len(HOSTILE))
    assert rows.texts == HOSTILE
    assert rows.skipped == {}


def test_read_nothing_kept_gives_empty_columns(tmp_path: Path) -> None:
    rows = read_all(write(tmp_path / "a.parquet", {"text": [None]}), 1, keep_columns=("text",))
    assert len(rows.row_index) == len(rows.ids) == len(rows.metadata) == len(rows.texts) == 0
    assert rows.ids.type == rows.metadata.type == pa.string()


@pytest.mark.parametrize(
    "type_", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_read_every_text_type_gives_the_same_rows(tmp_path: Path, type_: pa.DataType) -> None:
    text = pa.array(["a", None, "b"], pa.string()).cast(type_)
    path = write(
        tmp_path / "a.parquet",
        {"text": text, "id": pa.array(["a", "i", "b"], pa.string()).cast(type_)},
    )
    rows = read_all(path, 3, id_field="id", keep_columns=("text",))
    assert rows.texts == ["a", "b"]
    assert rows.ids.to_pylist() == ["a", "b"]
    assert rows.metadata.to_pylist() == ['{"text": "a"}', '{"text": "b"}']


def test_read_invalid_utf8_is_counted_and_its_neighbours_are_kept(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    path = write(tmp_path / "a.parquet", {"text": text, "note": text, "n": [1, 2, 3]})
    rows = read_all(path, 3, keep_columns=("n",))
    assert rows.texts == ["a", "b"]
    assert rows.row_index.tolist() == [0, 2]
    assert rows.skipped == {"invalid_utf8": 1}
    rows = read_all(path, 3, text_field="note", keep_columns=("text",))
    assert rows.metadata.to_pylist() == ['{"text": "a"}', '{"text": "b"}']


def test_read_spans_across_files_and_row_groups_give_absolute_rows(tmp_path: Path) -> None:
    paths = []
    for start, stop in ((0, 7), (7, 7), (7, 20)):
        texts = pa.array([str(i) for i in range(start, stop)], pa.string())
        paths.append(write(tmp_path / f"{len(paths)}.parquet", {"text": texts}, row_group_size=3))
    reader = make_reader(paths)
    for start, stop in ((0, 5), (5, 10), (10, 20), (3, 4), (19, 20), (0, 20)):
        rows = reader.read(span(start, stop))
        assert rows.texts == [str(i) for i in range(start, stop)]
        assert rows.row_index.tolist() == list(range(start, stop))


@given(data=st.data())
def test_read_any_span_of_any_layout_equals_the_slice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    n_rows = sum(sizes)
    if n_rows == 0:
        return
    folder = tmp_path_factory.mktemp("layout")
    paths, row = [], 0
    for index, size in enumerate(sizes):
        texts = pa.array([str(i) for i in range(row, row + size)], pa.string())
        group = data.draw(st.integers(1, 7))
        paths.append(write(folder / f"{index}.parquet", {"text": texts}, row_group_size=group))
        row += size
    reader = make_reader(paths)
    for _ in range(4):
        start = data.draw(st.integers(0, n_rows - 1))
        stop = data.draw(st.integers(start + 1, n_rows))
        assert reader.read(span(start, stop)).texts == [str(i) for i in range(start, stop)]


def test_read_consecutive_spans_decode_a_huge_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"t{i}" for i in range(20_000)]})
    opened: list[str] = []
    original = cursor.open_parquet
    monkeypatch.setattr(cursor, "open_parquet", lambda p: opened.append(p) or original(p))
    monkeypatch.setattr(cursor, "_MAX_BATCH_ROWS", 100)
    reader = make_reader([path])
    for start in range(0, 20_000, 1000):
        assert reader.read(span(start, start + 1000)).texts[0] == f"t{start}"
    assert len(opened) == 1


def test_read_large_rows_come_in_small_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"{i}" * (1 << 20) for i in range(10)] * 8})
    (file,) = inventory([path], DatasetSection(source="parquet", path="unused"))
    assert cursor._batch_rows(file, 0) * (1 << 20) <= 2 * cursor._BATCH_BYTES or (
        file.text_bytes[0] < 80 << 20  # a dictionary made it small
    )


def test_read_ids_come_from_the_id_field_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "", "c"], "n": [7, 8, 9]})
    assert read_all(path, 3, id_field="n").ids.to_pylist() == ["7", "9"]


def test_read_null_id_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"], "id": ["x", None]})
    with pytest.raises(InputError, match=r"Missing id: .*row 1 of"):
        read_all(path, 2, id_field="id")


def test_read_metadata_is_valid_json_whatever_the_type(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "day": date(2024, 1, 2),
        "moment": datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "clock": time(1, 2),
        "span": timedelta(seconds=1.5),
        "nan": float("nan"),
        "nested": {"a": [float("inf"), None], "b": {"c": b"\xff"}},
        "bytes": b"text",
        "broken": b"\xff\x00",
        "money": Decimal("1.10"),
        "big": 2**63 - 1,
        "quote": 'a"b\\\n\0é🧑',
        "yes": True,
        "none": None,
    }
    columns = {name: pa.array([value]) for name, value in values.items()}
    columns["nanoseconds"] = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    columns["map"] = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    names = tuple(columns)
    path = write(tmp_path / "a.parquet", {"text": ["x"], **columns})
    rows = read_all(path, 1, keep_columns=names)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    metadata = json.loads(rows.metadata[0].as_py(), parse_constant=refuse)
    assert metadata == {
        "day": "2024-01-02",
        "moment": "2024-01-02T03:04:05.000006+00:00",
        "nanoseconds": "2023-11-14T22:13:20.123456789",
        "clock": "01:02:00",
        "span": 1.5,
        "nan": None,
        "nested": {"a": [None, None], "b": {"c": "/w=="}},
        "bytes": "text",
        "broken": "/wA=",
        "money": "1.10",
        "big": 2**63 - 1,
        "quote": 'a"b\\\n\0é🧑',
        "yes": True,
        "none": None,
        "map": [["k", 1]],
    }


def test_read_conversation_takes_the_first_assistant_turn(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": "q"}, {"role": "Assistant ", "content": "first"}],
        [{"role": "user", "content": "q"}],
        None,
        [{"role": "assistant", "content": " "}, {"role": "model", "content": "second"}],
        [],
    ]
    path = write(tmp_path / "a.parquet", {"turns": turns, "n": range(5)})
    rows = read_all(path, 5, text_field="turns", extract_first_assistant=True, keep_columns=("n",))
    assert rows.texts == ["first", "second"]
    assert rows.row_index.tolist() == [0, 3]
    assert rows.skipped == {"no_assistant_turn": 2, "null_text": 1}
    assert json.loads(rows.metadata[0].as_py()) == {"n": 0, "turns": turns[0]}


def test_read_conversation_as_json_text_keeps_the_original(tmp_path: Path) -> None:
    text = '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'
    path = write(
        tmp_path / "a.parquet",
        {"text": [text, "{broken", '[{"role": "assistant", "content": "\\ud800"}]']},
    )
    rows = read_all(path, 3, extract_first_assistant=True)
    assert rows.texts == ["a"]
    assert json.loads(rows.metadata[0].as_py()) == {"text": text}
    assert rows.skipped == {"no_assistant_turn": 1, "invalid_utf8": 1}


@pytest.mark.parametrize(
    ("conversation", "text"),
    [
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}],
            "a\nb",
        ),
        ([{"role": "assistant", "content": [{"type": "image", "text": "a"}]}], None),
        ([{"role": "MODEL", "content": "a"}], "a"),
        ([{"from": "gpt", "value": "a"}], "a"),
        ([{"role": "gpt", "content": "a"}], None),
        ([{"role": "assistant", "content": None, "value": "a"}], "a"),
        ({"role": ["user", "assistant"], "content": ["q", "a"]}, "a"),
        ([{"role": None, "content": "a"}, "junk", 5], None),
        ([{"role": "assistant", "content": 5}], None),
        ("5", None),
        ("[" * 100_000, None),
        (None, None),
    ],
)
def test_first_assistant_text_knows_the_usual_shapes(conversation: Any, text: str | None) -> None:
    assert first_assistant_text(conversation) == text


def test_read_changed_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"]})
    reader = make_reader([path])
    before = path.stat()
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError) as caught:
        reader.read(span(0, 2))
    found = re.fullmatch(
        r"Input changed: .*a\.parquet; changed on 1970-01-01T00:00:00\.000000001Z, planned as of "
        r"(\S+), the same size\. Restore the file with its time .*; setup again gives a new run\.",
        str(caught.value),
    )
    assert found
    subprocess.run(["touch", "-d", found[1], path], check=True)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    reader = make_reader([path])
    write(path, {"text": ["a", "b", "c" * 100]})
    with pytest.raises(InputError, match=rf"; [\d,]+ bytes, planned with {before.st_size:,} as of"):
        reader.read(span(0, 2))
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        reader.read(span(0, 2))


def test_read_damaged_page_is_an_input_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"{i:08x}" * 50 for i in range(5000)]})
    content = bytearray(path.read_bytes())
    content[100:20_000] = b"\xff" * 19_900
    path.write_bytes(content)
    reader = make_reader([path])
    with pytest.raises(InputError, match=r"damaged Parquet: .*a\.parquet"):
        reader.read(span(0, 5000))


def test_read_missing_keep_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    with pytest.raises(InputError, match=r"Missing column: output\.keep_columns='title'"):
        read_all(path, 1, keep_columns=("title",))
