"""Which rows a run reads: `where`, `skip_rows`, `max_rows` and `sample`, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatspace.data.candidates import STRATUM, strata
from chatspace.data.choosing import choose_rows
from chatspace.data.inventory import inventory
from chatspace.data.scratch import scratch_files
from chatspace.data.selection import RowList, RowRange, open_selection, positions, write_list
from chatspace.errors import InputError, SpecError, UserError
from chatspace.spec.dataset import DatasetSection

N_ROWS = 1000
DATASET = DatasetSection.model_validate({"source": "parquet", "path": "x"})
LANGS = ["en", "de", None, "fr", "en"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files, one of them empty, with a column to choose by."""
    folder = tmp_path_factory.mktemp("rows")
    paths = []
    for name, start, stop in (("a", 0, 330), ("b", 330, 330), ("it's c", 330, N_ROWS)):
        numbers = list(range(start, stop))
        columns = {
            "text": [f"text {n}" for n in numbers],
            "lang": pa.array([LANGS[n % 5] for n in numbers], pa.string()),
            "n": pa.array(numbers, pa.int64()),
        }
        paths.append(folder / f"{name}.parquet")
        pq.write_table(pa.table(columns), paths[-1], row_group_size=97)
    return paths


def chosen(files: list[Path], workspace: Path, **keys: Any) -> list[int]:
    """The numbers of the rows that are read, as a task finds them."""
    dataset = DatasetSection.model_validate({"source": "parquet", "path": "x", **keys})
    listed = inventory(files, dataset)
    rows, selected = choose_rows(
        listed, dataset, workspace=workspace, folder=workspace / "datasets" / "selected"
    )
    if selected is not None:
        assert sum(selected.group_rows) == rows
    selection = open_selection(selected, workspace, rows)
    return positions(selection, 0, rows).tolist()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, list(range(N_ROWS))),
        ({"max_rows": 7}, list(range(7))),
        ({"max_rows": 5000}, list(range(N_ROWS))),
        ({"skip_rows": 990}, list(range(990, N_ROWS))),
        ({"skip_rows": 328, "max_rows": 4}, [328, 329, 330, 331]),
        ({"where": "lang = 'en'"}, [n for n in range(N_ROWS) if n % 5 in (0, 4)]),
        ({"where": "lang IS NULL", "skip_rows": 1, "max_rows": 2}, [7, 12]),
        ({"where": "text LIKE '%99' -- a comment"}, list(range(99, N_ROWS, 100))),
        ({"where": "n % 2 = 0 AND (lang = 'de' OR n < 3)"},
         [n for n in range(0, N_ROWS, 2) if n % 5 == 1 or n < 3]),
        ({"sample": {"fraction": 1.0}}, list(range(N_ROWS))),
        ({"sample": {"n": 5000}}, list(range(N_ROWS))),
    ],
)  # fmt: skip
def test_choose_rows_gives_what_was_asked_for(
    files: list[Path], tmp_path: Path, keys: dict[str, Any], expected: list[int]
) -> None:
    assert chosen(files, tmp_path, **keys) == expected


def test_choose_rows_of_a_sample_are_these_on_every_machine(
    files: list[Path], tmp_path: Path
) -> None:
    assert chosen(files, tmp_path, sample={"n": 5, "seed": 0}) == [254, 366, 410, 503, 821]


def test_choose_rows_samples_what_the_condition_left(files: list[Path], tmp_path: Path) -> None:
    found = chosen(files, tmp_path, where="lang = 'fr'", sample={"fraction": 0.25})
    assert len(found) == 50
    assert all(row % 5 == 3 for row in found)


def test_choose_rows_stratified_keeps_the_shares_to_the_row(
    files: list[Path], tmp_path: Path
) -> None:
    found = chosen(files, tmp_path, sample={"n": 50, "seed": 3, "stratify_by": "lang"})
    assert np.bincount([row % 5 for row in found], minlength=5)[[1, 2, 3]].tolist() == [10, 10, 10]
    assert len(found) == 50


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_choose_rows_takes_each_key_from_what_the_one_before_left(
    files: list[Path], tmp_path: Path, data: st.DataObject
) -> None:
    skip = data.draw(st.integers(1, 300))
    wanted = data.draw(st.integers(1, 300))
    n = data.draw(st.integers(1, 300))
    keys: dict[str, Any] = {"where": "n % 3 <> 0", "skip_rows": skip, "max_rows": wanted}
    within = [row for row in range(N_ROWS) if row % 3][skip : skip + wanted]
    assert chosen(files, tmp_path, **keys) == within
    found = chosen(files, tmp_path, **keys, sample={"n": n})
    assert len(found) == min(n, len(within))
    assert set(found) <= set(within)


def test_choose_rows_again_finds_its_list_and_leaves_one_file(
    files: list[Path], tmp_path: Path
) -> None:
    for _ in range(2):
        chosen(files, tmp_path, sample={"n": 5})
    assert len(list((tmp_path / "datasets" / "selected").iterdir())) == 1


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"where": "lang = "}, SpecError, ["dataset.where='lang = '", "text, lang, n"]),
        ({"where": "langs = 'en'"}, SpecError, ["langs", "columns are text, lang, n"]),
        ({"where": "1=1) OR (2=2"}, SpecError, ["Invalid condition"]),
        ({"where": "1=1; DROP TABLE x"}, SpecError, ["Invalid condition"]),
        ({"where": "n IN (SELECT 1 FROM read_csv('/etc/passwd'))"}, SpecError, ["/etc/passwd"]),
        ({"where": "n < 0"}, InputError, ["No rows left", "dataset.where='n < 0'", "1,000"]),
        ({"skip_rows": 1000}, InputError, ["No rows left", "dataset.skip_rows=1000"]),
        ({"sample": {"n": 3, "stratify_by": "language"}}, InputError, ["Did you mean lang?"]),
    ],
)  # fmt: skip
def test_choose_rows_of_bad_keys_is_refused_in_one_line(
    files: list[Path], tmp_path: Path, keys: dict[str, Any], error: type[UserError],
    words: list[str],
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        chosen(files, tmp_path, **keys)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    assert not list(tmp_path.rglob("*.parquet"))


def test_row_list_gives_any_part_across_its_groups(tmp_path: Path) -> None:
    rows = np.cumsum(np.random.default_rng(0).integers(1, 9, 300_000))
    write_list(tmp_path / "rows.parquet", np.array_split(rows, 7))
    listed = RowList(tmp_path / "rows.parquet")
    assert len(listed) == len(rows)
    for start, stop in ((0, 1), (131_071, 131_073), (299_000, 300_000), (5, 290_000)):
        assert positions(listed, start, stop).tolist() == rows[start:stop].tolist()
    assert listed.between(int(rows[-1]) + 1, int(rows[-1]) + 9).tolist() == []
    assert (tmp_path / "rows.parquet").stat().st_size < 2 * len(rows)


def test_row_range_begins_where_it_was_told() -> None:
    assert RowRange(5).between(0, 8).tolist() == [5, 6, 7]
    assert positions(RowRange(5), 2, 4).tolist() == [7, 8]


def test_open_selection_of_another_length_is_refused(tmp_path: Path, files: list[Path]) -> None:
    dataset = DatasetSection.model_validate({"source": "parquet", "path": "x", "sample": {"n": 10}})
    listed = inventory(files, dataset)
    _, selected = choose_rows(listed, dataset, workspace=tmp_path, folder=tmp_path)
    with pytest.raises(InputError, match="has 10 rows, planned with 11"):
        open_selection(selected, tmp_path, 11)
    assert selected is not None
    assert selected.path is not None
    (tmp_path / selected.path).unlink()
    with pytest.raises(InputError, match="No such file"):
        open_selection(selected, tmp_path, 10)


def one_file(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_where_reads_the_file_whose_name_is_a_pattern(tmp_path: Path) -> None:
    texts = {"text": ["a", "b", "b"]}
    one_file(tmp_path / "data" / "part1.parquet", {"text": ["a", "a", "a"]})
    path = one_file(tmp_path / "data" / "part[1].parquet", texts)
    assert chosen([path], tmp_path, where="text = 'a'") == [0]


def test_where_takes_columns_from_the_file_and_not_from_its_folder(tmp_path: Path) -> None:
    path = one_file(tmp_path / "year=2020" / "x.parquet", {"text": ["a"] * 4, "year": [1, 2, 3, 4]})
    assert chosen([path], tmp_path, where="year < 3") == [0, 1]
    other = one_file(tmp_path / "lang=en" / "x.parquet", {"text": ["a"]})
    with pytest.raises(SpecError, match="lang"):
        chosen([other], tmp_path, where="lang = 'en'")


@pytest.mark.parametrize(
    "where",
    [
        "random() < 0.5",
        "n < 5 AND uuid() <> text",
        "now() > TIMESTAMP '2020-01-01'",
        "current_date > DATE '2020-01-01'",
        "today() > DATE '2020-01-01'",
        "current_setting('threads') = 2",
    ],
)
def test_where_that_varies_is_refused(files: list[Path], tmp_path: Path, where: str) -> None:
    with pytest.raises(SpecError, match="does not give the same every time"):
        chosen(files, tmp_path, where=where)


def test_where_over_columns_that_differ_in_case_is_refused(tmp_path: Path) -> None:
    path = one_file(tmp_path / "x.parquet", {"Text": ["a", "b"], "text": ["b", "a"]})
    with pytest.raises(InputError, match="Ambiguous columns"):
        chosen([path], tmp_path, where="text = 'b'")


def test_where_on_a_damaged_file_blames_the_file(tmp_path: Path) -> None:
    path = one_file(
        tmp_path / "x.parquet", {"text": ["some words " * 50 + str(n) for n in range(50)]}
    )
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Cannot read for dataset\.where: .*x\.parquet"):
        chosen([path], tmp_path, where="text LIKE '%1'")


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("type_", [pa.string(), pa.dictionary(pa.int8(), pa.string())])
def test_strata_are_numbered_as_they_first_appear(
    tmp_path: Path, type_: pa.DataType, use_dictionary: bool
) -> None:
    places = [["b", None, "a", "b"], ["c", "a", "d"], [None, "d", "b"]]
    encoded = pa.DictionaryArray.from_arrays(pa.array([3, None, 1, 3], pa.int8()), list("zaxb"))
    first = encoded if pa.types.is_dictionary(type_) else pa.array(places[0], type_)
    path = tmp_path / "s.parquet"
    schema = pa.schema([("text", pa.string()), ("x", type_)])
    with pq.ParquetWriter(path, schema, use_dictionary=use_dictionary) as writer:
        for values in (first, *(pa.array(group).cast(type_) for group in places[1:])):
            columns = [pa.array(["t"] * len(values)), values]
            writer.write_table(pa.table(columns, schema=schema))
    with scratch_files(tmp_path, 1, 0) as (codes,):
        assert strata(inventory([path], DATASET), "x", codes) == ["b", None, "a", "c", "d"]
        assert codes.read(STRATUM).tolist() == [0, 1, 2, 0, 3, 2, 4, 1, 4, 0]


def test_stratify_by_numbers_puts_what_is_no_number_into_one_stratum(tmp_path: Path) -> None:
    values = [float("nan"), float("nan"), 1.0, None]
    paths = [
        one_file(tmp_path / name, {"text": ["t"] * 4, "x": pa.array(values, pa.float64())})
        for name in ("a.parquet", "b.parquet")
    ]
    with scratch_files(tmp_path, 1, 0) as (codes,):
        names = strata(inventory(paths, DATASET), "x", codes)
        assert codes.read(STRATUM).tolist() == [0, 0, 1, 2] * 2
    assert len(names) == 3


def test_stratify_by_values_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    column = pa.array([b"\xff", b"a"], pa.binary()).view(pa.string())
    path = one_file(tmp_path / "x.parquet", {"text": ["a", "b"], "lang": column})
    with pytest.raises(InputError, match=r"Not usable for strata: .*lang"):
        chosen([path], tmp_path, sample={"n": 1, "stratify_by": "lang"})


def test_stratify_by_an_unknown_column_is_refused_also_where_all_rows_are_read(
    files: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="stratify_by='nosuch'"):
        chosen(files, tmp_path, sample={"n": 5000, "stratify_by": "nosuch"})


def test_stratify_in_files_draws_the_same_and_leaves_nothing(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = {"n": 100, "stratify_by": "lang"}
    in_memory = chosen(files, tmp_path / "memory", sample=sample)
    assert not (tmp_path / "memory" / "cache").exists()
    monkeypatch.setattr("chatspace.data.scratch._MEMORY_BYTES", 0)
    assert chosen(files, tmp_path / "disk", sample=sample) == in_memory
    assert list((tmp_path / "disk" / "cache").iterdir()) == []
