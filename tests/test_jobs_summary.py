from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from chatspace.jobs.summary import Summary, format_bytes, render_summary
from chatspace.plan.work import StageTimes

SUMMARY = Summary(
    run_id="demo-1a2b3c4d",
    model="all-MiniLM-L6-v2",
    embedding_dim=384,
    rows_in=5016,
    rows_embedded=4877,
    rows_skipped={"empty_text": 139},
    rows_truncated=713,
    elapsed_s=92.4,
    tokens_per_s=5810.2,
    n_tokens=513_000,
    n_padded_tokens=570_000,
    stages={
        "loader": StageTimes(busy_s=1.0, idle_s=9.0),
        "encoder": StageTimes(busy_s=10.0, idle_s=0.0),
        "writer": StageTimes(),
    },
    shards=12,
    bytes_written=10_512_345,
    manifests=["workspace/indexes/all-MiniLM-L6-v2/python-docs/train/manifest.json"],
    pictures=["map.png", "map.html"],
    next_steps=["chatspace verify demo-1a2b3c4d"],
)


def _shown(summary: Summary, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_summary(summary))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_render_summary_at_80_columns_shows_every_figure() -> None:
    shown = _shown(SUMMARY)
    assert max(len(line) for line in shown.splitlines()) <= 80
    for figure in (
        "5,016",
        "4,877",
        "empty_text 139",
        "713",
        "5,810",
        "10.0%",
        "12 shards",
        "1:33",
    ):
        assert figure in shown
    for line in (*SUMMARY.manifests, *SUMMARY.pictures, *SUMMARY.next_steps):
        assert line in shown


def test_render_summary_names_chunks_only_where_there_are_some() -> None:
    assert "chunks" not in _shown(SUMMARY)
    assert re.search(r"chunks +61,002 ", _shown(replace(SUMMARY, chunks=61_002)))


def test_render_summary_stage_bars_show_the_busy_share() -> None:
    lines = [line for line in _shown(SUMMARY).splitlines() if "busy" in line]
    assert [line.count("█") for line in lines] == [2, 24, 0]
    assert "10%" in lines[0] and "100%" in lines[1]


def test_render_summary_of_a_complete_run_says_that_every_row_is_accounted_for() -> None:
    assert "demo-1a2b3c4d  5,016 rows, every one accounted for" in _shown(SUMMARY)


def test_render_summary_of_an_incomplete_run_says_how_many_rows_are_missing() -> None:
    shown = _shown(replace(SUMMARY, rows_embedded=4000))
    assert "877 of 5,016 rows are missing" in shown


def test_render_summary_folds_a_long_path_and_loses_nothing() -> None:
    path = "/scratch/" + "a" * 150 + "/manifest.json"
    shown = _shown(replace(SUMMARY, manifests=[path]))
    assert path in "".join(shown.split())


def test_render_summary_takes_square_brackets_as_they_are() -> None:
    assert "map[1].html" in _shown(replace(SUMMARY, pictures=["map[1].html"], model="[b]m"))
    assert "[b]m" in _shown(replace(SUMMARY, model="[b]m"))


def test_render_summary_says_nothing_of_padding_where_nobody_knows_it() -> None:
    assert "570,000 computed, 10.0% of them padding" in _shown(SUMMARY)
    shown = _shown(replace(SUMMARY, n_padded_tokens=0))
    assert "513,000" in shown and "padding" not in shown


def test_summary_without_tokens_has_no_padding_waste() -> None:
    assert replace(SUMMARY, n_tokens=0, n_padded_tokens=0).padding_waste == 0.0


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")]
)
def test_format_bytes_uses_binary_units(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


def test_render_summary_says_that_the_tokens_of_repeated_work_count_again() -> None:
    assert "done again" not in _shown(SUMMARY)
    assert "1 shard done again, counted each time" in _shown(replace(SUMMARY, shards_redone=1), 120)
