"""The commands reduce, map and atlas, and what all commands on vectors say of themselves."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.main import get_command

from chatspace.cli import app
from chatspace.errors import InputError, OutputError
from chatspace.jobs.gather import gather_run
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.viz.atlas import address_lines, free_port
from tests.conftest import SpecMaker, texts, write_parquet
from tests.test_export_commands import chatspace, folder_of
from tests.vector_runs import random_vectors, vector_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    return folder_of(vector_run(tmp_path / "ws", random_vectors(40)))


def test_reduce_says_whether_points_are_new_or_replaced(run: str) -> None:
    words = ["reduce", run, "--method", "pca"]
    made = [chatspace(*words, "--metric", m) for m in ("cosine", "cosine", "euclidean")]
    assert "40 points by pca; " in made[0]
    assert "40 points by pca, made before with the same settings; " in made[1]
    assert "40 points by pca, in place of earlier ones; " in made[2]


def test_map_replaces_a_map_and_says_so_and_nothing_else(run: str, tmp_path: Path) -> None:
    words = ["map", run, "--method", "pca", "--out", str(tmp_path / "m")]
    assert "in place of" not in chatspace(*words)
    assert "40 points by pca, in place of an earlier map\n" in chatspace(*words)
    (tmp_path / "m" / "map.png").write_text("mine")
    with pytest.raises(OutputError, match=r"Not a map of chatspace: .*map.png;.*another --out"):
        chatspace(*words)
    assert (tmp_path / "m" / "map.png").read_text() == "mine"


def test_map_of_a_bad_folder_is_refused_before_any_work(run: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"No folder: --out .*/file/below.* another --out\.$"):
        chatspace("map", run, "--out", str(tmp_path / "file" / "below"))
    assert not list(Path(run).glob("maps/*"))


def test_free_port_passes_over_those_that_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 10
        assert port < free_port("localhost", port) < port + 10
    assert free_port("127.0.0.1", port) == port


@pytest.mark.parametrize(("host", "port"), [("192.0.2.7", 5055), ("no host", 5055)])
def test_free_port_of_another_machine_is_refused(host: str, port: int) -> None:
    with pytest.raises(InputError, match=f"Not an address of this machine: --host {host}"):
        free_port(host, port)


def test_address_lines_name_what_a_browser_can_open() -> None:
    name = socket.gethostname()
    assert "http://localhost:5055 " in address_lines("localhost", 5055)[0]
    assert address_lines("localhost", 5055)[1].endswith(f"ssh -L 5055:localhost:5055 {name}")
    assert "http://localhost:5055 " in address_lines("0.0.0.0", 5055)[0]
    assert address_lines("0.0.0.0", 5055)[1].endswith(f"http://{name}:5055")
    assert address_lines("::1", 5055)[0].startswith("Embedding Atlas: http://[::1]:5055 ")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_atlas_prints_its_address_and_how_to_stop_and_no_more(run: str, tmp_path: Path) -> None:
    port = free_port("localhost", 5400)
    chatspace("reduce", run, "--method", "pca")
    words = ["atlas", run, "--method", "pca", "--port", str(port)]
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatspace", *words], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(f"http://localhost:{port}/", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    first, *rest = printed.read_text().splitlines()
    assert first.endswith(": 40 points by pca")
    assert rest == address_lines("localhost", port)
    assert "Ctrl+C" in rest[0]


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            try:
                process.wait(timeout=0.3)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"no answer from {url}")


def test_maps_page_commands_work(make_spec: SpecMaker, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "maps.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    rows = {"text": texts(40), "topic": ["tides", "trees"] * 20}
    data = write_parquet(tmp_path / "rows" / "train.parquet", rows)
    spec = make_spec(dataset={"path": str(data)}, output={"keep_columns": ["topic"]})
    plan = set_up(spec).plan
    for number in range(len(plan.split("train").slices)):
        run_task(Layout(Path(plan.workspace)).run(plan.run_id).plan, "train", number)
    gather_run(plan)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[1] for words in lines] == ["reduce", "map", "atlas"]
    for program, command, *rest in lines:
        words = [folder_of(plan) if word == "RUN" else word for word in rest]
        assert program == "chatspace"
        if command == "atlas":  # serves until it is interrupted; here, its words are understood
            parsed(command, *words)
        else:
            assert "40 points by umap" in chatspace(command, *words)
    assert (Path(folder_of(plan)) / "maps" / "map.html").is_file()


def test_readme_command_lines_are_understood() -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(part, comments=True) for b in blocks for part in re.split(r"\n|&&", b)]
    seen = [parsed(*words[1:]) for words in commands if words[:1] == ["chatspace"]]
    assert {"export", "search", "duplicates", "map", "atlas"} <= set(seen)


def parsed(command: str, *words: str) -> str:
    """Returns the name of a command that takes these words; does not run it."""
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    found.make_context(command, list(words))
    return command


def help_of(width: int, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "chatspace", *words, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": str(width)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", ["export", "search", "duplicates", "reduce", "map", "atlas"])
def test_help_is_whole_and_has_an_example(command: str, width: int) -> None:
    text = help_of(width, command)
    assert f"\n  Example: chatspace {command} RUN" in text
    assert "..." not in text and "…" not in text and "[[" not in text
    assert max(map(len, text.splitlines())) <= width
    options = text.partition("Options:")[2]
    assert all(line.split()[1:] for line in options.splitlines() if line.startswith("  -"))
    summary = text.splitlines()[2].strip()
    (line,) = [s for s in help_of(80).splitlines() if s.startswith(f"  {command} ")]
    assert line.split(maxsplit=1)[1] == summary
