"""Where texts are cut: every character in a chunk, none too long, at the ends of sentences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.chunking.cutting import Chunk, Cutter, Excerpt, last_end
from chatspace.chunking.documents import document_vectors

# Any text

_FRAGMENTS = st.one_of(
    st.sampled_from([".", "!", "?", "…", "。", "！", ",", "3.14", "word ", "sentence. ", "naïve "]),
    st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u200b", "\x00", "a" * 30]),
    st.sampled_from(["北京大学", "😀", "👩\u200d👩\u200d👧", "e\u0301", "ﷺ", "שלום "]),
    st.text(max_size=4),
)
TEXTS = st.lists(_FRAGMENTS, min_size=1, max_size=120).map("".join).filter(str.strip)


def uncovered(text: str, chunks: list[Chunk]) -> str:
    """Returns the characters in no chunk, spaces left out."""
    is_in = np.zeros(len(text), dtype=bool)
    for start, stop in chunks:
        is_in[start:stop] = True
    return "".join(c for c, inside in zip(text, is_in, strict=True) if not inside).strip()


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, overlap=st.integers(0, 9), room=st.integers(18, 40), data=st.data())
def test_cut_any_tokens_overlap_by_no_more_than_asked(
    text: str, overlap: int, room: int, data: st.DataObject
) -> None:
    """Whatever a tokenizer says of where tokens begin, also several at one character."""
    text = text.strip() * 3
    steps = data.draw(st.lists(st.integers(0, 3), min_size=len(text), max_size=len(text)))
    starts = np.repeat(np.arange(len(text)), steps)
    cutter = Cutter(room=room, overlap=overlap)
    chunks, following = cutter.cut(Excerpt(text, len(text), starts), 0)
    assert following is None and uncovered(text, chunks) == ""
    for chunk, after in pairwise(chunks):
        assert chunk.start < after.start
        shared = (starts >= after.start) & (starts < chunk.stop)
        assert shared.sum() <= overlap
        assert ((starts >= chunk.start) & (starts < chunk.stop)).sum() <= room


# Where a text is cut

SENTENCES = "The first sentence is here. The second one follows it! Does a third? Yes, it does. "


def cut(text: str, room: int, overlap: int = 0) -> list[str]:
    """Cuts a text whose characters are tokens."""
    starts = np.arange(len(text))
    chunks, following = Cutter(room=room, overlap=overlap).cut(Excerpt(text, len(text), starts), 0)
    assert following is None
    return [text[start:stop] for start, stop in chunks]


def test_cut_ends_with_the_last_sentence_that_ends_in_the_second_half() -> None:
    first = "The first sentence is here. The second one follows it!"
    assert cut(SENTENCES * 3, 60)[0] == first


def test_cut_sentence_ends_in_the_first_half_count_for_nothing() -> None:
    assert cut("Yes. " + "and so on " * 20, 40)[0] == "Yes. and so on and so on and so on and"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("it is 3.14 or 2.72, not e.g. one of those others", "it is 3.14 or 2.72, not e.g."),
        ("he said “So it goes.” And then he left the room", "he said “So it goes.”"),
        ("a line of some words\nand another line of words too", "a line of some words"),
        ("a paragraph of words\n\nand another, here one more", "a paragraph of words"),
        (
            "我住在北京，你住在上海，我们都很好。明天见面吧，后天也可以再见",
            "我住在北京，你住在上海，我们都很好。",
        ),
        ("x" * 60, "x" * 32),
    ],
)
def test_cut_ends_where_something_ends_in_any_script(text: str, first: str) -> None:
    room = 18 if "北" in text else 32
    assert cut(text, room)[0] == first


def test_cut_overlap_begins_at_a_word_and_is_no_more_than_asked() -> None:
    parts = cut("one two three four five six seven eight nine ten " * 4, 40, overlap=9)
    assert len(parts) > 5
    for part, after in pairwise(parts):
        shared = next(n for n in range(9, -1, -1) if part.endswith(after[:n]))
        assert 4 <= shared <= 9 and part[-shared - 1] == " "


def test_cut_last_two_chunks_share_what_is_left() -> None:
    lengths = [len(part) for part in cut("word " * 21, 100)]
    assert len(lengths) == 2 and min(lengths) > 40


def test_last_end_nothing_ends_is_the_most() -> None:
    assert last_end("abcdef", 2, 4) == 4
    assert last_end("1.5 kg", 0, 2) == 2  # what follows decides that no sentence ends here


# Vectors of documents


def test_document_vectors_are_means_by_tokens_of_length_one() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, 1], [0, 0]], np.float32)
    found = document_vectors(vectors, np.array([0, 0, 1, 2]), np.array([3, 4, 9, 1]))
    assert found.dtype == np.float32
    assert np.allclose(found, [[0.6, 0.8], [0, 1], [0, 0]])


def test_document_vectors_of_no_rows_are_none() -> None:
    none = np.empty(0, np.int64)
    assert document_vectors(np.empty((0, 3), np.float32), none, none).shape == (0, 3)
