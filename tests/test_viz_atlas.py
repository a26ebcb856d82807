"""Maps as a person sees them: in a real browser, with no network but the page's own server."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chatspace.jobs.setup import set_up
from chatspace.plan.model import Plan
from tests.browser import open_tab
from tests.conftest import SpecMaker, texts, write_parquet
from tests.test_sampled_run import run_all

pytestmark = [pytest.mark.browser, pytest.mark.slow]
N_ROWS = 150


@pytest.fixture
def plan(make_spec: SpecMaker, tmp_path: Path) -> Plan:
    """A gathered run of 150 rows in three topics."""
    columns = {"text": texts(N_ROWS), "topic": ["slurm", "shard", "gather"] * (N_ROWS // 3)}
    write_parquet(tmp_path / "topics" / "train.parquet", columns)
    spec = make_spec(dataset={"path": str(tmp_path / "topics")}, output={"keep_columns": ["topic"]})
    made = set_up(spec).plan
    run_all(made)
    return made


@pytest.fixture
def address(plan: Plan) -> Iterator[str]:
    """Where `chatspace atlas` serves the run."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "chatspace", "atlas", plan.run_id, "--method", "pca"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--workspace", plan.workspace],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        url = f"http://localhost:{port}/"
        deadline = time.monotonic() + 200
        while not answers(url):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(400)
def test_atlas_shows_the_points_with_their_text_and_columns(address: str) -> None:
    with open_tab(address) as tab:
        tab.page.get_by_text("150 / 150 points").wait_for(timeout=90_000)
        body = tab.page.inner_text("body")
        assert "WebGPU is unavailable" not in body
        assert "Error" not in body
        for name in ("slurm", "shard", "gather"):
            assert name in body
        card = tab.page.get_by_text(re.compile(r"^topics/train/\d+$"))
        n_rows_of_table = card.count()
        # The pointer goes over the map, resting everywhere for a moment, until it meets a point.
        for x, y in ((x, y) for y in range(120, 540, 16) for x in range(120, 900, 16)):
            tab.page.mouse.move(x, y)
            tab.page.wait_for_timeout(80)
            if card.count() > n_rows_of_table:
                break
        assert card.count() == n_rows_of_table + 1
        assert tab.asked_of_others(address) == []
        assert tab.errors == []


@pytest.mark.timeout(300)
def test_map_page_draws_its_points_and_asks_nobody(plan: Plan, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chatspace", "map", plan.run_id, "--method", "pca"]
    done = subprocess.run(
        [*command, "--color", "topic", "--workspace", plan.workspace, "--out", str(tmp_path / "m")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "m" / "map.html").as_uri()
    with open_tab(page) as tab:
        tab.page.get_by_text("150 rows").wait_for(timeout=30_000)
        shot = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
        legend = tab.page.inner_text("#legend")
        assert tab.asked == [page]
        assert tab.errors == []
    assert [name for name in ("slurm", "shard", "gather") if name in legend] == [
        "slurm",
        "shard",
        "gather",
    ]
    pixels = np.asarray(shot)[100:850, 50:1100].reshape(-1, 3)  # the map, without its legend
    coloured = pixels[np.ptp(pixels.astype(int), axis=1) > 60]
    assert len(coloured) > 500
    assert len(np.unique(coloured // 64, axis=0)) >= 3
