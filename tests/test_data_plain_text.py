"""Plain text and compressed text as sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError
from chatspace.spec.dataset import DatasetSection, TextUnit
from tests.stores import gzip_bytes, jsonl_bytes, zstd_bytes
from tests.test_data_convert import ROWS, rows

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
