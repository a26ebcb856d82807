"""The benchmark scripts run where there is no GPU, and their tables hold what they promise."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STRATEGY = "batches (median tokens of a row)"
COMPILED, RECORDING = "chatspace buckets, compiled", "chatspace buckets, reduce-overhead"
ENGINES = [
    "sentence-transformers, 32",
    "sentence-transformers, 256",
    "chatspace buckets",
    "chatspace packed",
    COMPILED,
]


def run(script: str, *options: str) -> str:
    """Returns what a benchmark prints on stdout."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CHATSPACE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        capture_output=True,
        text=True,
        timeout=240,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(text: str) -> list[dict[str, str]]:
    """Returns the rows of the one Markdown table in a text, by column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(cells[1])) <= {"-", ":"}
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_padding_quick_orders_the_strategies() -> None:
    text = run("padding.py", "--quick")
    assert "- Date: " in text
    assert "- Versions: chatspace " in text
    waste = {row.pop(STRATEGY): {k: float(v) for k, v in row.items()} for row in table(text)}
    assert len(waste) == 8
    assert all(figure >= 1 for figures in waste.values() for figure in figures.values())
    packed = [figures for name, figures in waste.items() if name.startswith("chatspace packed")]
    assert len(packed) == 2
    assert all(1 <= figure < 1.02 for figures in packed for figure in figures.values())
    column = next(name for name in packed[0] if name.startswith("chat-like"))
    arrival, in_order, from_128, from_16, trimmed = [f[column] for f in waste.values()][:5]
    assert trimmed < from_16 < from_128 < arrival
    assert in_order < from_16


@pytest.mark.slow
def test_pipeline_quick_compares_both_on_the_same_rows(tiny_model: Path, tmp_path: Path) -> None:
    text = run("pipeline.py", "--quick", "--model", str(tiny_model), "--folder", str(tmp_path))
    rows = {row["measure"]: row for row in table(text)}
    for name in ("rows", "real tokens"):
        assert rows[name]["encoder alone"] == rows[name]["Parquet to Parquet"] != ""
    assert rows["rows"]["Parquet to Parquet"] == "200"
    assert rows["overhead over the encoder alone"]["Parquet to Parquet"].endswith(" %")
    assert float(rows["min cosine to the encoder alone"]["Parquet to Parquet"]) > 0.9999
    assert rows["always below 2,048 MB"]["Parquet to Parquet"] == "yes"
    for name in ("loader", "encoder", "writer"):
        busy, idle = rows[f"{name}: busy / idle s"]["Parquet to Parquet"].split(" / ")
        assert float(busy) >= 0
        assert float(idle) >= 0
    steps = [float(row["Parquet to Parquet"]) for n, row in rows.items() if n.startswith("start: ")]
    assert sum(steps[:-1]) == pytest.approx(steps[-1], rel=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pipeline_simulate_runs_no_forward_pass(tiny_model: Path) -> None:
    text = run("pipeline.py", "--simulate", "--rows", "500", "--model", str(tiny_model))
    rows = {row["measure"]: row for row in table(text)}
    assert "no forward pass" in text
    assert rows["rows"] == {"measure": "rows", "encoder alone": "", "Parquet to Parquet": "500"}
    assert rows["always below 2,048 MB"]["Parquet to Parquet"] == "yes"
    assert "overhead over the encoder alone" not in rows


@pytest.mark.slow
def test_encode_gpu_tiny_has_a_row_for_each_engine_of_each_model() -> None:
    compiles = shutil.which("g++") is not None
    text = run("encode_gpu.py", "--device", "cpu", "--tiny", *["--compile"] * compiles)
    assert "matmul peak" in text
    rows = table(text)
    for model in ("minilm", "bert-base", "qwen3-0.6b"):
        for lengths in ("50", "512", "heavy tail"):
            block = [r for r in rows if (r["model"], r["lengths"]) == (model, lengths)]
            found = {row["engine"]: row for row in block}
            assert found.pop("sentence-transformers unpadded, 256")["note"] == "not run: no GPU"
            names = [*ENGINES, *[RECORDING] * ((model, lengths) == ("minilm", "50"))]
            assert list(found) == names
            for name, row in found.items():
                if name in (COMPILED, RECORDING) and not compiles:
                    assert row["note"] == "not run: no GPU; add --compile"
                else:
                    assert float(row["min cosine"]) > 0.999
                    assert int(row["tokens/s, texts in"].replace(",", "")) > 0
                    assert row["of matmul peak"].endswith(" %")
                    assert row["GPU busy, texts in"] == ""


@pytest.mark.slow
def test_encode_gpu_end_to_end_tiny_writes_what_the_encoder_gives() -> None:
    text = run("encode_gpu.py", "--device", "cpu", "--tiny", "--end-to-end", "--models", "minilm")
    rows = {row["measure"]: row["Parquet to Parquet"] for row in table(text)}
    assert rows["rows"] == "200"
    assert float(rows["min cosine to the encoder alone"]) > 0.9999


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", ["minilm", "qwen3-0.6b"])
def test_corpora_of_a_model_have_exactly_the_tokens_that_they_say(
    load: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    models, minilm = load("models"), load("minilm")
    path = models.build(models.tiny(models.MODELS[name]), tmp_path / name)
    count = minilm.token_count(path)
    for corpus in models.corpora(path, 5000):
        assert [count(text) for text in corpus.texts] == corpus.lengths
    n_words = sum(len(text.split()) for text in corpus.texts)
    assert 1.2 < sum(corpus.lengths) / n_words < 1.9
    assert count("the encoder, naïve ☃") > 6


def setting(load: Callable[[str], Any], folder: Path, **values: Any) -> Any:
    usual = {"device": "cpu", "tiny": True, "load": None, "compiles": False, "least_s": 0.0}
    usual |= {"folder": folder, "until": time.perf_counter() + 600, "peak": 1.0}
    return load("gpu_rounds").Setting(**usual | values)


def test_repeated_goes_on_for_the_least_seconds_and_counts_one_pass(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    calls: list[int] = []

    def one_pass() -> None:
        calls.append(1)
        time.sleep(0.02)

    found = load("gpu_rounds").repeated(one_pass, setting(load, tmp_path, least_s=0.2))
    assert 2 < len(calls) <= 10
    assert 0.2 <= found[0] * len(calls) < 2
    assert found[1] is None


def test_measure_all_goes_on_after_an_engine_and_a_model_that_fail(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, engines = load("gpu_rounds"), load("gpu_engines")
    usual, build = engines.candidates, rounds.models.build

    def three(place: Any) -> list[Any]:
        good = usual(place)[0]
        loaded = good.load()
        passes = iter([loaded.embed])  # the first, which warms up, and no other

        def missing() -> None:
            raise ImportError("no such | library\nand more")

        def once(texts: Sequence[str]) -> Any:
            return next(passes)(texts)

        dying = engines.Engine(embed=once, prepare=loaded.prepare)
        return [
            engines.Candidate(name="missing", load=missing),
            engines.Candidate(name="dying", load=lambda: dying, corpus="50"),
            good,
        ]

    def build_one(sizes: Any, folder: Path, **options: Any) -> Path:
        if folder.name == "bert-base":
            raise OSError("disk full")
        return build(sizes, folder, **options)

    monkeypatch.setattr(rounds, "candidates", three)
    monkeypatch.setattr(rounds.models, "build", build_one)
    cells = rounds.measure_all(["bert-base", "minilm"], setting(load, tmp_path))
    failures = [(cell.model, cell.corpus, cell.engine, cell.failure) for cell in cells]
    missing = "not run: ImportError: no such / library"
    assert failures == [
        ("bert-base", "all", "all", "not run: OSError: disk full"),
        ("minilm", "50", "missing", missing),
        ("minilm", "50", "dying", "not run: StopIteration: "),
        ("minilm", "50", "sentence-transformers, 32", ""),
        ("minilm", "512", "missing", missing),
        ("minilm", "512", "sentence-transformers, 32", ""),
        ("minilm", "heavy tail", "missing", missing),
        ("minilm", "heavy tail", "sentence-transformers, 32", ""),
    ]
    assert all(cell.failure or cell.cosine > 0.999 for cell in cells)


def test_table_row_of_a_gpu_that_does_not_say_how_busy_it_is_says_so(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    rounds, encode_gpu = load("gpu_rounds"), load("encode_gpu")
    cell = rounds.Cell(model="m", corpus="50", engine="e", texts_s=[1.0], tokens_s=[1.0])
    assert "not told" in encode_gpu.table_row(cell, setting(load, tmp_path, device="cuda"))
    assert "not told" not in encode_gpu.table_row(cell, setting(load, tmp_path))
    cell.busy = [0.5, 0.7]
    assert "60 %" in encode_gpu.table_row(cell, setting(load, tmp_path, device="cuda"))


def test_gpu_id_is_the_uuid_of_the_device_and_not_its_number(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"cuda:1": SimpleNamespace(uuid="8f3a-1")}
    monkeypatch.setattr("torch.cuda.get_device_properties", known.__getitem__)
    assert load("gpu_load").gpu_id("cuda:1") == "GPU-8f3a-1"


SMI = """#!/bin/sh
test "$1 $2" = '-i GPU-1' || { echo 'No devices were found'; exit 6; }
echo '[N/A]'
while :; do echo 40; echo 80; sleep 0.01; done
"""


@pytest.mark.parametrize(("gpu", "share"), [("GPU-1", 0.6), ("GPU-2", None)])
def test_gpu_load_reads_what_nvidia_smi_prints_of_one_gpu(
    load: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: str,
    share: float | None,
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu_load = load("gpu_load")
    monkeypatch.setattr(gpu_load, "SETTLE_S", 0.1)
    sampler = gpu_load.GpuLoad.start(gpu)
    time.sleep(1.0)
    found = sampler.stop()
    assert found == (share if share is None else pytest.approx(share, abs=0.05))


class SlowTokenizer:
    def tokenize(self, texts: Sequence[str], *, check: Callable[[], None]) -> list[int]:
        time.sleep(0.2)
        return [len(text) for text in texts]


class OneByOne:
    """An encoder whose batches are single rows and whose vectors are their lengths."""

    tokenizer, workers, dim = SlowTokenizer(), 1, 2
    device, forward = SimpleNamespace(type="cpu"), None

    def __init__(self) -> None:
        self.n_waiting = self.most_waiting = 0

    def plan(self, tokens: list[int]) -> list[Any]:
        return [SimpleNamespace(rows=np.array([row])) for row in reversed(range(len(tokens)))]

    def start(self, tokens: list[int], batch: Any) -> Any:
        found = np.full((1, 2), tokens[batch.rows[0]], np.float32)
        self.n_waiting += 1
        self.most_waiting = max(self.most_waiting, self.n_waiting)
        return SimpleNamespace(result=lambda: self._end(found))

    def _end(self, found: Any) -> Any:
        self.n_waiting -= 1
        return found


def test_encoder_alone_is_not_charged_for_tokenising_and_keeps_its_workers_busy(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    watched_task = load("watched_task")
    shards = {"a": ["x" * n for n in range(1, 8)], "b": ["x" * n for n in range(8, 11)]}
    reader = SimpleNamespace(read=lambda span: SimpleNamespace(texts=shards[span]))
    encoder = OneByOne()
    watch = watched_task.Watch(alone=tmp_path / "alone.npy", simulate=False)
    pipeline = SimpleNamespace(encoder=encoder, reader=reader)
    watch.running(lambda *_: pytest.fail("the task itself ran"))(pipeline, ["a", "b"])
    assert watch.facts["seconds"] < 0.2
    assert np.load(tmp_path / "alone.npy").tolist() == [[n, n] for n in range(1, 11)]
    assert encoder.most_waiting == watched_task.AHEAD + 1


def test_linears_vectors_are_the_means_of_the_rows_of_each_batch(
    load: Callable[[str], Any],
) -> None:
    linears, torch = load("linears"), load("torch")
    batches = [
        {"row_groups": [], "cu_seq_lens_q": torch.tensor([0, 2, 3], dtype=torch.int32)},
        {"row_groups": [], "cu_seq_lens_q": torch.tensor([0, 3], dtype=torch.int32)},
    ]
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]]], dtype=torch.bfloat16)
    found = linears.vectors(lambda features: hidden, batches)
    assert found.tolist() == [[2, 1], [5, 4], [3, 2]]


def test_least_cosine_is_that_of_the_worst_row(load: Callable[[str], Any]) -> None:
    found = np.array([[1, 0], [3, 4], [2, 2]], np.float32)
    expected = np.array([[2, 0], [4, 3], [1, 1]], np.float32)
    assert load("report").least_cosine(found, expected) == pytest.approx(0.96)
