"""tiktoken's files: where they lie, and how one is brought there before tasks need it.

tiktoken fetches a file that it misses, without a limit in time. A node without internet would wait
for that, so a file is looked for here first, and tiktoken is asked only where it is whole.
"""

from __future__ import annotations

import hashlib
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.atomic import atomic_path
from chatspace.errors import OutputError
from chatspace.layout import Layout

ANSWER_S = 5.0  # until the first byte: offline, nobody waits longer
WHOLE_S = 60.0  # for 4 MB
_SILENCE_S = 5.0
_BLOCK_BYTES = 1 << 16
_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")

Report = Callable[[str, int, int], None]


class NotFetchedError(Exception):
    """A file of tiktoken could not be fetched; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingFile:
    """One file of an encoding, as tiktoken asks for it."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its name in a cache of tiktoken: the SHA-1 of its address."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


Files = Mapping[str, Sequence[EncodingFile]]


def _bpe(name: str, sha256: str) -> tuple[EncodingFile, ...]:
    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    return (EncodingFile(url=url, sha256=sha256),)


_P50K = _bpe("p50k_base", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069")
_O200K = _bpe("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d")
_GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# Source: tiktoken 0.14, tiktoken_ext/openai_public.py; a test compares the two.
FILES: Files = {
    "cl100k_base": _bpe(
        "cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
    ),
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
    "p50k_base": _P50K,
    "p50k_edit": _P50K,
    "r50k_base": _bpe(
        "r50k_base", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    ),
    "gpt2": (
        EncodingFile(
            url=f"{_GPT2}vocab.bpe",
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        ),
        EncodingFile(
            url=f"{_GPT2}encoder.json",
            sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        ),
    ),
}


def workspace_folder(workspace: Path) -> Path:
    """Returns the folder below a workspace in which tasks look for encodings."""
    return Layout(workspace).cache() / "tiktoken"


def folder_of(files: Sequence[EncodingFile], places: Sequence[Path]) -> Path | None:
    """Returns the first folder that has all files of an encoding, whole; None if none has."""
    return next((place for place in places if all(_is_whole(place, f) for f in files)), None)


def usual_folder() -> Path:
    """Returns the folder in which tiktoken itself keeps its files here."""
    named = next(filter(None, map(os.environ.get, _VARIABLES)), None)
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Has tiktoken take its files from a folder, for as long as this lasts.

    Not covered: other threads that load encodings at the same time.
    """
    before = os.environ.get(_VARIABLES[0])
    os.environ[_VARIABLES[0]] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLES[0]]
        else:
            os.environ[_VARIABLES[0]] = before


def fetch(
    encoding: str,
    folder: Path,
    *,
    files: Files = FILES,
    report: Report = lambda *_: None,
    answer_s: float = ANSWER_S,
) -> None:
    """Brings what an encoding is missing into a folder, whole or not at all.

    Memory: one file, 4 MB at most.

    Args:
        encoding: a key of `files`.
        folder: of a cache of tiktoken; made where it is missing.
        files: what encodings consist of.
        report: told of each file that was fetched, with its bytes.
        answer_s: how long the first byte is waited for.

    Raises:
        NotFetchedError: nobody answers in time, or with something else, or the folder cannot be
            written.
    """
    for file in files[encoding]:
        if _is_whole(folder, file):
            continue
        content = _download(file, answer_s)
        keep(folder / file.name, content)
        report(f"fetching tiktoken's {encoding}", len(content), len(content))


def keep(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
        NotFetchedError: the folder cannot be written.
    """
    try:
        with atomic_path(path) as temp:
            temp.write_bytes(content)
    except OutputError as error:
        raise NotFetchedError(str(error).rstrip(".")) from None


def _is_whole(folder: Path, file: EncodingFile) -> bool:
    """Returns whether a file is there; tiktoken would fetch one with another content again."""
    try:
        content = (folder / file.name).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest() == file.sha256


def _download(file: EncodingFile, answer_s: float) -> bytes:
    import requests  # as tiktoken does, with its proxies and certificates

    host = file.url.split("/")[2]
    end_s = time.monotonic() + WHOLE_S
    try:
        with _opened(file.url, answer_s) as response:
            if not response.ok:
                raise NotFetchedError(f"{host} answers {response.status_code}")
            blocks = []
            for block in response.iter_content(_BLOCK_BYTES):
                blocks.append(block)
                if time.monotonic() > end_s:
                    raise NotFetchedError(f"{host} is too slow: not done in {WHOLE_S:g} s")
    except requests.RequestException as error:
        raise NotFetchedError(f"{host} cannot be reached: {type(error).__name__}") from None
    content = b"".join(blocks)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise NotFetchedError(f"what {host} sends is not the file")
    return content


def _opened(url: str, answer_s: float) -> Any:
    """Returns the response to a request, its body not read yet.

    In a thread of its own: how long a name is looked up cannot be limited in another way.

    Raises:
        NotFetchedError: there is none within `answer_s`.
        requests.RequestException: there will be none.
    """
    import requests

    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, stream=True, timeout=(answer_s, _SILENCE_S)))
        except Exception as error:  # told to whoever waits
            answers.put(error)

    threading.Thread(target=ask, name="tiktoken-file", daemon=True).start()
    try:
        answer = answers.get(timeout=answer_s)
    except queue.Empty:
        host = url.split("/")[2]
        raise NotFetchedError(f"{host} does not answer within {answer_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
