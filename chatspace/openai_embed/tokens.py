"""How many tokens a row has: counted by tiktoken where its file is at hand, else estimated."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chatspace.atomic import atomic_write_text, create_text, read_json_object
from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.layout import RunLayout
from chatspace.openai_embed.catalogue import KNOWN
from chatspace.openai_embed.encodings import (
    FILES,
    Files,
    NotFetchedError,
    fetch,
    folder_of,
    kept_in,
    usual_folder,
    workspace_folder,
)
from chatspace.openai_embed.spec import ModelSection

Counts = npt.NDArray[np.int64]

# About what English text has in cl100k_base.
# Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
BYTES_PER_TOKEN = 4
# What cl100k_base counts is so many times the estimate. Measured: Python's source code 0.8, its
# documentation 0.9; first article of the Universal Declaration of Human Rights in German 1.05,
# Russian 1.1, Hindi 1.4, Chinese and Korean 1.7; numbers of five digits 2.0.
LEAST_OF_ESTIMATE, MOST_OF_ESTIMATE = 0.8, 2.0


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

    def token_starts(self, text: str) -> Counts:
        """Returns the character at which each token of a text begins, ascending, (n_tokens,).

        Of a token that begins inside a character, that is this character.
        """
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

    def token_starts(self, text: str) -> Counts:
        """Returns the character at which each token of a text begins, (n_tokens,)."""
        tokens = self._encoding.encode_ordinary(text)
        sizes = [len(token) for token in self._encoding.decode_tokens_bytes(tokens)]
        first_bytes = np.cumsum([0, *sizes[:-1]])[: len(sizes)]  # (n_tokens,)
        starts: Counts = _characters(text)[first_bytes]
        return starts


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

    def token_starts(self, text: str) -> Counts:
        """Returns the character of every fourth byte, (n_tokens,)."""
        return _characters(text)[::BYTES_PER_TOKEN]


def _characters(text: str) -> Counts:
    """Returns the character that each byte of a text in UTF-8 is of, (n_bytes,)."""
    raw = np.frombuffer(text.encode(), np.uint8)
    return np.cumsum((raw & 0xC0) != 0x80) - 1


def make_counter(
    model: ModelSection,
    name: str,
    workspace: Path,
    *,
    may_fetch: bool = False,
    files: Files = FILES,
) -> TokenCounter:
    """Returns tiktoken's count where its encoding is at hand, else an estimate.

    Its files are looked for in tiktoken's own cache (`$TIKTOKEN_CACHE_DIR`) and in the workspace.
    An encoding that is none of tiktoken's own is loaded as whoever made it has it.

    Args:
        model: what the spec says of the model.
        name: the model, as the endpoint calls it.
        workspace: of the run.
        may_fetch: whether a file that is missing is fetched into the workspace; never in a task.
        files: what encodings consist of.

    Raises:
        SpecError: the spec names an encoding that tiktoken does not have.
    """
    if importlib.util.find_spec("tiktoken") is None:
        return EstimatedCounter("tiktoken is not installed: pip install 'chatspace[openai]'")
    encoding = encoding_of(model, name)
    if encoding is None:
        return EstimatedCounter(f"tiktoken does not know {name}; model.encoding may name one")
    folder = usual_folder()
    if encoding in files:
        places, why_not = [folder, workspace_folder(workspace)], ""
        found = folder_of(files[encoding], places)
        if found is None and may_fetch:
            try:
                fetch(encoding, places[1], files=files)
                found = places[1]
            except NotFetchedError as error:
                why_not = f": {error}"
        if found is None:
            where = f"neither in {places[0]} nor in {places[1]}"
            return EstimatedCounter(f"tiktoken's file of {encoding} is {where}{why_not}")
        folder = found
    import tiktoken

    try:
        with kept_in(folder):
            return TiktokenCounter(tiktoken.get_encoding(encoding))
    except Exception as error:  # whatever a damaged file or an encoding of others raises
        return EstimatedCounter(f"tiktoken cannot load {encoding}: {type(error).__name__}")


def as_the_run_began(counter: TokenCounter, run: RunLayout) -> TokenCounter:
    """Returns the counter that the run began with: it decides where rows that are too long are cut.

    Args:
        counter: what this task would count with.
        run: the first of its tasks notes how it counts.

    Raises:
        UnfitEnvironmentError: the run began with an exact count, which is not to be had here.
    """
    note = json.dumps({"is_exact": counter.is_exact, "method": counter.method}) + "\n"
    if create_text(run.token_count, note):
        return counter
    noted = read_json_object(run.token_count)
    if not isinstance(noted.get("is_exact"), bool):  # damaged
        atomic_write_text(run.token_count, note)
        return counter
    if noted["is_exact"] and not counter.is_exact:
        raise UnfitEnvironmentError(
            f"Tokens cannot be counted: the run began with those {noted['method']}; here they are "
            f"{counter.method}. Run `chatspace stage` on its spec, where there is internet."
        )
    if counter.is_exact and not noted["is_exact"]:
        return EstimatedCounter("as the run began")
    return counter


def encoding_of(model: ModelSection, name: str) -> str | None:
    """Returns the encoding of a model, None where it is not known.

    Raises:
        SpecError: the spec names one that tiktoken does not have.
    """
    encoding = model.encoding or (KNOWN[name].encoding if name in KNOWN else None)
    if encoding is None:
        return None
    import tiktoken

    if encoding not in tiktoken.list_encoding_names():
        raise SpecError(
            f"Unknown encoding: model.encoding={encoding}; known: "
            f"{', '.join(sorted(tiktoken.list_encoding_names()))}. Choose one or leave it out."
        )
    return encoding
