"""Encoders on a GPU: sentence-transformers and chatspace, padded, packed and compiled.

    python benchmarks/encode_gpu.py                        # below eight minutes on an H200
    python benchmarks/encode_gpu.py --models bert-base     # one model
    python benchmarks/encode_gpu.py --end-to-end           # Parquet to Parquet instead
    python benchmarks/encode_gpu.py --device cpu --tiny    # everything once, with tiny models

The models have real sizes and random weights. `texts in` is the public door, tokenising included;
`tokens in` is the model over batches that were made before. Tokens are real ones: padding counts
for nothing, neither there nor in the share of the matmul peak, which is measured in the same run.
An engine that cannot run here has a row that says why.

Compiled engines come last, because making their graphs takes the longest; what would end after
`--minutes` is left out, and its row says so. How busy the GPU is comes from `nvidia-smi`.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
import torch
from gpu_engines import (
    COMPILED,
    Array,
    Engine,
    Run,
    compiled_engine,
    engines,
    load_library,
    why_not,
)
from gpu_load import GpuLoad
from models import LIMIT, Corpus
from pipeline import Job, measure, print_report, scratch, write_rows
from report import hardware, print_table, versions

from chatspace.hf_embed.loading import quiet_libraries

PACKAGES = ("chatspace", "torch", "transformers", "sentence-transformers", "flash-attn", "numpy")
ROUNDS, LEAST_ROUNDS = 3, 2
TINY_TOKENS = 1000
BLOCK_S = 20.0  # rounds of one model and length end here, at `LEAST_ROUNDS` or later
TOKENS = {"minilm": 1_200_000, "bert-base": 600_000, "qwen3-0.6b": 262_144}
MATMUL = {"cuda": 8192, "cpu": 768}
TOO_LATE = "not run: it would end after --minutes"


@dataclass(slots=True, kw_only=True)
class Cell:
    """What was measured of one engine on one corpus; `note` alone if it did not run.

    Attributes:
        texts_s: seconds from texts to vectors, one entry a round.
        tokens_s: seconds of the model alone.
        busy: share of `texts_s` that the GPU was busy, 0 to 1.
        cosine: the smallest to float32.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is given.

    Attributes:
        until: `perf_counter` when it should end.
        peak: measured operations per second of a bfloat16 matrix product.
        load: sampler of the GPU, None where there is none.
        compiled: measure compiled engines.
    """

    device: str
    tiny: bool
    folder: Path
    until: float
    peak: float
    load: GpuLoad | None
    compiled: bool


# Measuring


def matmul_peak(device: str) -> float:
    """Returns operations per second of a large bfloat16 matrix product of random numbers."""
    n = MATMUL[torch.device(device).type]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        for _ in range(5):
            torch.matmul(a, b)
        _wait(device)
        found.append(5 * 2 * n**3 / (time.perf_counter() - start))
    return statistics.median(found[3:])


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def reference(path: Path, device: str, corpora_: Sequence[Corpus]) -> dict[str, Array]:
    """Returns float32 vectors of each corpus's sample, embedded one at a time."""
    model = load_library(path, device, dtype=torch.float32, attn_implementation="sdpa")
    found = {}
    for corpus in corpora_:
        rows = [corpus.texts[row] for row in corpus.sample]
        found[corpus.name] = np.stack([model.encode(text) for text in rows])  # (n_sample, dim)
    return found


def least_cosine(found: Array, expected: Array) -> float:
    """Returns the smallest cosine of two vectors in the same row."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / lengths).min())


def subject(name: str, setting: Setting) -> Subject:
    """Builds a model and embeds its samples in float32."""
    sizes = models.tiny(models.MODELS[name]) if setting.tiny else models.MODELS[name]
    path = models.build(sizes, setting.folder / name, device=setting.device)
    given = models.corpora(sizes, TINY_TOKENS if setting.tiny else TOKENS[name])
    expected = reference(path, setting.device, given)
    return Subject(name=name, sizes=sizes, path=path, corpora=given, expected=expected)


def measure_block(
    given: Subject, corpus: Corpus, found: Sequence[Engine], setting: Setting
) -> Iterator[Cell]:
    """Yields the cells of one model and corpus; the engines take turns."""
    turns = []
    for engine in found:
        try:
            cell = _first(given, corpus, engine)
        except RuntimeError as error:  # the others go on
            note = why_not(error)
            yield Cell(model=given.name, corpus=corpus.name, engine=engine.name, note=note)
        else:
            turns.append((engine, cell, engine.prepare(corpus.texts)))
    end = min(time.perf_counter() + BLOCK_S, setting.until)
    for index in range(1 if setting.tiny else ROUNDS):
        for engine, cell, run in turns:
            _time(lambda engine=engine: engine.embed(corpus.texts), cell.texts_s, setting, cell)
            _time(run, cell.tokens_s, setting)
        if index + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
            break
    yield from (cell for _, cell, _ in turns)


def _first(given: Subject, corpus: Corpus, engine: Engine) -> Cell:
    """Embeds a corpus once, which also warms up, and returns a cell with how right it was."""
    print(f"{given.name}, {corpus.name}: {engine.name}", file=sys.stderr)
    vectors = engine.embed(corpus.texts)  # (n_texts, dim)
    return Cell(
        model=given.name,
        corpus=corpus.name,
        engine=engine.name,
        n_tokens=sum(corpus.lengths),
        flops=given.sizes.flops(corpus.lengths),
        cosine=least_cosine(vectors[corpus.sample], given.expected[corpus.name]),
        ready_s=engine.ready_s,
        note=engine.note,
    )


def _time(run: Run, seconds: list[float], setting: Setting, cell: Cell | None = None) -> None:
    """Adds the seconds of a run, and to the cell the share of them that the GPU was busy."""
    _wait(setting.device)
    start = time.perf_counter()
    run()
    _wait(setting.device)
    end = time.perf_counter()
    seconds.append(end - start)
    if setting.load is not None and cell is not None:
        # The first samples of a run look back at what was before it.
        busy = setting.load.share(start + (end - start) / 3, end)
        cell.busy += [] if busy is None else [busy]


def measure_model(given: Subject, setting: Setting) -> Iterator[Cell]:
    """Yields the cells of a model, compiled engines left out."""
    made = list(engines(given.path, setting.device))
    ready = [engine for engine in made if isinstance(engine, Engine)]
    for corpus in given.corpora:
        if time.perf_counter() > setting.until:
            yield Cell(model=given.name, corpus=corpus.name, engine="all", note=TOO_LATE)
            continue
        yield from measure_block(given, corpus, ready, setting)
        for engine in made:
            if not isinstance(engine, Engine):
                name, note = engine
                yield Cell(model=given.name, corpus=corpus.name, engine=name, note=note)


def measure_compiled(subjects: Sequence[Subject], setting: Setting) -> Iterator[Cell]:
    """Yields the cells of compiled engines, as many as there is time for."""
    per_layer_s = 0.0
    for given in subjects:
        start = time.perf_counter()
        note = None if setting.compiled else "not run: no GPU; add --compile"
        if start + 1.5 * per_layer_s * given.sizes.layers > setting.until:
            note = TOO_LATE
        if note is not None:
            yield Cell(model=given.name, corpus="all", engine=COMPILED, note=note)
            continue
        try:
            engine = compiled_engine(given.path, setting.device)
        except RuntimeError as error:  # no compiler, or one that fails
            yield Cell(model=given.name, corpus="all", engine=COMPILED, note=why_not(error))
            continue
        for corpus in given.corpora:
            yield from measure_block(given, corpus, [engine], setting)
        per_layer_s = (time.perf_counter() - start) / given.sizes.layers
        _free()


def measure_all(names: Sequence[str], setting: Setting) -> list[Cell]:
    """Returns all cells, models in order; compiled engines are measured last."""
    subjects, cells = [], []
    for name in names:
        subjects.append(subject(name, setting))
        cells += measure_model(subjects[-1], setting)
        _free()
    cells += measure_compiled(subjects, setting)
    return sorted(cells, key=lambda cell: names.index(cell.model))


def _free() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The tables


def table_row(cell: Cell, peak: float) -> list[object]:
    """Returns a row of the table."""
    label = [cell.model, cell.corpus, cell.engine]
    if not cell.texts_s:
        return [*label, *[None] * 6, cell.note]
    seconds = statistics.median(cell.tokens_s)
    return [
        *label,
        round(cell.n_tokens / statistics.median(cell.texts_s)),
        round(cell.n_tokens / seconds),
        f"{100 * cell.flops / seconds / peak:.1f} %",
        f"{100 * statistics.fmean(cell.busy):.0f} %" if cell.busy else None,
        f"{cell.cosine:.5f}",
        cell.ready_s,
        cell.note,
    ]


def print_cells(cells: Sequence[Cell], setting: Setting) -> None:
    """Prints machine, versions, peak and the table."""
    print("# Encoders on a GPU: real tokens per second\n")
    print("\n".join(hardware()))
    print(f"- Versions: {versions(*PACKAGES)}")
    print(f"- Device: {setting.device}, bfloat16; matmul peak {setting.peak / 1e12:.3g} TFLOP/s")
    print(f"- Medians of up to {ROUNDS} rounds in turn; cosine to float32, one row at a time\n")
    columns = ["model", "lengths", "engine", "tokens/s, texts in", "tokens/s, tokens in"]
    columns += ["of matmul peak", "GPU busy", "min cosine", "ready s", "note"]
    print_table(columns, [table_row(cell, setting.peak) for cell in cells])


def end_to_end(name: str, setting: Setting) -> None:
    """Prints the table of Parquet to Parquet with one model on the device."""
    sizes = models.tiny(models.MODELS[name]) if setting.tiny else models.MODELS[name]
    path = models.build(sizes, setting.folder / name, device=setting.device)
    lengths = models.heavy_tail(200 if setting.tiny else 20 * TOKENS[name] // 105)
    rng = random.Random(0)
    texts = [models.text(length, sizes, rng) for length in lengths]
    model = {"name": str(path), "dtype": "bfloat16", "device": setting.device}
    job = Job(
        data=write_rows(setting.folder / "rows.parquet", [texts]),
        folder=setting.folder,
        sections={"model": model},
        rows_per_shard=32 if setting.tiny else 8192,
    )
    found = measure(job, 1 if setting.tiny else ROUNDS)
    what = f"{len(texts):,} rows, lognormal lengths of median 80, cut at {LIMIT}"
    print_report(f"Parquet to Parquet on {setting.device}", job, found, model=name, data=what)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few rows")
    parser.add_argument("--models", nargs="+", choices=models.MODELS, help="[all; bert-base]")
    parser.add_argument("--compile", action="store_true", help="compile on a CPU too")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing that ends later")
    parser.add_argument("--end-to-end", action="store_true", help="Parquet to Parquet instead")
    parser.add_argument("--folder", type=Path, help="where to work [the system's temporary folder]")
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    until = time.perf_counter() + 60 * (arguments := _arguments()).minutes
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("No GPU: PyTorch sees none. Try --device cpu --tiny.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet_libraries()
    with scratch(arguments.folder) as folder:
        setting = Setting(
            device=arguments.device,
            tiny=arguments.tiny,
            folder=folder,
            until=until,
            peak=matmul_peak(arguments.device),
            load=None if arguments.device == "cpu" else GpuLoad.start(),
            compiled=arguments.compile or arguments.device != "cpu",
        )
        try:
            if arguments.end_to_end:
                end_to_end((arguments.models or ["bert-base"])[0], setting)
            else:
                cells = measure_all(arguments.models or list(models.MODELS), setting)
                print_cells(cells, setting)
        finally:
            if setting.load is not None:
                setting.load.stop()


if __name__ == "__main__":
    main()
