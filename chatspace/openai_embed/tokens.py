"""How many tokens a row has: counted by tiktoken where its file is here, else estimated."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chatspace.errors import SpecError
from chatspace.openai_embed.catalogue import KNOWN
from chatspace.openai_embed.spec import ModelSection

Counts = npt.NDArray[np.int64]

# About what English text has in cl100k_base; other languages and code have fewer bytes a token.
# Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
BYTES_PER_TOKEN = 4
# What tiktoken loads its encodings from; it keeps them under the SHA-1 of the address.
_FILES = {
    name: f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    for name in ("cl100k_base", "o200k_base", "p50k_base", "r50k_base")
}


class TokenCounter(Protocol):
    """Counts the tokens of texts.

    Attributes:
        method: how, in words for a person.
        is_exact: whether the endpoint would count the same.
    """

    method: str
    is_exact: bool

    def count(self, texts: Sequence[str]) -> Counts:
        """Returns the tokens of each text, (n_texts,)."""
        ...

    def cut(self, text: str, limit: int) -> str:
        """Returns the longest beginning of a text that has at most `limit` tokens."""
        ...


class TiktokenCounter:
    """Counts as OpenAI's models do; special tokens in a text are taken as plain text."""

    is_exact = True

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.method = f"counted with tiktoken, encoding {encoding.name}"

    def count(self, texts: Sequence[str]) -> Counts:
        """Returns the tokens of each text, (n_texts,)."""
        # In one thread: a task may have few, and reading and requests overlap with this anyway.
        encode = self._encoding.encode_ordinary
        return np.array([len(encode(text)) for text in texts], np.int64)

    def cut(self, text: str, limit: int) -> str:
        """Returns the longest beginning of a text that has at most `limit` tokens."""
        n_kept = limit
        while n_kept > 0:
            tokens = self._encoding.encode_ordinary(text)[:n_kept]
            # A token may end inside a character, and what is left may be split in another way.
            kept = self._encoding.decode_bytes(tokens).decode("utf-8", errors="ignore")
            if len(self._encoding.encode_ordinary(kept)) <= limit:
                return str(kept)
            n_kept -= 1
        return ""


class EstimatedCounter:
    """Guesses from the size of the text in UTF-8; rows are cut only where the endpoint says so."""

    is_exact = False

    def __init__(self, why: str) -> None:
        self.method = f"estimated as UTF-8 bytes / {BYTES_PER_TOKEN} ({why})"

    def count(self, texts: Sequence[str]) -> Counts:
        """Returns about the tokens of each text, (n_texts,)."""
        sizes = np.array([len(text.encode()) for text in texts], np.int64)
        return np.maximum(1, -(-sizes // BYTES_PER_TOKEN))

    def cut(self, text: str, limit: int) -> str:
        """Returns the beginning of a text of about `limit` tokens."""
        return text.encode()[: limit * BYTES_PER_TOKEN].decode("utf-8", errors="ignore")


def make_counter(model: ModelSection, name: str) -> TokenCounter:
    """Returns tiktoken's count where its encoding is on this machine, else an estimate.

    Nothing is downloaded: tiktoken's own cache is looked into (`$TIKTOKEN_CACHE_DIR`).

    Args:
        model: what the spec says of the model.
        name: the model, as the endpoint calls it.

    Raises:
        SpecError: the spec names an encoding that tiktoken does not have.
    """
    if importlib.util.find_spec("tiktoken") is None:
        return EstimatedCounter("tiktoken is not installed: pip install 'chatspace[openai]'")
    encoding = model.encoding or encoding_name(name)
    if encoding is None:
        return EstimatedCounter(f"tiktoken does not know {name}; model.encoding may name one")
    import tiktoken

    if encoding not in tiktoken.list_encoding_names():
        raise SpecError(
            f"Unknown encoding: model.encoding={encoding}; known: "
            f"{', '.join(sorted(tiktoken.list_encoding_names()))}. Choose one or leave it out."
        )
    if encoding in _FILES and not _cached(encoding).is_file():
        return EstimatedCounter(
            f"tiktoken's file of {encoding} is not in {_cached(encoding).parent}"
        )
    try:
        return TiktokenCounter(tiktoken.get_encoding(encoding))
    except Exception as error:  # whatever a damaged file or an encoding of others raises
        return EstimatedCounter(f"tiktoken cannot load {encoding}: {type(error).__name__}")


def encoding_name(name: str) -> str | None:
    """Returns the encoding of a model, None where it is not known."""
    return KNOWN[name].encoding if name in KNOWN else None


def _cached(encoding: str) -> Path:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    place = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    return place / hashlib.sha1(_FILES[encoding].encode(), usedforsecurity=False).hexdigest()
