from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq
import pytest

from chatspace.demo import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "docs"
    corpus.write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    return pq.read_table(folder / "passages.parquet").to_pylist()


def test_write_corpus_gives_unique_ids_and_the_named_columns(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == ["id", "text", "module", "package", "kind"]
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["kind"] for row in rows} == {"class", "function", "module", "topic"}


def test_write_corpus_has_a_heavy_tail_and_a_few_empty_rows(rows: list[dict[str, str]]) -> None:
    n_chars = [len(row["text"]) for row in rows]
    assert len(rows) > 1000
    assert max(n_chars) > 50 * median(n_chars)
    assert 0 < n_chars.count(0) < len(rows) / 20
    assert all(row["kind"] == "module" for row in rows if not row["text"])


def test_write_corpus_lets_no_package_dominate(rows: list[dict[str, str]]) -> None:
    n_rows = Counter(row["package"] for row in rows)
    assert all(n <= corpus.MAX_PASSAGES[package] for package, n in n_rows.items())


def test_write_corpus_writes_several_row_groups_and_a_record(folder: Path) -> None:
    file = pq.ParquetFile(folder / "passages.parquet")
    record = json.loads((folder / "dataset.json").read_text())
    assert file.num_row_groups > 1
    assert record["rows"] == file.metadata.num_rows == sum(record["rows_by_package"].values())


def test_write_corpus_called_again_keeps_the_file(folder: Path) -> None:
    before = (folder / "passages.parquet").stat()
    corpus.write_corpus(folder)
    after = (folder / "passages.parquet").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_collect_passages_is_the_same_every_time(rows: list[dict[str, str]]) -> None:
    assert [passage.id for passage in corpus.collect_passages()] == [row["id"] for row in rows]


def test_definitions_leave_out_private_names_and_what_is_undocumented() -> None:
    tree = ast.parse(
        'class Open:\n    "Open."\n    def told(self): "Told."\n    def mute(self): pass\n'
        '    def _hidden(self): "Hidden."\nclass _Closed:\n    "Closed."\n'
    )
    found = list(corpus._definitions(tree.body, "m"))
    assert found == [("m.Open", "class", "Open."), ("m.Open.told", "function", "Told.")]


@pytest.mark.parametrize("source", [b"def (", b"\xff\xfe", b"x = '\x00'"])
def test_parse_of_no_valid_source_gives_nothing(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "m.py").write_bytes(source)
    assert corpus._parse(tmp_path / "m.py") is None
