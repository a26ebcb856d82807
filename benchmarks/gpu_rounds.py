"""The rounds of `encode_gpu.py`: engines of one model take turns, and one that fails is a row."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
import torch
from gpu_engines import (
    Array,
    Candidate,
    Engine,
    Place,
    Run,
    candidates,
    load_library,
    why_not,
)
from gpu_load import GpuLoad
from models import Corpus
from report import least_cosine

ROUNDS, LEAST_ROUNDS = 3, 2
LEAST_S = 3.0
"""Of repeated passes for each figure on a GPU: what says how busy it is looks back for a second."""
TINY_TOKENS = 1000
TOKENS = {"minilm": 1_200_000, "bert-base": 600_000, "qwen3-0.6b": 262_144}
RECORDED = "minilm"  # small enough that starting its kernels counts
ALL = "all"
TOO_LATE = "not run: it would end after --minutes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is given.

    Attributes:
        until: `perf_counter` when it should end.
        peak: measured operations per second of a bfloat16 matrix product.
        load: sampler of the GPU, None where there is none.
        compiles: measure compiled engines.
        least_s: seconds of repeated passes for each figure.
    """

    device: str
    tiny: bool
    folder: Path
    until: float
    peak: float
    load: GpuLoad | None
    compiles: bool
    least_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, its texts, and what their vectors should be.

    Attributes:
        expected: float32 vectors of each corpus's sample, (n_sample, dim).
    """

    name: str
    sizes: models.Sizes
    path: Path
    corpora: list[Corpus]
    expected: dict[str, Array]


@dataclass(slots=True, kw_only=True)
class Entry:
    """An engine of one model.

    Attributes:
        engine: None if it cannot run; `failure` says why.
        ready_s: seconds that loading and warming up took.
    """

    candidate: Candidate
    engine: Engine | None = None
    ready_s: float = 0.0
    failure: str = ""


@dataclass(slots=True, kw_only=True)
class Cell:
    """What was measured of one engine on one corpus.

    Attributes:
        texts_s: seconds from texts to vectors, one entry a round.
        tokens_s: seconds of the model alone.
        busy: share of `texts_s` that the GPU was busy, 0 to 1.
        cosine: the smallest to float32.
        failure: why the rest says nothing.
    """

    model: str
    corpus: str
    engine: str
    n_tokens: int = 0
    flops: float = 0.0
    texts_s: list[float] = field(default_factory=list)
    tokens_s: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    cosine: float = math.nan
    ready_s: float | None = None
    note: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an engine does in each round.

    Attributes:
        texts: texts in, vectors out.
        tokens: the model over batches that were made before.
    """

    cell: Cell
    texts: Run
    tokens: Run


def measure_all(names: Sequence[str], setting: Setting) -> list[Cell]:
    """Returns all cells; a model that cannot be built is one."""
    cells: list[Cell] = []
    compile_s = 0.0  # a layer, of the model before
    for name in names:
        whole = Cell(model=name, corpus=ALL, engine=ALL)
        with failure_noted(whole):
            _free()
            given = subject(name, setting)
            entries = load_engines(given, setting, compile_s * given.sizes.layers)
            for corpus in given.corpora:
                cells += measure_block(given, corpus, entries, setting)
            taken = [entry.ready_s for entry in entries if entry.candidate.compiles]
            compile_s = max([compile_s, *(s / given.sizes.layers for s in taken)])
            del entries, given  # else they are on the GPU beside the next ones
        cells += [whole] if whole.failure else []
    return cells


@contextmanager
def failure_noted(cell: Cell | Entry) -> Iterator[None]:
    """Notes what ends the work inside, so that the others go on."""
    try:
        yield
    except Exception as error:
        cell.failure = why_not(error)


def subject(name: str, setting: Setting) -> Subject:
    """Builds a model and embeds its samples in float32."""
    sizes = models.tiny(models.MODELS[name]) if setting.tiny else models.MODELS[name]
    path = models.build(sizes, setting.folder / name, device=setting.device)
    given = models.corpora(path, TINY_TOKENS if setting.tiny else TOKENS[name])
    expected = reference(path, setting.device, given)
    return Subject(name=name, sizes=sizes, path=path, corpora=given, expected=expected)


def reference(path: Path, device: str, corpora_: Sequence[Corpus]) -> dict[str, Array]:
    """Returns float32 vectors of each corpus's sample, embedded one at a time."""
    model = load_library(path, device, dtype=torch.float32, attn_implementation="sdpa")
    found = {}
    for corpus in corpora_:
        rows = [corpus.texts[row] for row in corpus.sample]
        found[corpus.name] = np.stack([model.encode(text) for text in rows])  # (n_sample, dim)
    return found


def load_engines(given: Subject, setting: Setting, compile_s: float) -> list[Entry]:
    """Returns the engines of a model, ready as far as they can run.

    Args:
        given: the model.
        setting: of the run.
        compile_s: seconds that an engine that compiles is expected to take.
    """
    place = Place(
        path=given.path,
        device=setting.device,
        compiles=setting.compiles,
        few_graphs=setting.tiny,
        records=given.name == RECORDED,
    )
    entries = [Entry(candidate=candidate) for candidate in candidates(place)]
    for entry in entries:
        start = time.perf_counter()
        if entry.candidate.compiles and start + compile_s > setting.until:
            entry.failure = TOO_LATE
            continue
        print(f"{given.name}: loading {entry.candidate.name}", file=sys.stderr)
        with failure_noted(entry):
            entry.engine = entry.candidate.load()
        entry.ready_s = time.perf_counter() - start
    return entries


def measure_block(
    given: Subject, corpus: Corpus, entries: Sequence[Entry], setting: Setting
) -> list[Cell]:
    """Returns the cells of one model and corpus; all engines take turns, compiled ones too."""
    if time.perf_counter() + LEAST_ROUNDS * 2 * setting.least_s * len(entries) > setting.until:
        return [Cell(model=given.name, corpus=corpus.name, engine=ALL, failure=TOO_LATE)]
    cells, turns = [], []
    for entry in entries:
        if entry.candidate.corpus not in (None, corpus.name):
            continue
        cell = Cell(
            model=given.name,
            corpus=corpus.name,
            engine=entry.candidate.name,
            n_tokens=sum(corpus.lengths),
            flops=given.sizes.flops(corpus.lengths),
            ready_s=entry.ready_s,
            failure=entry.failure,
        )
        cells.append(cell)
        if entry.engine is not None:
            with failure_noted(cell):
                turns.append(_first(cell, entry.engine, given, corpus))
    for index in range(1 if setting.tiny else ROUNDS):
        if index >= LEAST_ROUNDS and time.perf_counter() > setting.until:
            break
        for turn in turns:
            if not turn.cell.failure:
                with failure_noted(turn.cell):
                    _round(turn, setting)
    return cells


def _first(cell: Cell, engine: Engine, given: Subject, corpus: Corpus) -> Turn:
    """Embeds a corpus once, which also warms up, and notes in the cell how right it was."""
    print(f"{cell.model}, {cell.corpus}: {cell.engine}", file=sys.stderr)
    vectors = engine.embed(corpus.texts)  # (n_texts, dim)
    cell.cosine = least_cosine(vectors[corpus.sample], given.expected[corpus.name])
    cell.note = engine.note
    return Turn(
        cell=cell,
        texts=lambda: engine.embed(corpus.texts),
        tokens=engine.prepare(corpus.texts),
    )


def _round(turn: Turn, setting: Setting) -> None:
    seconds, busy = repeated(turn.texts, setting)
    turn.cell.texts_s.append(seconds)
    turn.cell.busy += [] if busy is None else [busy]
    turn.cell.tokens_s.append(repeated(turn.tokens, setting)[0])


def repeated(run: Run, setting: Setting) -> tuple[float, float | None]:
    """Repeats a pass for `setting.least_s` at least.

    Returns:
        Seconds of one pass, and the share of the time that the GPU was busy if that is told.
    """
    wait(setting.device)
    start, n_passes = time.perf_counter(), 0
    while True:
        run()
        wait(setting.device)
        end, n_passes = time.perf_counter(), n_passes + 1
        if end - start >= setting.least_s:
            break
    share = None if setting.load is None else setting.load.share(start, end)
    return (end - start) / n_passes, share


def wait(device: str) -> None:
    """Returns when a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
