"""Rows become tokens: once, with exactly the ids that the model's own `encode` would give it.

`FastTokenizer` calls the Rust tokenizer directly, so that a row is known to be too long before it
is cut, and keeps the tokens of a shard in one flat array. At load it is compared with the library's
own `preprocess`; a model for which they differ (chat templates, static embeddings, own code) goes
through `LibraryTokenizer`, which is slower and right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from chatspace.chunking.chunker import CHARS_PER_TOKEN
from chatspace.hf_embed.bucketing import Batch, IntArray, equal_lengths

TEXTS_PER_CALL = 256
CHARS_PER_CALL = 2**22  # the tokenizer needs about a hundred bytes for each
# A cut changes tokens only close to it; these lie between the cut and what is used.
MARGIN_TOKENS = 64

Features = dict[str, Any]
BoolArray = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int32]


class Tokens(Protocol):
    """The tokens of one shard.

    Attributes:
        lengths: tokens of each row as the model sees it, (n_rows,).
        truncated: rows that were longer than the limit, (n_rows,).
    """

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row."""
        ...

    @property
    def truncated(self) -> BoolArray:
        """Which rows were cut."""
        ...

    def features(self, batch: Batch) -> Features:
        """Returns what the model takes for the rows of a batch."""
        ...


class RowTokenizer(Protocol):
    """Tokenises the rows of a shard."""

    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> Tokens:
        """Returns the tokens of `texts`; calls `check` now and then, which may raise to end it."""
        ...

    def count(self, text: str) -> int:
        """Returns how many tokens a text has before truncation."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """How the model wants its batches.

    Attributes:
        side: `left` or `right`.
        pad_id: id of the padding token.
        type_ids: whether the model takes `token_type_ids`.
        takes_positions: whether the model can be given positions. Joined rows have them always;
            padded ones only on the left, where a row of a model with absolute positions would
            depend on its padding without them.
        first_position: position of a row's first token.
        extra: further features, the same for each batch.
    """

    side: str
    pad_id: int
    type_ids: bool
    takes_positions: bool
    first_position: int
    extra: Features


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTokens:
    """Tokens of a shard, end to end in one array.

    Attributes:
        ids: (n_tokens,) int32.
        starts: where each row begins, and the end of the last, (n_rows + 1,).
    """

    ids: Ids
    starts: IntArray
    lengths: IntArray
    truncated: BoolArray
    padding: Padding

    def features(self, batch: Batch) -> Features:
        """Returns `input_ids` and what else is wanted, padded or joined as the batch says."""
        if batch.width is None:
            return self._joined(batch.rows, batch.n_padded_tokens)
        return self._padded(batch.rows, batch.width)

    def row(self, index: int) -> Ids:
        """Returns the ids of one row, special tokens among them."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def _joined(self, rows: IntArray, n_tokens: int) -> Features:
        """Returns features of shape (1, n_tokens), and where each row begins.

        What the rows leave of `n_tokens` is filled with rows of one padding token each, at the end.

        The names of the boundaries are those of transformers' `DataCollatorWithFlattening`, which
        flash attention and sentence-transformers' pooling read.
        """
        pad, own = self.padding, self.lengths[rows]  # (n_rows,)
        n_fill = n_tokens - int(own.sum())
        lengths = np.concatenate((own, np.ones(n_fill, np.int64)))  # (n_rows + n_fill,)
        bounds = np.concatenate(([0], np.cumsum(lengths)))  # (n_rows + n_fill + 1,)
        position = np.arange(n_tokens) - np.repeat(bounds[:-1], lengths)  # (n_tokens,)
        ids = np.full(n_tokens, pad.pad_id, np.int64)
        real = slice(n_tokens - n_fill)
        ids[real] = self.ids[np.repeat(self.starts[rows], own) + position[real]]
        starts, longest = torch.from_numpy(bounds.astype(np.int32)), int(lengths.max())
        row = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)  # (n_tokens,)
        features: Features = {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(position + pad.first_position)[None],
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
            "seq_idx": torch.from_numpy(row)[None],  # else the pooling makes it, and waits for it
            "row_groups": equal_lengths(lengths),
        }
        if pad.type_ids:
            features["token_type_ids"] = torch.zeros((1, len(ids)), dtype=torch.int64)
        return features | pad.extra

    def _padded(self, rows: IntArray, width: int) -> Features:
        """Returns features of shape (n_rows, width)."""
        pad, lengths = self.padding, self.lengths[rows][:, None]  # (n_rows, 1)
        column = np.arange(width)[None, :]
        mask = column < lengths if pad.side == "right" else column >= width - lengths
        ids = np.full((len(rows), width), pad.pad_id, dtype=np.int64)
        if len(rows):
            pieces = [self.ids[self.starts[row] : self.starts[row + 1]] for row in rows]
            ids[mask] = np.concatenate(pieces)
        features: Features = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if pad.type_ids:
            features["token_type_ids"] = torch.zeros((len(rows), width), dtype=torch.int64)
        if pad.side == "left" and pad.takes_positions:
            positions = np.maximum(column - (width - lengths), 0) + pad.first_position
            features["position_ids"] = torch.from_numpy(positions)
        return features | pad.extra


class FastTokenizer:
    """A tokenizer of the Rust library `tokenizers`, called without the layers above it.

    Raises:
        ValueError: special tokens are not simply put before and after a text.
    """

    def __init__(self, tokenizer: Any, *, prompt: str, max_tokens: int, padding: Padding) -> None:
        self.takes_positions = padding.takes_positions
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._from_left = tokenizer.truncation_side == "left"
        self._prompt, self._padding = prompt, padding
        head, tail = self._special_tokens()
        self._head, self._tail = np.array(head, np.int32), np.array(tail, np.int32)
        self.n_special = len(head) + len(tail)
        self.room = max_tokens - self.n_special

    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> FlatTokens:
        """Returns the tokens of `texts`, each cut to the limit and framed by its special tokens."""
        self._reset()
        rows: list[Ids] = []
        truncated = np.zeros(len(texts), dtype=np.bool_)
        for some in self._groups(texts):
            check()
            for ids in self._encode(some):
                truncated[len(rows)] = len(ids) > self.room
                rows.append(self._frame(ids))
        return self.flat(rows, truncated)

    def flat(self, rows: Sequence[Ids], truncated: BoolArray) -> FlatTokens:
        """Returns rows of ids, special tokens among them, as the tokens of one shard."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return FlatTokens(
            ids=np.concatenate(rows) if rows else np.empty(0, np.int32),
            starts=np.concatenate(([0], np.cumsum(lengths))),
            lengths=lengths,
            truncated=truncated,
            padding=self._padding,
        )

    def cut_at_end(self) -> None:
        """Cuts rows at their end from now on, whatever side the tokenizer is set to.

        Whether a row is too long is then seen without all of its tokens.
        """
        self._from_left = False

    def token_starts(self, text: str) -> IntArray:
        """Returns the character at which each token of a text begins, without its frame.

        Some tokenizers reorder characters or make several of one; starts never decrease all the
        same.
        """
        self._reset()
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        starts = np.fromiter((start for start, _ in offsets), np.int64, count=len(offsets))
        return np.maximum.accumulate(starts)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self.count("") - self.n_special

    def count(self, text: str) -> int:
        """Returns how many tokens a text has before truncation, all counted."""
        self._reset()
        return self.n_special + len(self._encode_whole([self._prompt + text])[0])

    def made_up(self, lengths: IntArray) -> FlatTokens:
        """Returns rows of these lengths without meaning."""
        return FlatTokens(
            ids=np.full(lengths.sum(), self._padding.pad_id, dtype=np.int32),
            starts=np.concatenate(([0], np.cumsum(lengths))),
            lengths=lengths,
            truncated=np.zeros(len(lengths), dtype=np.bool_),
            padding=self._padding,
        )

    def _reset(self) -> None:
        # The backend is shared with the library, which switches both on for calls of its own.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = self._tokenizer.split_special_tokens

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """Returns the ids that are put before and after every text."""
        self._reset()
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        for n_head in range(len(full) - len(bare) + 1):
            if full[n_head : n_head + len(bare)] == bare:
                return full[:n_head], full[n_head + len(bare) :]
        raise ValueError("special tokens do not frame the text")

    def _frame(self, ids: Sequence[int]) -> Ids:
        if len(ids) > self.room:
            ids = ids[-self.room :] if self._from_left else ids[: self.room]
        return np.concatenate((self._head, np.array(ids, dtype=np.int32), self._tail))

    def _groups(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Yields prompt and text of so many rows at a time that their tokens fit into memory."""
        group: list[str] = []
        n_chars = 0
        for text in texts:
            group.append(self._prompt + text)
            n_chars += min(len(text), 2 * self._enough_chars)
            if len(group) >= TEXTS_PER_CALL or n_chars >= CHARS_PER_CALL:
                yield group
                group, n_chars = [], 0
        if group:
            yield group

    @property
    def _enough_chars(self) -> int:
        return CHARS_PER_TOKEN * (self.room + MARGIN_TOKENS)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text; of a long one the first, more than there is room for."""
        n_chars = self._enough_chars
        if self._from_left:
            return self._encode_whole(texts)
        rows = self._encode_whole(
            [_prefix(text, n_chars) if len(text) > 2 * n_chars else text for text in texts]
        )
        for index, text in enumerate(texts):
            taken = n_chars
            while len(text) > 2 * taken and len(rows[index]) < self.room + MARGIN_TOKENS:
                taken *= 4
                piece = _prefix(text, taken) if len(text) > 2 * taken else text
                rows[index] = self._encode_whole([piece])[0]
        return rows

    def _encode_whole(self, texts: list[str]) -> list[list[int]]:
        batch = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]


class LibraryTokenizer:
    """The library's own tokenising, for models that need more than ids and a mask.

    The loader counts tokens without truncation while workers make batches with it, and both are
    settings of the one tokenizer that they share: so one call at a time.
    """

    def __init__(self, model: Any, *, prompt: str) -> None:
        self._model, self._prompt = model, prompt
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> Tokens:
        """Returns the lengths of `texts`; the tokens themselves are made batch by batch."""
        lengths = np.zeros(len(texts), dtype=np.int64)
        truncated = np.zeros(len(texts), dtype=np.bool_)
        limit = self._model.max_seq_length or float("inf")
        for index, text in enumerate(texts):
            check()
            lengths[index] = n_tokens(self.preprocess([text]))
            truncated[index] = lengths[index] >= limit and self.count(text) > lengths[index]
        return LibraryTokens(lengths=lengths, truncated=truncated, tokenizer=self, texts=texts)

    def count(self, text: str) -> int:
        """Returns how many tokens a text has before truncation."""
        return n_tokens(self.preprocess([text], processing_kwargs={"text": {"truncation": False}}))

    def preprocess(self, texts: list[str], **options: Any) -> Features:
        """Returns what the model's forward takes for `texts`, padded to the longest of them."""
        prompt = self._prompt or None
        with self._lock:
            features: Features = self._model.preprocess(texts, prompt=prompt, **options)
        return features


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryTokens:
    """Lengths of the rows of a shard; features come from the library."""

    lengths: IntArray
    truncated: BoolArray
    tokenizer: LibraryTokenizer
    texts: Sequence[str]

    def features(self, batch: Batch) -> Features:
        """Returns the library's features; it pads as it likes, whatever the batch says."""
        return self.tokenizer.preprocess([self.texts[row] for row in batch.rows])


def n_tokens(features: Features) -> int:
    """Returns the real tokens in features made by the library."""
    mask = features.get("attention_mask")
    return int(features["input_ids"].numel() if mask is None else mask.sum())


def _prefix(text: str, n_chars: int) -> str:
    """Returns about the first `n_chars` characters, cut between words if there are words."""
    end = text.rfind(" ", 0, n_chars)
    return text[: end if end > 0 else n_chars]
