"""Rows cut into chunks with the model's own tokenizer; the encoder takes the tokens that this made.

The prompt stands before each chunk, and both have to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chatspace.chunking.chunker import ChunkedRows, Chunker, Rows, make_cutter
from chatspace.errors import ModelError
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.spec import ModelSection
from chatspace.hf_embed.tokens import FastTokenizer, FlatTokens, Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunker:
    """Cuts rows, and keeps the tokens of their chunks: four bytes each.

    Attributes:
        tokenizer: that of the model.
        chunker: cuts with it.
    """

    tokenizer: FastTokenizer
    chunker: Chunker[Ids]

    def split(
        self, rows: Rows, *, check: Callable[[], None] = lambda: None
    ) -> tuple[ChunkedRows, FlatTokens]:
        """Returns the chunks of a shard's rows and their tokens.

        Args:
            rows: in input order.
            check: called now and then; may raise to end it.

        Raises:
            InputError: the rows' metadata, repeated with each chunk, is too large for a table.
        """
        split = self.chunker.split(rows, check=check)
        return split.rows, self.tokenizer.flat(split.kept, split.truncated)


def make_chunker(section: ModelSection, encoder: Encoder) -> TokenChunker:
    """Returns what cuts the rows of a run as its spec says.

    Raises:
        ModelError: the tokenizer does not say where its tokens begin, nothing limits a chunk, or
            the overlap is more than half of what a chunk holds.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, FastTokenizer):
        raise ModelError(
            f"Cannot cut rows into chunks: model.name={section.name}; its tokenizer does not say "
            f"where in a text its tokens begin. Set model.long_text: truncate or error."
        )
    if encoder.max_tokens is None:
        raise ModelError(
            f"No limit for chunks: model.name={section.name}; it takes rows of any length. "
            f"Set model.chunk_tokens."
        )
    room = tokenizer.room - tokenizer.n_prompt
    overlap = section.overlap_tokens or 0
    if 2 * overlap > room:
        raise ModelError(
            f"Overlap too large: model.overlap_tokens={overlap}; of {encoder.max_tokens} tokens "
            f"{room} are text, so at most {room // 2}. Lower it, or raise model.chunk_tokens."
        )
    tokenizer.cut_at_end()
    return TokenChunker(
        tokenizer=tokenizer,
        chunker=Chunker(tokenizer=tokenizer, cutter=make_cutter(room, overlap)),
    )
