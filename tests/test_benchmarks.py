"""The benchmarks run and say what they should; how fast anything is, no test asks."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def count_words(text):
    return len(text.split()) + 2


def table_rows(text):
    """Returns the cells of each row of the first Markdown table, the heading first."""
    lines = text[text.index("| engine") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.timeout(240)
def test_encode_cpu_quick_prints_a_row_for_each_engine():
    command = [sys.executable, "encode_cpu.py", "--quick", "--only-speed", "--engines", "ours,st"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(
        command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, timeout=230
    )
    assert answer.returncode == 0, answer.stderr
    heading, _, *rows = table_rows(answer.stdout)
    assert [row[0] for row in rows] == ["**chatspace**", "sentence-transformers"]
    for row in map(dict, (zip(heading, row, strict=True) for row in rows)):
        assert row["dtype"] == "fp32"
        assert row["note"] == ""
        assert float(row["min cosine"]) >= 0.9999
        for corpus in ("chat-like", "passages", "long"):
            assert int(row[f"{corpus}, tokens/s"].replace(",", "")) > 0
    assert "real tokens" in answer.stdout
    assert "- sentence-transformers: sentence-transformers 6" in answer.stdout


def test_encode_cpu_unknown_engine_is_refused_with_the_known_ones():
    command = [sys.executable, "encode_cpu.py", "--engines", "ours,tei"]
    answer = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert answer.stderr.startswith("Unknown engine: tei; known: ours, ")


def test_started_engine_that_cannot_be_installed_is_a_row_with_its_reason(load, tmp_path):
    encode_cpu, environments = load("encode_cpu"), load("environments")
    (tmp_path / "fastembed").mkdir()
    start = encode_cpu.Start(
        threads=1,
        environments=environments.Environments(folder=tmp_path),
        model=tmp_path,
        scratch=tmp_path,
    )
    engine = next(found for found in load("catalogue").ENGINES if found.key == "fastembed")
    entry = encode_cpu.Entry(engine=load("dataclasses").replace(engine, export=None))
    start.worker(entry)
    assert entry.worker is None
    assert entry.failure.startswith("not installed: ")
    assert entry.failure.endswith("is no virtual environment; name another folder")


def test_started_worker_that_dies_says_why(load, tmp_path):
    encode_cpu = load("encode_cpu")
    engine = load("catalogue").Engine(key="x", label="x", script="run_fastembed.py")
    start = encode_cpu.Start(
        threads=1, environments=None, model=tmp_path / "missing", scratch=tmp_path
    )
    entry = encode_cpu.Entry(engine=engine)
    start.worker(entry)
    assert entry.failure == "does not start: ModuleNotFoundError: No module named 'fastembed'"


@pytest.mark.parametrize(
    ("name", "median", "longest"),
    [("chat-like", 25, 300), ("passages", 80, 500), ("long", 350, 800)],
)
def test_corpus_has_the_lengths_of_its_name(load, name, median, longest):
    corpora = load("corpora")
    texts = corpora.corpus(name, n_tokens=20_000, count=count_words)
    lengths = corpora.measure(texts, count_words)
    assert lengths.median == pytest.approx(median, rel=0.06)
    assert lengths.total == pytest.approx(20_000, rel=0.05)
    assert lengths.longest > longest
    assert lengths.shortest >= 3
    assert len(set(texts)) == len(texts)


def test_corpus_is_the_same_again_and_another_with_another_seed(load):
    corpus = load("corpora").corpus
    first = corpus("passages", n_tokens=2000, count=count_words)
    assert corpus("passages", n_tokens=2000, count=count_words) == first
    assert corpus("passages", n_tokens=2000, count=count_words, seed=1) != first


def test_measure_counts_no_tokens_beyond_the_cut(load):
    lengths = load("corpora").measure(["a " * 8, "a " * 20], count_words, limit=12)
    assert (lengths.total, lengths.n_cut, lengths.longest) == (22, 1, 22)


def test_print_table_aligns_numbers_to_the_right(load, capsys):
    load("report").print_table(["engine", "tokens/s"], [["a", 12345], ["bb", None], ["c", 0.5]])
    assert capsys.readouterr().out.splitlines() == [
        "| engine | tokens/s |",
        "| ------ | -------: |",
        "| a      |   12,345 |",
        "| bb     |          |",
        "| c      |      0.5 |",
    ]


def test_median_ratio_is_of_rounds_and_not_of_medians(load):
    assert load("report").median_ratio([20.0, 10.0, 60.0], [10.0, 5.0, 10.0]) == 2.0


def test_versions_of_a_missing_package_says_so(load):
    assert load("report").versions("no-such-package") == "no-such-package not installed"


def test_hardware_names_cpu_and_memory(load):
    text = "\n".join(load("report").hardware())
    assert "- CPU: " in text
    assert "- Memory: " in text


def test_flops_of_minilm_counts_linears_and_attention(load):
    shape = load("ceiling").Shape(hidden=384, intermediate=1536, n_layers=6)
    linear = 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert shape.flops([10, 1]) == 11 * linear + 6 * 4 * 384 * (10 * 10 + 1)


def test_last_error_is_the_line_that_tells(load):
    last_error = load("environments").last_error
    trace = "Traceback (most recent call last):\n  File x\nValueError: no such thing\nbye\n"
    assert last_error(trace) == "ValueError: no such thing"
    pip = "WARNING: x\nERROR: Cannot install a and b\nERROR: for help visit a page\n"
    assert last_error(pip) == "ERROR: Cannot install a and b"
    assert last_error("killed\n") == "killed"
