from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chatspace.errors import ModelError, OutputError
from chatspace.openai_embed.journal import Journal, Record, ShardAnswers

TEXTS = [f"text {i}" for i in range(10)]


def record(*rows: int, cut: tuple[int, ...] = (), n_chars: int | None = None) -> Record:
    vectors = np.array([[row, row + 0.5, 1] for row in rows], np.float32)
    return Record(rows=rows, vectors=vectors, cut=cut, n_tokens=len(rows), n_chars=n_chars)


def read(path: Path, texts: list[str] = TEXTS, owner: str = "plan") -> ShardAnswers:
    journal = Journal(path, owner, texts, None)
    journal.close()
    return journal.answers


def filled(path: Path) -> Path:
    journal = Journal(path, "plan", TEXTS, None)
    journal.add(record(3, 1))
    journal.add(Record(rows=(4, 5), vectors=None))
    journal.add(record(9, cut=(9,), n_chars=4))
    journal.close()
    return path


def test_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    answers = read(filled(tmp_path / "s.journal"))
    assert answers.left == [0, 2, 6, 7, 8]
    assert (answers.cut, answers.skipped, answers.n_tokens) == ({9}, {4, 5}, 3)
    assert answers.n_chars == {9: 4}
    assert answers.vectors is not None
    np.testing.assert_array_equal(answers.vectors[[1, 3, 9], 0], [1, 3, 9])
    assert not answers.is_whole


def test_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.journal")
    content = path.read_bytes()
    path.write_bytes(content.replace(b', "n_chars": 4', b""))
    assert path.read_bytes() != content
    answers = read(path)
    assert (answers.left, answers.cut, answers.n_chars) == ([0, 2, 6, 7, 8], {9}, {})


def test_journal_cut_anywhere_keeps_whole_answers_and_goes_on(tmp_path: Path) -> None:
    content = filled(tmp_path / "whole").read_bytes()
    seen = set()
    for size in range(len(content)):
        path = tmp_path / "torn"
        path.write_bytes(content[:size])
        journal = Journal(path, "plan", TEXTS, None)
        known = tuple(np.flatnonzero(journal.answers.is_known).tolist())
        seen.add(known)
        journal.add(record(0))
        journal.close()
        assert read(path).left == sorted({*range(10)} - {0, *known})
    assert seen == {(), (1, 3), (1, 3, 4, 5)}


def test_journal_with_a_flipped_bit_drops_what_follows(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.journal")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read(path).left == [0, 2, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("texts", "owner"), [([*TEXTS[:-1], "other"], "plan"), (TEXTS, "another plan")]
)
def test_journal_of_something_else_is_begun_anew(
    tmp_path: Path, texts: list[str], owner: str
) -> None:
    path = filled(tmp_path / "s.journal")
    assert read(path, texts, owner).left == list(range(10))
    assert read(path).left == list(range(10))


def test_journal_of_other_vectors_than_are_due_is_refused_and_kept(tmp_path: Path) -> None:
    path = filled(tmp_path / "s.journal")
    with pytest.raises(ModelError, match=r"4 numbers; .*s\.journal has answers of 3\. .*remove"):
        Journal(path, "plan", TEXTS, 4)
    assert read(path).left == [0, 2, 6, 7, 8]


def test_journal_refuses_vectors_of_another_length_before_they_are_written(tmp_path: Path) -> None:
    journal = Journal(filled(tmp_path / "s.journal"), "plan", TEXTS, None)
    before = journal.path.read_bytes()
    with pytest.raises(ModelError, match="Vectors of another length: 5 numbers"):
        journal.add(Record(rows=(0,), vectors=np.ones((1, 5), np.float32)))
    journal.close()
    assert journal.path.read_bytes() == before


def test_journal_with_two_lengths_keeps_those_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    parts = []
    for vectors in (record(3).vectors, np.ones((1, 5), np.float32)):
        journal = Journal(tmp_path / "one", "plan", TEXTS, None)
        journal.add(Record(rows=(3,), vectors=vectors))
        journal.close()
        parts.append(journal.path.read_bytes())
        journal.close(remove=True)
    path.write_bytes(parts[0] + parts[1].split(b"\n", 1)[1])
    answers = read(path)
    assert (answers.dim, answers.left) == (3, [0, 1, 2, *range(4, 10)])
    assert path.read_bytes() == parts[0]
    assert not journal.path.exists()


def test_journal_on_a_full_disk_says_so_and_closes(
    small_disk: Callable[[int], Path],
) -> None:
    journal = Journal(small_disk(64) / "s.journal", "plan", TEXTS, None)
    with pytest.raises(OutputError, match="No space left"):
        journal.add(Record(rows=range(10), vectors=np.ones((10, 20_000), np.float32)))
    journal.close()
    assert read(journal.path).left == list(range(10))
