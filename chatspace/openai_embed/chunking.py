"""Rows cut into chunks by the count of tokens that the run has: tiktoken's, or an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatspace.chunking.chunker import Chunker, make_cutter
from chatspace.chunking.cutting import IntArray
from chatspace.errors import ModelError
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import Counts, TokenCounter


@dataclass(frozen=True, slots=True)
class _Counted:
    """How many tokens some texts have."""

    counts: Counts  # (n_texts,)
    limit: int

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        return self.counts > self.limit

    def row(self, index: int) -> int:
        return int(self.counts[index])


@dataclass(frozen=True, slots=True)
class _Limited:
    """Counts tokens as a run does; texts above the limit are too long."""

    counter: TokenCounter
    limit: int

    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> _Counted:
        check()
        return _Counted(self.counter.count(texts), self.limit)

    def token_starts(self, text: str) -> IntArray:
        return self.counter.token_starts(text)


def make_chunker(model: ModelSection, counter: TokenCounter) -> Chunker[int] | None:
    """Returns what cuts the rows of a run, None where they are not cut into chunks.

    Raises:
        ModelError: tokens are estimated, and nobody says how many a chunk may have.
    """
    if not model.is_chunked:
        return None
    if not counter.is_exact and model.chunk_tokens is None:
        raise ModelError(
            f"No limit for chunks: model.long_text=chunk; tokens are {counter.method}. "
            "Set model.chunk_tokens, well below what the model takes."
        )
    limit = model.limit_tokens
    return Chunker(
        tokenizer=_Limited(counter, limit),
        cutter=make_cutter(limit, model.overlap_tokens or 0),
    )
