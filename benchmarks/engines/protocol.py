"""The worker's side of a benchmark: one engine in one process, driven line by line.

A worker is started with one JSON argument, loads its model, and says `{"versions": ...}`. Then it
answers each line on its standard input with one line of JSON on its standard output:

    go CORPUS          one timed pass over a JSON list of texts -> {"seconds": s}
    save CORPUS FILE   one untimed pass; the vectors are saved as float32 .npy -> {"rows": n}

What libraries print goes to standard error. This file needs only numpy, because it runs in the
environments of all engines.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Embed = Callable[[list[str]], Any]
"""From texts to vectors scaled to length one, float32, (n_rows, dim), in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one engine is to do.

    Attributes:
        model: folder in sentence-transformers format.
        dtype: of weights and activations: `float32`, `bfloat16` or `int8`.
        batch: rows in one batch, where the engine is asked for that.
        threads: of the whole process.
        options: what only this engine knows.
    """

    model: str
    dtype: str
    batch: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


def serve(load: Callable[[Job], Embed], *packages: str) -> None:
    """Loads an engine and answers requests until standard input ends.

    Args:
        load: returns the engine, ready.
        packages: distributions whose versions are reported.
    """
    answers = _take_stdout()
    job = Job(**json.loads(sys.argv[1]))
    if hasattr(os, "sched_setaffinity"):  # where an engine has no setting of its own
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    embed = load(job)
    versions = {name: metadata.version(name) for name in packages}
    _answer(answers, {"versions": versions})
    corpora: dict[str, list[str]] = {}
    for line in sys.stdin:
        request: list[str] = json.loads(line)
        corpus = request[1]
        if corpus not in corpora:
            corpora[corpus] = json.loads(Path(corpus).read_text(encoding="utf-8"))
        if request[0] == "save":
            _answer(answers, {"rows": _save(embed(corpora[corpus]), Path(request[2]))})
        else:
            _answer(answers, {"seconds": _seconds(embed, corpora[corpus])})
    answers.close()
    os._exit(0)  # some engines leave threads behind that would keep the process alive


def _take_stdout() -> TextIO:
    """Returns standard output for answers alone; what else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    print(json.dumps(value), file=answers, flush=True)


def _seconds(embed: Embed, texts: list[str]) -> float:
    start = time.perf_counter()
    vectors = embed(texts)
    elapsed_s = time.perf_counter() - start
    if len(vectors) != len(texts):
        raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
    return elapsed_s


def _save(vectors: Any, path: Path) -> int:
    array = np.asarray(vectors, dtype=np.float32)
    np.save(path, array)
    return len(array)
