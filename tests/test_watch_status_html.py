"""What notebooks show of runs: whole, escaped and small HTML."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from chatspace.jobs.causes import CAUSES
from chatspace.watch.status import FailureGroup, RunStatus, SplitStatus
from chatspace.watch.status_html import (
    LONGEST_ERROR,
    MAX_RUNS,
    MAX_SPLITS,
    runs_html,
    status_html,
    status_line,
)

HOSTILE = "<script>alert('x')</script>&\"<b>"
LARGEST_BYTES = 30_000


def split_of(name: str = "train", *, rows_done: int = 40) -> SplitStatus:
    return SplitStatus(
        split=name,
        shards=10,
        shards_done=rows_done // 10,
        rows=100,
        rows_done=rows_done,
        slices=2,
        slices_done=0,
        manifest=None,
    )


def status_of(**values: Any) -> RunStatus:
    status = RunStatus(
        run_id="docs-01234567",
        kind="embed",
        model="/models/tiny",
        folder="/ws/runs/docs-01234567",
        created_at="2026-01-02T03:04:05+00:00",
        state="running",
        is_active=True,
        rows=100,
        rows_done=40,
        splits=(split_of(),),
        tasks={"running": 2, "pending": 1},
        jobs={"RUNNING": 2, "PENDING": 2},
        failures={},
        failure_groups=(),
        stages={},
        rows_per_s=12.5,
        tokens_per_s=1000.0,
        eta_s=75.0,
        n_requeues=1,
        gpus_in_use=2,
        gather="waiting",
        slurm="answered",
    )
    return replace(status, **values)


def failure(cause: str, error: str = "no message") -> FailureGroup:
    return FailureGroup(
        cause=cause,
        count=2,
        task="train 1",
        error=error,
        log="/home/ada/logs/docs-01234567-7_1.out",
        next_step=CAUSES[cause],
    )


class Reader(HTMLParser):
    """Reads the text, and fails where a tag is not closed or is not one that is expected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> str:
    """Returns the text of HTML that is whole and has no tags but those of plain contents."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert reader.tags <= {"div", "span", "b", "br", "code", "table", "tr", "th", "td"}
    return " ".join(reader.words)


def test_status_html_tells_state_rows_tasks_rate_and_eta() -> None:
    text = read(status_html(status_of()))
    for words in ("docs-01234567", "running", "40 of 100 rows", "4 of 10 shards", "pending"):
        assert words in text
    for words in ("12.5 rows/s", "ETA 1:15", "2 GPUs in use", "requeued 1×", "gather job waiting"):
        assert words in text


def test_status_html_groups_failures_with_their_next_step() -> None:
    text = read(status_html(status_of(failure_groups=(failure("gpu_memory", "CUDA is full"),))))
    assert "2, such as train 1" in text
    assert "CUDA is full" in text
    assert "docs-01234567-7_1.out" in text
    assert CAUSES["gpu_memory"] in text


@pytest.mark.parametrize(
    "values",
    [
        {"run_id": HOSTILE, "folder": HOSTILE},
        {"splits": (split_of(HOSTILE),)},
        {"failure_groups": (failure("bug", HOSTILE),)},
    ],
)
def test_status_html_text_from_outside_is_escaped(values: dict[str, Any]) -> None:
    html = status_html(status_of(**values))
    assert HOSTILE in read(html)
    assert "<script" not in html


def test_runs_html_text_from_outside_is_escaped() -> None:
    html = runs_html([status_of(run_id=HOSTILE, model=HOSTILE)], Path("/ws"))
    assert HOSTILE in read(html)
    assert "<script" not in html
    assert HOSTILE in read(runs_html([], Path(f"/{HOSTILE}")))


@pytest.mark.parametrize(("done", "width"), [(0, "0.0%"), (99_999, "99.9%"), (100_000, "100.0%")])
def test_status_html_bar_is_full_only_of_all_rows(done: int, width: str) -> None:
    split = replace(split_of(), rows=100_000, rows_done=done)
    assert f"width:{width}" in status_html(status_of(splits=(split,)))


def test_status_html_says_when_slurm_does_not_answer() -> None:
    words = "SLURM does not answer"
    assert words in read(status_html(status_of(slurm="silent")))
    assert words not in read(status_html(status_of()))


def test_status_html_of_much_stays_small() -> None:
    groups = tuple(failure(cause, "x" * 10_000) for cause in CAUSES)
    splits = tuple(split_of(f"split-{i}") for i in range(100))
    html = status_html(status_of(splits=splits, failure_groups=groups))
    assert len(html) < LARGEST_BYTES
    text = read(html)
    assert f"and {100 - MAX_SPLITS} more splits" in text
    assert f"{'x' * LONGEST_ERROR}…" in text


def test_runs_html_of_many_shows_the_latest() -> None:
    runs = [status_of(run_id=f"docs-{i:08d}") for i in range(1000)]
    html = runs_html(runs, Path("/ws"))
    assert "docs-00000000" in html
    assert f"docs-{MAX_RUNS:08d}" not in html
    assert f"and {1000 - MAX_RUNS} older runs" in read(html)


def test_status_line_is_one_line() -> None:
    line = status_line(status_of(failures={"train 1": "a\nb"}, slurm="silent"))
    assert line == (
        "docs-01234567: running · 40 of 100 rows · 12.5 rows/s · ETA 1:15 · 1 task failed · "
        "SLURM does not answer"
    )
