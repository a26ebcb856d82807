"""Maps as a person sees them: in a real browser, with no network but the page's own server."""

from __future__ import annotations

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

from chatspace.jobs.setup import set_up
from chatspace.plan.model import Plan
from chatspace.viz.colouring import Numbers
from chatspace.viz.map import MapRows, write_map
from tests.browser import Tab, open_tab
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
        assert n_coloured(tab) > 500
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


def n_coloured(tab: Tab) -> int:
    """Counts the coloured pixels of the viewer's map, once it has drawn for some seconds."""
    for _ in range(20):
        part = tab.pixels()[90:560, 60:960]
        n_pixels = int((np.ptp(part, axis=2) > 40).sum())
        if n_pixels > 500:
            break
        tab.page.wait_for_timeout(1000)
    return n_pixels


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
        shot = tab.pixels()
        legend = tab.page.inner_text("#legend")
        assert tab.asked == [page]
        assert tab.errors == []
    assert [name for name in ("slurm", "shard", "gather") if name in legend] == [
        "slurm",
        "shard",
        "gather",
    ]
    pixels = shot[100:850, 50:1100].reshape(-1, 3)  # the map, without its legend
    coloured = pixels[np.ptp(pixels, axis=1) > 60]
    assert len(coloured) > 500
    assert len(np.unique(coloured // 64, axis=0)) >= 3


LONG = "Introductory material about the language and its grammar, part {} of three"


@pytest.mark.timeout(120)
def test_map_page_cuts_long_names_in_the_middle_and_titles_them_whole(tmp_path: Path) -> None:
    names = [LONG.format("one"), LONG.format("two"), "a name of thirty letters, or so"] * 20
    xy = np.random.default_rng(0).normal(size=(60, 2))
    rows = MapRows(ids=names, texts=names, groups=names, xy=xy)
    _, html = write_map(rows, tmp_path, title="t", subtitle="s")
    with open_tab(html.as_uri()) as tab:
        buttons = tab.page.query_selector_all("#legend button")
        shown = [button.query_selector("span").inner_text() for button in buttons]
        assert [button.get_attribute("title").partition(":")[0] for button in buttons] == [
            LONG.format("one"),
            LONG.format("two"),
            "a name of thirty letters, or so",
        ]
        assert shown[2] == "a name of thirty letters, or so"
        assert all(re.match(r"Introductory.*….*of three$", name) for name in shown[:2])
        assert shown[0] != shown[1]
        for span in tab.page.query_selector_all("#legend span"):
            assert span.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
        buttons[0].click()
        pressed = [b.get_attribute("aria-pressed") for b in buttons]
        assert pressed == ["false", "true", "true"]
        tab.page.emulate_media(color_scheme="dark")
        tab.page.get_by_text("Fit").click()
        tab.page.wait_for_function(
            "() => [...document.querySelectorAll('#legend i')].every("
            "(dot, g) => { const like = document.createElement('i');"
            " like.style.background = data.groups[g].dark;"
            " return like.style.background === dot.style.background; })"
        )
        assert tab.errors == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_map_page_of_numbers_has_a_bar_whose_colours_the_points_have(
    tmp_path: Path, scheme: str
) -> None:
    values = np.append(np.linspace(0, 100, 400), [np.nan] * 20)
    xy = np.stack([np.linspace(-1, 1, 420), np.zeros(420)], axis=1)
    rows = MapRows(
        ids=[f"row {i}" for i in range(420)],
        texts=[""] * 420,
        groups=Numbers(name="score", values=values),
        xy=xy,
    )
    _, html = write_map(rows, tmp_path, title="t", subtitle="s")
    with open_tab(html.as_uri()) as tab:
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.wait_for_timeout(300)
        assert tab.page.inner_text("#scale").split() == [
            "score",
            "0",
            "20",
            "40",
            "60",
            "80",
            "100",
        ]
        assert tab.page.inner_text("#legend").split() == ["(none)", "20"]
        bar = tab.page.query_selector("#bar").bounding_box()
        pixels = tab.pixels()
        assert tab.errors == []
    x = int(bar["x"] + bar["width"] / 2)
    y0, y1 = int(bar["y"]), int(bar["y"] + bar["height"])
    ends = pixels[y1 - 3, x], pixels[y0 + 2, x]
    row = pixels[200:800, 30:1100]
    drawn = row[np.abs(row - row[5, 5]).sum(axis=2).argmax(axis=0), np.arange(row.shape[1])]
    for end, at in zip(ends, (0.06, 0.9), strict=True):  # along the points, from low to high
        hue = end - end.mean()
        seen = drawn[int(at * len(drawn))]
        assert (hue @ (seen - seen.mean())) > 0
    assert len(np.unique(drawn // 16, axis=0)) > 12
