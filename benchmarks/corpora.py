"""Real English text of known lengths, made out of the documentation that comes with any Python.

The text is the language reference (the topics of `help()`) and docstrings of the standard library,
read and never imported. The same Python and the same arguments give the same rows.
"""

from __future__ import annotations

import ast
import math
import random
import statistics
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Count = Callable[[str], int]
"""Tokens of a text before it is cut, special tokens counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How long rows are: lognormal, so that most are short and a few are very long.

    Attributes:
        median: tokens, special tokens counted.
        sigma: standard deviation of the logarithm; one row in twenty has more than
            `median * exp(1.64 * sigma)` tokens.
    """

    median: float
    sigma: float


SHAPES = {
    "chat-like": Shape(median=25, sigma=1.0),
    "passages": Shape(median=80, sigma=0.8),
    "long": Shape(median=350, sigma=0.5),
}
LIMIT = 512
"""Tokens of a row after it is cut, as the model has positions for."""
LONGEST = 2048
"""Tokens of the longest row before it is cut."""

_MODULES = (
    *("argparse", "ast", "bdb", "calendar", "cmd", "configparser", "csv", "datetime", "decimal"),
    *("difflib", "doctest", "fractions", "ftplib", "functools", "heapq", "imaplib", "inspect"),
    *("ipaddress", "locale", "mailbox", "optparse", "pathlib", "pickle", "pickletools", "platform"),
    *("random", "shutil", "smtplib", "ssl", "statistics", "string", "subprocess", "tarfile"),
    *("tempfile", "textwrap", "threading", "turtle", "typing", "unittest/case", "unittest/mock"),
    *("urllib/request", "urllib/parse", "uuid", "zipfile", "http/client", "http/cookiejar"),
    *("email/message", "logging/__init__", "logging/handlers", "asyncio/streams"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What a corpus measures, in tokens.

    Attributes:
        total: after rows are cut, special tokens counted: the real tokens of the tables.
        n_cut: rows longer than the limit.
    """

    n_rows: int
    shortest: int
    median: float
    longest: int
    total: int
    n_cut: int

    def __str__(self) -> str:
        return (
            f"{self.n_rows:,} rows of {self.shortest} to {self.longest:,} tokens, "
            f"median {self.median:.0f}, {self.n_cut:,} cut; {self.total:,} real tokens"
        )


def corpus(name: str, *, n_tokens: int, count: Count, seed: int = 0) -> list[str]:
    """Returns rows whose real tokens add up to about `n_tokens`, in mixed order of length.

    Args:
        name: a key of `SHAPES`.
        n_tokens: real tokens wanted; the rows are as many as this takes, at least four.
        count: the model's tokenizer.
        seed: another one gives other rows of the same lengths.
    """
    rng = random.Random(f"{name} {seed}")
    n_rows = max(4, round(n_tokens / _mean(SHAPES[name])))
    targets = _quantiles(SHAPES[name], n_rows)
    rng.shuffle(targets)
    measure = _Measure(count)
    words = _words(rng)
    return [_take(words, target, measure) for target in targets]


def exact(lengths: Sequence[int], *, count: Count, seed: str) -> list[str]:
    """Returns a row of each of these lengths in tokens, special tokens counted; at least one word.

    Not covered: tokenizers that join what a space parts, for which the words of a row have other
    tokens than each of them alone.
    """
    measure = _Measure(count)
    words = _words(random.Random(seed))
    return [_fill(words, max(1, length - measure.n_special), measure) for length in lengths]


def measure(texts: list[str], count: Count, *, limit: int = LIMIT) -> Lengths:
    """Returns how long rows really are by the model's tokenizer."""
    whole = [count(text) for text in texts]
    return Lengths(
        n_rows=len(texts),
        shortest=min(whole),
        median=statistics.median(whole),
        longest=max(whole),
        total=sum(min(length, limit) for length in whole),
        n_cut=sum(length > limit for length in whole),
    )


def _quantiles(shape: Shape, n_rows: int) -> list[float]:
    """Returns lengths that follow the shape exactly, so that a small corpus has its median too."""
    normal = statistics.NormalDist(math.log(shape.median), shape.sigma)
    return [min(LONGEST, math.exp(normal.inv_cdf((i + 0.5) / n_rows))) for i in range(n_rows)]


def _mean(shape: Shape) -> float:
    return statistics.fmean(min(LIMIT, length) for length in _quantiles(shape, 1000))


class _Measure:
    """Counts the tokens of single words, each once; their sum is close enough to aim with."""

    def __init__(self, count: Count) -> None:
        self._count, self.n_special = count, count("")
        self._known: dict[str, int] = {}

    def __call__(self, word: str) -> int:
        if word not in self._known:
            self._known[word] = self._count(word) - self.n_special
        return self._known[word]


def _take(words: Iterator[str], target: float, measure: _Measure) -> str:
    """Returns the next words, at least one, until the row has about `target` tokens."""
    taken = [next(words)]
    n_tokens = measure.n_special + measure(taken[0])
    while n_tokens < target - 0.5:
        taken.append(next(words))
        n_tokens += measure(taken[-1])
    return " ".join(taken)


def _fill(words: Iterator[str], n_tokens: int, measure: _Measure) -> str:
    """Returns the next words that fit until the row is full; many words are one token."""
    taken = []
    while n_tokens > 0:
        word = next(words)
        if measure(word) <= n_tokens:
            taken.append(word)
            n_tokens -= measure(word)
    return " ".join(taken)


def _words(rng: random.Random) -> Iterator[str]:
    """Yields the words of all paragraphs without end, each time round in another order."""
    shuffled = list(paragraphs())
    while True:
        rng.shuffle(shuffled)
        for paragraph in shuffled:
            yield from paragraph.split()


@lru_cache(maxsize=1)
def paragraphs() -> tuple[str, ...]:
    """Returns paragraphs of prose, none twice; code and tables are left out.

    Raises:
        FileNotFoundError: this Python comes without its sources.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = [stdlib / "pydoc_data" / "topics.py"]
    sources += [path for name in _MODULES if (path := stdlib / f"{name}.py").is_file()]
    found: dict[str, None] = {}
    for source in sources:
        for text in _documents(source):
            found.update(dict.fromkeys(filter(_is_prose, text.split("\n\n"))))
    return tuple(found)


def _documents(path: Path) -> Iterator[str]:
    """Yields the docstrings of a source file, and the topics of `help()` where it holds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Dict) and path.name == "topics.py":
            yield from ast.literal_eval(node).values()


def _is_prose(paragraph: str) -> bool:
    n_letters = sum(char.isalpha() or char.isspace() for char in paragraph)
    return len(paragraph.split()) >= 8 and n_letters >= 0.88 * len(paragraph)
