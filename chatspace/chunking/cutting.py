"""Where a long text is cut: at the ends of sentences where there are some.

A chunk ends at the last end of a sentence in the second half of what it may hold; without one
there, at the last end of a line, then of a word, and in text without spaces where its tokens are
used up. The next chunk begins a few tokens before that end, at a word. What is left for the last
two chunks is shared between them, so that the last is not a scrap.

The rule knows no language. A sentence ends with `.`, `!`, `?` or `…` and a space behind it; with
`。`, `！`, `？`, `｡` or `．`, which need no space; with `؟`, `۔`, `।` or `॥`; or at an empty line.
An abbreviation, `Dr. Who`, is taken for the end of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_CLOSING = "[\"'”’»)\\]」』】）》]*"
_ENDS = (
    re.compile(rf"[.!?…]+{_CLOSING}(?=\s)|[。！？｡．؟۔।॥]+{_CLOSING}|\n(?=[^\S\n]*\n)"),
    re.compile(r"\S(?=[^\S\n]*\n)"),
    re.compile(r"\S(?=\s)"),
)
_WORD_START = re.compile(r"(?<=\s)\S")
_SOLID = re.compile(r"\S")

EDGE_TOKENS = 64  # so many tokens before the end of a piece of text, they are those of the whole
_LAST_TWO = 1.5  # chunks' worth of tokens: what is shared between the last two


class Chunk(NamedTuple):
    """A half-open range of characters of a text."""

    start: int
    stop: int


class Excerpt(NamedTuple):
    """A part of a text whose tokens are known.

    Attributes:
        text: the whole of it.
        stop: where the part ends; it begins where the tokens do.
        token_starts: character at which each token begins, ascending, (n_tokens,).
    """

    text: str
    stop: int
    token_starts: IntArray

    @property
    def is_last(self) -> bool:
        """Whether the text ends here too."""
        return self.stop == len(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutter:
    """Cuts texts into chunks.

    Attributes:
        room: tokens of a chunk, without what the model puts around it.
        overlap: tokens of a chunk that the next begins with, at most; half of `room` or less.
    """

    room: int
    overlap: int

    @property
    def excerpt_tokens(self) -> int:
        """Tokens of an excerpt from which at least one chunk can be cut."""
        return 2 * self.room + EDGE_TOKENS

    def cut(self, excerpt: Excerpt, at: int) -> tuple[list[Chunk], int | None]:
        """Returns the chunks of an excerpt from `at` on, and where the next excerpt has to begin.

        Args:
            excerpt: of `excerpt_tokens` tokens or more after `at`, unless the text ends with it.
            at: the first character; not a space.

        Returns:
            At least one chunk, unless the excerpt is too small; None for the rest of the text if it
            is all cut.
        """
        chunks: list[Chunk] = []
        next_at: int | None = at
        while next_at is not None:
            at = next_at
            first = _token_at(excerpt.token_starts, at)
            n_left = len(excerpt.token_starts) - first
            if n_left < self.excerpt_tokens and not excerpt.is_last:
                return chunks, at
            if n_left <= self.room and excerpt.is_last:
                chunks.append(trimmed(excerpt.text, at, excerpt.stop))
                return chunks, None
            end = self._end(excerpt, at, first)
            chunks.append(trimmed(excerpt.text, at, end))
            next_at = self._next_start(excerpt, at, end)
        return chunks, None

    def _end(self, excerpt: Excerpt, at: int, first: int) -> int:
        """Returns where the chunk ends that begins at `at`, with token `first`."""
        starts, budget = excerpt.token_starts, self.room
        n_left = len(starts) - first
        if excerpt.is_last and n_left < _LAST_TWO * self.room:
            budget = min(self.room, -(-(n_left + self.overlap) // 2))
        most = int(starts[first + budget]) if first + budget < len(starts) else excerpt.stop
        most = max(most, at + 1)
        # More than the overlap, so that the next chunk begins after this one.
        least = int(starts[min(first + max(budget // 2, self.overlap), len(starts) - 1)])
        return last_end(excerpt.text, max(least, at), most)

    def _next_start(self, excerpt: Excerpt, at: int, end: int) -> int | None:
        """Returns where the chunk begins that follows the one from `at` to `end`."""
        following = next_solid(excerpt.text, end)
        if following is None or not self.overlap:
            return following
        token = int(np.searchsorted(excerpt.token_starts, end))
        start = _boundary(excerpt.token_starts, max(0, token - self.overlap), end)
        middle = _boundary(excerpt.token_starts, max(0, token - self.overlap // 2), end)
        word = _WORD_START.search(excerpt.text, start, middle)
        start = word.start() if word else next_solid(excerpt.text, start) or following
        return start if at < start < following else following


def middle_end(text: str, chunk: Chunk) -> int:
    """Returns where to cut a chunk in two: at an end in the middle half of it, if there is one."""
    quarter = (chunk.stop - chunk.start) // 4
    middle = (chunk.start + chunk.stop) // 2
    return last_end(text, chunk.start + quarter, max(middle, chunk.start + 1))


def last_end(text: str, least: int, most: int) -> int:
    """Returns the best place for an end in `least < end <= most`: `most` where nothing ends."""
    for pattern in _ENDS:
        # One character more, which decides whether something ends before it.
        ends = [match.end() for match in pattern.finditer(text, least, most + 1)]
        ends = [end for end in ends if least < end <= most]
        if ends:
            return ends[-1]
    return most


def next_solid(text: str, at: int) -> int | None:
    """Returns the first character from `at` on that is no space, None if there is none."""
    found = _SOLID.search(text, at)
    return found.start() if found else None


def trimmed(text: str, start: int, stop: int) -> Chunk:
    """Returns a range without the spaces at its end; one that begins with none."""
    return Chunk(start, start + len(text[start:stop].rstrip()))


def _boundary(starts: IntArray, token: int, end: int) -> int:
    """Returns the first character, `end` at most, that begins with this token or a later one."""
    if token and token < len(starts) and starts[token - 1] == starts[token]:  # one of its bytes
        token = int(np.searchsorted(starts, starts[token], side="right"))
    return min(int(starts[token]), end) if token < len(starts) else end


def _token_at(starts: IntArray, at: int) -> int:
    """Returns the first token of the character `at`: the one that begins there or goes on there."""
    token = int(np.searchsorted(starts, at))
    begins_there = token < len(starts) and starts[token] == at
    return token if begins_there else max(0, token - 1)
