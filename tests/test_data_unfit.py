"""Sources that hold what Parquet, or a column's name, cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from chatspace.data.convert import Conversion, convert
from chatspace.data.staging import stage_split
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection

COLUMNS = {
    "union": pa.UnionArray.from_dense(
        pa.array([0, 0], pa.int8()), pa.array([0, 1], pa.int32()), [pa.array([1, 2])]
    ),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "run_ends": pa.RunEndEncodedArray.from_arrays([2], ["x"]),
    "empty_struct": pa.array([{}, {}], pa.struct([])),
    "list_of_intervals": pa.array([[(1, 2, 3)], []], pa.list_(pa.month_day_nano_interval())),
}


def refused(path: Path, source: Any, folder: Path) -> str:
    """Returns what setup and `convert` both say of a file, after which nothing is left."""
    section = DatasetSection(source=source, path=str(path))
    with pytest.raises(InputError) as of_setup:
        stage_split(section, "train", folder / "ws", "x")
    with pytest.raises(InputError) as of_convert:
        convert(Conversion(path=path, out=folder / "out", format=source))
    assert str(of_setup.value) == str(of_convert.value)
    assert "\n" not in str(of_setup.value)
    assert not list(folder.rglob("*.parquet"))
    assert not (folder / "ws").exists()
    return str(of_setup.value)


@pytest.mark.parametrize("name", COLUMNS)
def test_stage_and_convert_type_that_parquet_lacks_names_the_column(
    tmp_path: Path, name: str
) -> None:
    table = pa.table({"text": ["a", "b"], name: COLUMNS[name]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    message = refused(tmp_path / "a.arrow", "arrow", tmp_path)
    assert message.startswith(f"Type that Parquet lacks: column {name!r} is ")


@pytest.mark.parametrize(
    "line", [r'{"text": "a", "\ud800": 1}', r'{"text": "a", "b": [{"\udc00x": 1}]}']
)
def test_stage_and_convert_key_of_half_a_surrogate_pair_names_its_line(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    message = refused(tmp_path / "a.jsonl", "jsonl", tmp_path)
    assert message.startswith(f"Unfit key: {tmp_path / 'a.jsonl'}:2; '\\ud")


def test_stage_and_convert_csv_header_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,caf\xe9\na,b\n")
    message = refused(tmp_path / "a.csv", "csv", tmp_path)
    assert message.startswith(f"Not UTF-8: {tmp_path / 'a.csv'}:1.")
