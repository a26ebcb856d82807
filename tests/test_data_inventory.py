import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.data import inventory as inventory_module
from chatspace.data.inventory import check_unique_ids, inventory
from chatspace.errors import InputError
from chatspace.spec.dataset import DatasetSection

TURNS = [[{"role": "assistant", "content": "x"}]]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def section(text_field: str = "text", **dataset: Any) -> DatasetSection:
    return DatasetSection(source="parquet", path="unused", text_field=text_field, **dataset)


def refused(
    paths: list[Path], text_field: str = "text", keep_columns: tuple[str, ...] = (), **dataset: Any
) -> str:
    with pytest.raises(InputError) as caught:
        inventory(paths, section(text_field, **dataset), keep_columns=keep_columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inventory_gives_rows_and_bytes_of_each_row_group(tmp_path: Path) -> None:
    texts = ["x" * 10_000] * 10
    path = write(
        tmp_path / "a.parquet",
        {"n": [{"a": 1, "b": 2}] * 10, "text": texts},
        row_group_size=4,
        use_dictionary=False,
    )
    (file,) = inventory([path], section())
    assert file.row_groups == (4, 4, 2)
    assert file.rows == 10
    assert (file.bytes, file.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    sizes = zip((4, 4, 2), file.text_bytes, strict=True)
    assert all(rows * 10_000 <= size < rows * 10_500 for rows, size in sizes)


def test_inventory_keeps_the_order_of_the_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.parquet", {"text": ["x"] * i}) for i in (3, 1, 2)]
    assert [file.rows for file in inventory(paths, section())] == [3, 1, 2]


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_inventory_every_text_type_is_taken(tmp_path: Path, type_: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", {"text": pa.array(["a", None], pa.string()).cast(type_)})
    assert inventory([path], section())[0].rows == 2


def test_inventory_column_of_nulls_is_text(tmp_path: Path) -> None:
    assert inventory([write(tmp_path / "a.parquet", {"text": [None]})], section())[0].rows == 1


def test_inventory_missing_column_lists_columns_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"texts": ["a"], "n": [1]})
    assert refused([path]) == (
        f"Missing column: dataset.text_field='text'; {path} has texts, n. Did you mean texts?"
    )
    assert "dataset.id_field='id'" in refused([path], "texts", id_field="id")
    assert "output.keep_columns='m'" in refused([path], "texts", keep_columns=("n", "m"))


def test_inventory_column_missing_in_a_later_file_names_that_file(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", {"text": ["a"]})
    second = write(tmp_path / "b.parquet", {"body": ["a"]})
    assert "b.parquet has body" in refused([first, second])


def test_inventory_column_that_is_not_text_says_its_type(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [1], "turns": TURNS})
    assert "Not text: dataset.text_field='text'; it is int64 in" in refused([path])
    assert refused([path], "turns").endswith(
        "Set conversation: first_assistant, all_turns or last_user."
    )
    assert "Not a conversation: " in refused([path], extract_first_assistant=True)
    assert inventory([path], section("turns", conversation="all_turns"))[0].rows == 1


def test_inventory_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "Ambiguous column" in refused([tmp_path / "a.parquet"])


def test_inventory_truncated_file_is_named_with_its_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    path.write_bytes(path.read_bytes()[:-10])
    assert refused([path]).startswith(f"Truncated or damaged Parquet: {path} (")


@pytest.mark.parametrize("content", [b"", b"PAR", b'{"text": "a"}\n' * 100])
def test_inventory_file_that_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert refused([path]).startswith(f"Not a Parquet file: {path} (")


def test_inventory_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    assert refused([tmp_path / "no.parquet"]).startswith("No such file: ")
    assert "Is a directory" in refused([tmp_path]) or "Not a Parquet" in refused([tmp_path])


def test_inventory_no_rows_at_all_is_an_empty_dataset(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{i}.parquet", {"text": pa.array([], pa.string())}) for i in range(2)
    ]
    assert refused(paths).startswith("Empty dataset: 2 files such as ")


def test_check_unique_ids_unique_ids_pass_across_files(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.parquet", {"text": ["x"] * 3, "id": ["1", "2", "3"]}),
        write(tmp_path / "b.parquet", {"text": ["x"] * 2, "id": [4, 5]}),
    ]
    check_unique_ids(inventory(paths, section()), "id", 5)


def test_check_unique_ids_duplicate_names_the_id_and_both_rows(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.parquet", {"text": ["x"] * 3, "id": ["a", "b", "c"]}),
        write(tmp_path / "b.parquet", {"text": ["x"] * 2, "id": ["d", "b"]}),
    ]
    files = inventory(paths, section())
    with pytest.raises(InputError) as caught:
        check_unique_ids(files, "id", 5)
    expected = f"'id' is 'b' in row 1 of {paths[0]} and in row 1 of {paths[1]}. Remove one"
    assert expected in str(caught.value)
    check_unique_ids(files, "id", 4)


def test_check_unique_ids_hash_collision_alone_is_no_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inventory_module, "_hashes", lambda ids: inventory_module.np.zeros(len(ids), dtype="int64")
    )
    path = write(tmp_path / "a.parquet", {"text": ["x"] * 3, "id": ["a", "b", "c"]})
    check_unique_ids(inventory([path], section()), "id", 3)


def test_check_unique_ids_null_id_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"] * 3, "id": ["a", None, "c"]})
    with pytest.raises(InputError, match=r"Missing id: .*is null in row 1 of .*a\.parquet"):
        check_unique_ids(inventory([path], section()), "id", 3)


@pytest.mark.parametrize("values", [[[1]], [1.5]])
def test_check_unique_ids_type_without_ids_is_refused(tmp_path: Path, values: list[Any]) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"], "id": values})
    with pytest.raises(InputError, match="Not usable as ids"):
        check_unique_ids(inventory([path], section()), "id", 1)


@given(ids=st.lists(st.text(max_size=3), min_size=1, max_size=30), cut=st.integers(1, 30))
def test_check_unique_ids_agrees_with_a_set(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("ids") / "a.parquet"
    write(path, {"text": ["x"] * len(ids), "id": ids}, row_group_size=3)
    files = inventory([path], section())
    read = ids[:cut]
    if len(set(read)) == len(read):
        check_unique_ids(files, "id", cut)
    else:
        with pytest.raises(InputError, match=re.escape("Duplicate id")):
            check_unique_ids(files, "id", cut)


def test_check_unique_ids_in_files_names_the_same_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatspace.data.scratch._MEMORY_BYTES", 0)
    monkeypatch.setattr("chatspace.data.scratch._PART_VALUES", 8)
    ids = [f"id {n}" for n in range(200)]
    path = write(tmp_path / "a.parquet", {"text": ["x"] * 201, "id": [*ids, "id 7"]})
    files = inventory([path], section())
    check_unique_ids(files, "id", 200, scratch=tmp_path / "cache")
    with pytest.raises(InputError, match=r"is 'id 7' in row 7 of .* and in row 200 of "):
        check_unique_ids(files, "id", 201, scratch=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
