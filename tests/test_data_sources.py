from pathlib import Path
from typing import Any

import pytest

from chatspace.data.sources import dataset_label, find_files, natural_order
from chatspace.errors import InputError, SpecError
from chatspace.spec.dataset import DatasetSection


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(folder: Path, path: str | Path, split: str = "train", **dataset: Any) -> list[str]:
    section = DatasetSection(**{"source": "parquet", "path": str(path), **dataset})
    found = find_files(section, split)
    assert all(file.is_absolute() for file in found)
    return [str(file.relative_to(folder)) for file in found]


def test_find_files_a_file_is_itself_whatever_its_extension(tmp_path: Path) -> None:
    fill(tmp_path, "data.bin")
    assert names(tmp_path, tmp_path / "data.bin") == ["data.bin"]


def test_find_files_relative_path_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path, "a.parquet") == ["a.parquet"]


def test_find_files_folder_of_one_split_takes_its_files_in_natural_order(tmp_path: Path) -> None:
    fill(tmp_path, "p10.parquet", "p9.parquet", "p1.parquet", "readme.md", ".p2.parquet")
    assert names(tmp_path, tmp_path) == ["p1.parquet", "p9.parquet", "p10.parquet"]


def test_find_files_folder_prefers_the_split_s_own_files(tmp_path: Path) -> None:
    fill(tmp_path, "train-00001-of-2.parquet", "train-00000-of-2.parquet", "test.parquet")
    assert names(tmp_path, tmp_path) == ["train-00000-of-2.parquet", "train-00001-of-2.parquet"]
    assert names(tmp_path, tmp_path, "test") == ["test.parquet"]


def test_find_files_split_folder_goes_first(tmp_path: Path) -> None:
    fill(tmp_path, "train/b.parquet", "train/a.parquet", "train.parquet")
    assert names(tmp_path, tmp_path) == ["train/a.parquet", "train/b.parquet"]


def test_find_files_several_splits_never_share_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "train.parquet", "other.parquet")
    assert names(tmp_path, tmp_path, splits=("train", "test")) == ["train.parquet"]
    with pytest.raises(InputError, match="split test; looked for test/"):
        names(tmp_path, tmp_path, "test", splits=("train", "test"))
    with pytest.raises(SpecError, match=r"Same files for several splits: .* Put \{split\}"):
        names(tmp_path, tmp_path / "*.parquet", "test", splits=("train", "test"))


def test_find_files_folder_of_other_splits_is_not_this_one(tmp_path: Path) -> None:
    fill(tmp_path, "train-1.parquet", "test.parquet")
    with pytest.raises(InputError, match=r"split dev; .* the folder has test\.parquet, train-1"):
        names(tmp_path, tmp_path, "dev")
    both = ["test.parquet", "train-1.parquet"]
    assert names(tmp_path, tmp_path, "everything") == both


def test_find_files_folder_with_another_split_among_odd_names_is_not_this_one(
    tmp_path: Path,
) -> None:
    fill(tmp_path, "train.parquet", "odd.parquet")
    with pytest.raises(InputError, match=r"the folder has odd\.parquet, train\.parquet\. Check"):
        names(tmp_path, tmp_path, "validation")
    assert names(tmp_path, tmp_path) == ["train.parquet"]
    fill(tmp_path / "b", "test-00000-of-1.parquet", "odd.parquet")
    with pytest.raises(InputError, match="split train; looked for train/"):
        names(tmp_path, tmp_path / "b")
    fill(tmp_path / "c", "dev-notes.parquet", "intro.parquet")
    assert names(tmp_path, tmp_path / "c") == ["c/dev-notes.parquet", "c/intro.parquet"]


def test_find_files_placeholder_stands_for_the_split(tmp_path: Path) -> None:
    fill(tmp_path, "x/train/1.parquet", "x/test/2.parquet", "y-test.parquet")
    splits = {"splits": ("train", "test")}
    assert names(tmp_path, tmp_path / "x/{split}", "test", **splits) == ["x/test/2.parquet"]
    assert names(tmp_path, tmp_path / "x/{split}/*.parquet", **splits) == ["x/train/1.parquet"]
    assert names(tmp_path, tmp_path / "y-{split}.parquet", "test", **splits) == ["y-test.parquet"]


def test_find_files_glob_takes_files_only(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.parquet", "b/c/y.parquet", "d.parquet/z")
    assert names(tmp_path, tmp_path / "**/*.parquet") == ["a/x.parquet", "b/c/y.parquet"]


def test_find_files_home_and_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    assert names(tmp_path, "~/a.parquet") == ["a.parquet"]
    assert names(tmp_path, "$DATA/a.parquet") == ["a.parquet"]
    with pytest.raises(SpecError, match=r"Undefined variable: dataset\.path='\$NOT_SET_X/a'"):
        names(tmp_path, "$NOT_SET_X/a")


@pytest.mark.parametrize(
    "name", ["a$b.parquet", "a [1]*.parquet", "a 'b' \"c\"\n.parquet", "ü🧑.parquet"]
)
def test_find_files_hostile_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    assert names(tmp_path, tmp_path / name) == [name]


def test_find_files_nothing_there_says_what_is(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.csv")
    with pytest.raises(InputError) as caught:
        names(tmp_path, tmp_path)
    assert "the folder has a.jsonl, b.csv. Did you mean source: jsonl?" in str(caught.value)
    with pytest.raises(InputError, match=r"No such file or folder: dataset\.path="):
        names(tmp_path, tmp_path / "no.parquet")
    with pytest.raises(InputError, match=rf"; {tmp_path} has a\.jsonl, b\.csv\. Check the path\."):
        names(tmp_path, tmp_path / "x" / "y" / "no.parquet")
    with pytest.raises(InputError, match=r"has a\.jsonl, b\.csv\. Did you mean a\.jsonl\?"):
        names(tmp_path, tmp_path / "aa.jsonl")
    with pytest.raises(InputError, match=r"No file matches: dataset\.path=.* has a\.jsonl, b\.csv"):
        names(tmp_path, tmp_path / "no*.parquet")
    with pytest.raises(InputError, match=r"Invalid path|No such file"):
        names(tmp_path, "a\0b")


def test_natural_order_numbers_and_leading_zeros_are_deterministic() -> None:
    given = [Path(name) for name in ("a10", "a2", "a02", "a", "b1", "1")]
    ordered = ["1", "a", "a02", "a2", "a10", "b1"]
    assert [str(p) for p in natural_order(given)] == ordered
    assert [str(p) for p in natural_order(reversed(given))] == ordered


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("https://h/t.parquet?x=1", "t"),
        ("https://h/a/t.parquet?x=1/2&y=?", "t"),
        ("https://h:8080/*.parquet", "dataset"),
        ("https://h?x=1", "dataset"),
        ("HTTP://h:80/docs/*.parquet", "docs"),
        ("sftp://me@h/*.parquet", "dataset"),
        ("s3://bucket/*.parquet", "bucket"),
        ("s3://bucket/t?.parquet", "bucket"),
        ("s3://bucket/t.parquet?versionId=a/b", "t"),
        ("s3://*/t.parquet", "t"),
        ("s3://*/*.parquet", "dataset"),
        ("hf://datasets/org/name@v1/*.parquet", "name@v1"),
        ("/data/a?x=1/t.parquet", "t"),
    ],
)
def test_dataset_label_of_a_url_is_neither_its_server_nor_its_query(path: str, label: str) -> None:
    assert dataset_label(DatasetSection(source="parquet", path=path)) == label
