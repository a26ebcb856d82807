"""Prints how many real tokens a second this project and its peers embed on this machine's CPU.

usage: python benchmarks/encode_cpu.py [--quick] [--engines ours,st,openvino-bf16] > table.md

Every engine is a process of its own with the same threads, the same model (all-MiniLM-L6-v2) and
the same texts. A pass goes from strings in memory to float32 vectors of length one in memory,
tokenising counted. One untimed pass warms an engine up and gives the vectors that are compared;
then rounds follow in which the engines take turns, so that a slow minute of the machine meets all
of them. Peers that need other packages get environments of their own, installed by pip once.

Not covered: engines behind a web server, and processes side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from breakdown import PARTS
from catalogue import BASELINE, ENGINES, Engine, choose
from ceiling import DTYPES, Shape, best
from corpora import LIMIT, SHAPES, Count, Lengths, corpus, measure
from environments import HERE, Environments, NotInstalledError, default_folder
from minilm import prepared_model, token_count
from report import hardware, median_ratio, n_cores, print_table
from workers import Worker, WorkerFailedError, variables

SHORT = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
BREAKDOWN_CORPUS = "passages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A corpus in a file that all workers read.

    Attributes:
        flops: that one pass takes, with nothing wasted on padding.
    """

    name: str
    path: Path
    lengths: Lengths
    flops: float


@dataclass(slots=True, kw_only=True)
class Entry:
    """An engine and what was measured of it.

    Attributes:
        seconds: one figure per round, by corpus.
        cosine: smallest cosine of a row to the baseline's, over all corpora.
        failure: why there are no figures.
    """

    engine: Engine
    worker: Worker | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cosine: float = 1.0
    versions: str = ""
    failure: str = ""

    def fail(self, reason: str) -> None:
        """Gives the engine up; its row says why."""
        say(f"{self.engine.key}: {reason}")
        self.failure = reason.replace("|", "/").replace(str(Path.home()), "~")
        self.stop()

    def stop(self) -> None:
        """Ends the engine's process."""
        if self.worker is not None:
            self.worker.stop()
            self.worker = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What every engine is started with.

    Attributes:
        scratch: where they log.
    """

    threads: int
    environments: Environments
    model: Path
    scratch: Path

    def worker(self, entry: Entry) -> None:
        """Starts an engine; its row says why if that fails."""
        engine = entry.engine
        say(f"{engine.key}: starting")
        try:
            entry.worker = Worker(
                engine,
                python=self._python(engine),
                model=self._files(engine),
                threads=self.threads,
                log=self.scratch / f"{engine.key}.log",
            )
        except NotInstalledError as error:
            entry.fail(f"not installed: {error}")
        except WorkerFailedError as error:
            entry.fail(f"does not start: {error}")
        else:
            versions = entry.worker.versions.items()
            entry.versions = ", ".join(f"{name} {version}" for name, version in versions)

    def _python(self, engine: Engine) -> Path:
        if engine.environment is None:
            return Path(sys.executable)
        return self.environments.python(engine.environment)

    def _files(self, engine: Engine) -> Path:
        if engine.export is None:
            return self.model
        return self.environments.exported_model(engine.export, self.model)


def main() -> None:
    args = _arguments()
    try:
        engines = choose(args.engines)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="encode-cpu-") as name:
        scratch = Path(name)
        model = prepared_model(scratch)
        corpora = _corpora(scratch, args.tokens, token_count(model), Shape.of(model))
        print_header(corpora, args)
        with started(engines, args, model=model, scratch=scratch) as entries:
            compare_vectors(entries, corpora, scratch)
            ceilings = run_rounds(entries, corpora, args, model)
        print_speed(entries, corpora)
        if not args.only_speed:
            print_share(entries, corpora, ceilings)
            print_breakdown(entries, corpora, model)
        print_versions(entries)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    keys = ", ".join(engine.key for engine in ENGINES)
    parser.add_argument("--engines", default="all", help=f"all, or a list of: {keys} [all]")
    parser.add_argument("--tokens", type=int, help="real tokens of each corpus [60000; quick: 800]")
    parser.add_argument("--rounds", type=int, help="timed passes [3; quick: 1]")
    parser.add_argument("--threads", type=int, default=n_cores(), help="of each engine [cores]")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="[%(default)s]")
    parser.add_argument(
        "--quick", action="store_true", help="does it work at all? figures are void"
    )
    parser.add_argument("--only-speed", action="store_true", help="no ceiling, no breakdown")
    args = parser.parse_args()
    args.tokens = args.tokens or (800 if args.quick else 60_000)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.envs = args.envs.absolute()
    return args


def say(text: str) -> None:
    """Tells progress on standard error; standard output is the report."""
    print(text, file=sys.stderr, flush=True)


def _corpora(folder: Path, n_tokens: int, count: Count, shape: Shape) -> list[Corpus]:
    made = []
    for name in SHAPES:
        texts = corpus(name, n_tokens=n_tokens, count=count)
        path = folder / f"{name}.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        flops = shape.flops([min(LIMIT, count(text)) for text in texts])
        made.append(Corpus(name=name, path=path, lengths=measure(texts, count), flops=flops))
    return made


@contextmanager
def started(
    engines: Sequence[Engine], args: argparse.Namespace, *, model: Path, scratch: Path
) -> Iterator[list[Entry]]:
    """Starts one process per engine, and ends them all whatever happens."""
    entries = [Entry(engine=engine) for engine in engines]
    start = Start(
        threads=args.threads,
        environments=Environments(folder=args.envs),
        model=model,
        scratch=scratch,
    )
    try:
        for entry in entries:
            start.worker(entry)
        yield entries
    finally:
        for entry in entries:
            entry.stop()


def compare_vectors(entries: Sequence[Entry], corpora: Sequence[Corpus], scratch: Path) -> None:
    """Has every engine make its vectors once, and compares them with the baseline's."""
    reference: dict[str, np.ndarray] = {}
    for entry in sorted(entries, key=lambda entry: entry.engine.key != BASELINE):
        for text in corpora:
            say(f"{entry.engine.key}: vectors of {text.name}")
            path = scratch / "vectors.npy"
            try:
                if entry.worker is not None:
                    entry.worker.save(text.path, path)
                    found = np.load(path).astype(np.float64)  # (n_rows, dim)
                    cosines = (found * reference.setdefault(text.name, found)).sum(1)
                    entry.cosine = min(entry.cosine, float(cosines.min()))
            except WorkerFailedError as error:
                entry.fail(f"fails: {error}")
    if not reference:
        raise SystemExit("The baseline does not run; see the reason above.")


def run_rounds(
    entries: Sequence[Entry], corpora: Sequence[Corpus], args: argparse.Namespace, model: Path
) -> list[dict[str, dict[str, float]]]:
    """Times every engine in every round, each round in another order.

    Returns:
        What the machine's own products reached, once per round.
    """
    ceilings = []
    for index in range(args.rounds):
        if not args.only_speed:
            found = _own("ceiling.py", str(model), str(args.threads), threads=args.threads)
            ceilings.append(found)
        first = index * len(entries) // args.rounds
        for text in corpora:
            for entry in [*entries[first:], *entries[:first]]:
                _time(entry, text, index)
    return ceilings


def _time(entry: Entry, text: Corpus, index: int) -> None:
    if entry.worker is None:
        return
    try:
        elapsed_s = entry.worker.seconds(text.path)
    except WorkerFailedError as error:
        entry.fail(f"fails: {error}")
        return
    entry.seconds.setdefault(text.name, []).append(elapsed_s)
    rate = text.lengths.total / elapsed_s
    say(f"round {index + 1}: {text.name}: {entry.engine.key}: {rate:,.0f} tokens/s")


def _own(script: str, *arguments: str, threads: int) -> dict:
    """Runs one of this folder's scripts in this environment and returns the JSON it prints."""
    say(script)
    answer = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=variables(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def print_header(corpora: Sequence[Corpus], args: argparse.Namespace) -> None:
    print("\n".join(hardware()))
    print(f"- Model: all-MiniLM-L6-v2, the published weights, rows cut at {LIMIT} tokens")
    print(f"- Each engine: {args.threads} threads; median of {args.rounds} interleaved rounds")
    for text in corpora:
        print(f"- Corpus {text.name}: {text.lengths}")
    print(flush=True)


def print_speed(entries: Sequence[Entry], corpora: Sequence[Corpus]) -> None:
    """Prints real tokens a second, and how many times the baseline's that is."""
    baseline = next(entry for entry in entries if entry.engine.key == BASELINE)
    columns = ["engine", "dtype", "batch"]
    for text in corpora:
        columns += [f"{text.name}, tokens/s", "x"]
    rows = []
    for entry in entries:
        row: list[object] = [*_names(entry.engine)]
        for text in corpora:
            row += [None, None] if entry.failure else _speed(entry, baseline, text)
        rows.append([*row, *([None, entry.failure] if entry.failure else [_cosine(entry), None])])
    print_table([*columns, "min cosine", "note"], rows)
    print(
        "\nx: times the tokens/s of sentence-transformers fp32 with batches of 32 on the same "
        "corpus,\nmedian of per-round ratios. min cosine: to its vectors, the worst row of all.\n"
    )


def _names(engine: Engine) -> tuple[str, str, str]:
    return engine.label, SHORT[engine.dtype], engine.batching or str(engine.batch)


def _speed(entry: Entry, baseline: Entry, text: Corpus) -> list[object]:
    rates = [text.lengths.total / elapsed_s for elapsed_s in entry.seconds[text.name]]
    base = [text.lengths.total / elapsed_s for elapsed_s in baseline.seconds[text.name]]
    # A baseline that failed in a late round has fewer figures than the others.
    ratio = median_ratio(rates[: len(base)], base)
    return [round(statistics.median(rates)), f"{ratio:.2f}"]


def _cosine(entry: Entry) -> str:
    return f"{int(entry.cosine * 1e6 + 0.5) / 1e6:.6f}"


def print_share(
    entries: Sequence[Entry],
    corpora: Sequence[Corpus],
    ceilings: list[dict[str, dict[str, float]]],
) -> None:
    """Prints how much of the machine's fastest matrix product each engine keeps up."""
    for dtype in DTYPES:
        print(f"- Fastest matrix product, {SHORT[dtype]}: {best(ceilings, dtype):,.0f} GFLOP/s")
    print(f"  (of {', '.join(ceilings[0])}; plain or prepacked weights)\n")
    rows = []
    for entry in entries:
        if entry.failure or entry.engine.dtype not in DTYPES:
            continue
        row: list[object] = [*_names(entry.engine)]
        for text in corpora:
            rate = 1e-9 * text.flops / statistics.median(entry.seconds[text.name])
            row += [round(rate), f"{100 * rate / best(ceilings, entry.engine.dtype):.0f} %"]
        rows.append(row)
    columns = ["engine", "dtype", "batch"]
    for text in corpora:
        columns += [f"{text.name}, GFLOP/s", "of the fastest"]
    print_table(columns, rows)
    print("\nGFLOP/s: of the linear layers and the attention of real tokens; padding counts not.\n")


def print_breakdown(entries: Sequence[Entry], corpora: Sequence[Corpus], model: Path) -> None:
    """Prints which part of the encoder takes how much of its time, where this project is timed."""
    dtypes = [name for name in DTYPES if name in _own_dtypes(entries)]
    if not dtypes:
        return
    path = next(text.path for text in corpora if text.name == BREAKDOWN_CORPUS)
    found = [_own("breakdown.py", str(model), str(path), dtype, threads=1) for dtype in dtypes]
    rows = [
        [part, *(f"{100 * seconds[part] / sum(seconds.values()):.1f} %" for seconds in found)]
        for part in PARTS
    ]
    heads = [f"chatspace {SHORT[dtype]}" for dtype in dtypes]
    print_table([f"part ({BREAKDOWN_CORPUS}, one thread)", *heads], rows)
    print()


def _own_dtypes(entries: Sequence[Entry]) -> set[str]:
    return {
        entry.engine.dtype
        for entry in entries
        if entry.engine.script == "run_chatspace.py" and not entry.failure
    }


def print_versions(entries: Sequence[Entry]) -> None:
    known = {(entry.engine.label.strip("*"), entry.versions) for entry in entries if entry.versions}
    for label, versions in sorted(known):
        print(f"- {label}: {versions}")


if __name__ == "__main__":
    main()
