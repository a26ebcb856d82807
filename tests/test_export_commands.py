"""The commands export, search and duplicates, and the examples of docs/outputs.md."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from chatspace.cli import UsageError, app
from chatspace.errors import ChatspaceError, ExitCode
from chatspace.export.formats import Export
from chatspace.export.source import open_source
from chatspace.jobs.gather import gather_run
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from tests.conftest import SpecMaker, texts, write_parquet
from tests.vector_runs import random_vectors, vector_run

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
Command = Callable[..., str]


def chatspace(*words: str) -> str:
    """Runs a command in this process and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app(list(words), standalone_mode=False)
    return printed.getvalue()


def folder_of(plan: Plan) -> str:
    return str(Layout(Path(plan.workspace)).run(plan.run_id).folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    splits = {"train": random_vectors(60), "test": random_vectors(20, seed=1)}
    return folder_of(vector_run(tmp_path_factory.mktemp("run"), splits))


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("incomplete")
    return folder_of(vector_run(folder, random_vectors(60), missing=[1]))


def test_export_says_what_it_wrote_and_how_to_read_it(run: str, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    text = chatspace("export", run, "--to", "parquet", "--out", str(out))
    assert "80 vectors of 8 as parquet" in text
    assert f'pyarrow.parquet.ParquetFile("{out}")' in text
    out = tmp_path / "train.parquet"
    chatspace("export", run, "--to", "parquet", "--out", str(out), "--split", "train")
    assert pq.read_metadata(out).num_rows == 60


def test_export_of_an_incomplete_run_exits_with_3_and_names_the_repair(
    incomplete: str, tmp_path: Path
) -> None:
    words = ["export", incomplete, "--to", "parquet", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "chatspace", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == ExitCode.INCOMPLETE
    (line,) = done.stderr.splitlines()
    assert f"chatspace resubmit {incomplete}" in line and "--partial" in line
    assert list(tmp_path.iterdir()) == []
    assert "44 vectors" in chatspace(*words, "--partial")
    assert pq.read_metadata(tmp_path / "out").num_rows == 44


def test_search_like_prints_score_id_split_and_text(run: str) -> None:
    lines = chatspace("search", run, "--like", "docs/test/3", "-k", "2").splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r" 0\.\d{4}  docs/(train|test)/\d+  \((train|test)\)", lines[0])
    assert lines[1].startswith("         text ")
    found = json.loads(chatspace("search", run, "--like", "docs/test/3", "-k", "2", "--json"))
    assert found["like"] == "docs/test/3" and len(found["hits"]) == 2
    assert set(found["hits"][0]) == {"score", "id", "split", "row_index", "text"}


def test_duplicates_prints_groups_and_writes_pairs(run: str, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    words = ["duplicates", run, "--threshold", "0.7", "--show", "2", "--out", str(out)]
    text = chatspace(*words)
    n_pairs = pq.read_metadata(out).num_rows
    assert f"{n_pairs:,} pairs among 80 rows at or above 0.7" in text
    assert "more groups" in text and str(out) in text
    found = json.loads(chatspace(*words, "--force", "--json", "--approximate"))
    assert found["sampled_pairs"] == n_pairs and len(found["largest"]) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export nobody-00000000 --to parquet --out o --workspace {tmp}", "Unknown run: nobody"),
        ("export {run} --to parquet --out o --split dev", "Unknown split: --split dev"),
        ("export {run} --to csv --out o", "Unknown format: --to csv; known: parquet"),
        ("export {run} --to parquet --out .", "Not a path for an export: --out .;"),
        ("export {run} --to parquet --out {tmp}", "Not an export: --out"),
        ("export {run} --to parquet --out {tmp} --force", "Not an export: --out"),
        ("export {run} --to parquet --out /", "Not a path for an export: --out /"),
        ("export {run} --to parquet --out {tmp}/file/x", "Cannot write: {tmp}/file/x"),
        ("export {run} --to numpy --out {tmp}/file/x", "Cannot write: {tmp}/file/x"),
        ("export {run} --to numpy --out o --metric l2", "No metric: --to numpy"),
        ("export {run} --to faiss --out o --metric hamming", "No bits: --metric hamming"),
        ("export {run} --out o", "Missing option '--to'"),
        ("search {run}", "Search for what?"),
        ("search {run} x --like y", "Search for what?"),
        ("search {run} --like y --prompt-name query", "--prompt-name is for a text"),
        ("search {run} x -k 0", "Out of range: -k 0"),
        ("search {run} x -k 99999", "Out of range: -k 99999"),
        ("search {run} x -k many", "Invalid value for '-k'"),
        ("search {run} --like nobody", "Unknown id: --like nobody"),
        ("search {run} --like docs/train/1 --split dev", "Unknown split: --split dev"),
        ("duplicates {run} --threshold 0", "Out of range: --threshold 0"),
        ("duplicates {run} --threshold 95", "Out of range: --threshold 95"),
        ("duplicates {run} --threshold nan", "Out of range: --threshold nan"),
        ("duplicates {run} --threshold 0.001 --max-pairs 3", "Too many pairs"),
        ("duplicates {run} --out {tmp}/file", "Not an export: --out"),
        ("duplicates {run} --out {tmp}/file --force", "Not an export: --out"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: str, tmp_path: Path, words: str, expected: str
) -> None:
    (tmp_path / "file").write_text("mine")
    parts = [part.format(run=run, tmp=tmp_path) for part in shlex.split(words)]
    parts = [str(tmp_path / "o") if part == "o" else part for part in parts]
    with pytest.raises((ChatspaceError, UsageError)) as error:
        chatspace(*parts)
    is_usage = isinstance(error.value, UsageError)
    message = error.value.format_message() if is_usage else str(error.value)
    assert is_usage or error.value.exit_code == ExitCode.USER_INPUT
    assert message.startswith(expected.format(tmp=tmp_path)) and "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The page of documentation


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Plan:
    """A run of a real model, with a row that is there twice."""
    from chatspace.spec.loading import spec_from_mapping

    folder = tmp_path_factory.mktemp("real")
    words = [*texts(40), texts(1)[0]]
    data = write_parquet(folder / "docs.parquet", {"text": words})
    values = {
        "kind": "embed",
        "name": "wiki",
        "workspace": str(folder / "ws"),
        "dataset": {"source": "parquet", "path": str(data)},
        "model": {"name": str(tiny_model), "dtype": "float32", "device": "cpu"},
        "slurm": {"profile": "local", "log_dir": str(folder)},
    }
    plan = set_up(spec_from_mapping(values, "test")).plan
    run_task(Layout(folder / "ws").run(plan.run_id).plan, "train", 0)
    gather_run(plan)
    return plan


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def test_outputs_page_commands_and_readers_work(real: Plan, tmp_path: Path) -> None:
    lines = [line.partition("  #")[0] for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 11
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "chatspace"
        if words[0] == "export" and words[3] != "parquet":  # each into a folder of its own
            place = words.index("--out") + 1
            words[place] = f"wiki-{words[3]}"
        if "--out" in words:
            place = words.index("--out") + 1
            words[place] = str(tmp_path / words[place])
        chatspace(*[folder_of(real) if word == "RUN" else word for word in words])
    code, _ = blocks("python")
    code += "\nassert len(table) == len(rows) == len(ids) == lance.count_rows() == 41"
    code += "\nassert hits[0]['id'] == ids[0].as_py() == table['id'][0].as_py()"
    code += "\nassert 0 in places and numpy.isclose(scores[0, 0], 1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert ("docs/train/0", "docs/train/40") in [(p["first_id"], p["second_id"]) for p in pairs]


def test_outputs_page_reads_indexes_in_parts(real: Plan, tmp_path: Path) -> None:
    source = open_source(real)
    for to, index, out in (("faiss", "ivf", "wiki-ivf"), ("usearch", None, "wiki-parts")):
        Export(to=to, out=tmp_path / out, index=index, part_bytes=5000).write(source)
    code = blocks("python")[1] + "\nassert index.ntotal == 41 == len(parts)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(4))
def test_outputs_page_spec_runs_and_stores_what_it_says(
    make_spec: SpecMaker, tmp_path: Path, number: int
) -> None:
    output = yaml.safe_load(blocks("yaml")[number])["output"]
    columns = {"text": texts(12), "title": list("abcdefghijkl"), "lang": ["en", "de"] * 6}
    data = write_parquet(tmp_path / "rows" / "train.parquet", columns)
    # The tiny model has 64 numbers, of which 256 cannot be kept.
    small = {**output, **({"truncate_dim": 16} if "truncate_dim" in output else {})}
    assert make_spec(output=output).output.dtype == output["dtype"]
    plan = set_up(make_spec(output=small, dataset={"path": str(data)})).plan
    run_task(Layout(Path(plan.workspace)).run(plan.run_id).plan, "train", 0)
    gather_run(plan)
    source = open_source(plan)
    assert (source.rows, source.encoding.dtype) == (12, output["dtype"])
    assert source.encoding.dim == small.get("truncate_dim", source.encoding.dim)
    (table,) = source.tables(["metadata"])
    kept = output.get("keep_columns", [])
    assert json.loads(table["metadata"][2].as_py()) == {name: columns[name][2] for name in kept}
