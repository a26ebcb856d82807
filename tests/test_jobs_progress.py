from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from chatspace.jobs.progress import LiveProgress, SliceProgress, format_duration


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _progress(rows: int, n_tokens: int, elapsed_s: float) -> dict[str, object]:
    stage = "embedding" if n_tokens else "loading model"
    return {"rows": rows, "n_tokens": n_tokens, "elapsed_s": elapsed_s, "stage": stage}


def test_slice_progress_speed_leaves_out_the_time_that_loading_took() -> None:
    state = SliceProgress(label="0", rows_total=1000)
    for event in (_progress(0, 0, 0.0), _progress(10, 1000, 60.0), _progress(110, 11_000, 61.0)):
        state.apply(event)
    assert state.tokens_per_s == pytest.approx(10_000)
    assert state.eta_s == pytest.approx(890 / 100)


def test_slice_progress_without_its_own_clock_takes_the_time_of_the_log() -> None:
    state = SliceProgress(label="0", rows_total=1000)
    for second in (10, 11):
        time = f"2026-01-01T00:00:{second}.500+00:00"
        state.apply({"time": time, "event": "progress", "rows": second, "n_tokens": second * 100})
    assert state.tokens_per_s == pytest.approx(100)


def test_live_progress_between_two_slices_keeps_the_last_speed() -> None:
    progress = LiveProgress([("0", 100), ("1", 100)], console=_console())
    for event in (_progress(10, 100, 1.0), _progress(20, 200, 2.0), {"event": "finished"}):
        progress.update(0, event)
    assert progress.overall().eta_s == pytest.approx(10)


def test_slice_progress_speed_follows_a_change_slowly() -> None:
    state = SliceProgress(label="0", rows_total=1000)
    for second in range(1, 12):
        state.apply(_progress(second, second * 1000, second))
    state.apply(_progress(12, 21_000, 12.0))
    assert 1000 < state.tokens_per_s < 3000


def test_slice_progress_time_left_does_not_follow_the_lengths_within_a_shard() -> None:
    state = SliceProgress(label="0", rows_total=10_000)
    rows, left = 0, []
    for second in range(1, 81):  # shards of 20 s: one row a second, two, ... twenty
        rows += 1 + (second - 1) % 20
        state.apply(_progress(rows, second * 1000, float(second)))
        if second >= 40:
            left.append(state.eta_s)
    known = [eta_s for eta_s in left if eta_s is not None]
    assert len(known) == len(left) and max(known) < 1.3 * min(known)


def test_slice_progress_counts_resumed_rows_as_done_and_not_as_speed() -> None:
    state = SliceProgress(label="0", rows_total=1000)
    state.apply({"event": "started", "rows_done": 400})
    state.apply(_progress(10, 1000, 1.0))
    state.apply(_progress(20, 2000, 2.0))
    assert state.rows_done == 420
    assert state.rows_per_s == pytest.approx(10)


def test_slice_progress_second_attempt_starts_its_counters_again() -> None:
    state = SliceProgress(label="0", rows_total=100)
    state.apply({"event": "started", "rows_done": 0})
    state.apply(_progress(50, 5000, 5.0))
    state.apply({"event": "interrupted"})
    state.apply({"event": "started", "rows_done": 32})
    assert (state.rows_done, state.n_tokens, state.is_ended) == (32, 0, False)


def test_slice_progress_finished_has_all_rows() -> None:
    state = SliceProgress(label="0", rows_total=100, rows_resumed=40)
    state.apply({"event": "finished"})
    assert (state.rows_done, state.stage, state.eta_s) == (100, "done", 0.0)


def test_slice_progress_unknown_event_changes_nothing() -> None:
    state = SliceProgress(label="0", rows_total=100)
    state.apply({"event": "note", "rows": 7})
    assert state == SliceProgress(label="0", rows_total=100)


def test_live_progress_without_a_terminal_writes_a_line_every_five_seconds() -> None:
    clock, console = Clock(), _console()
    with LiveProgress([("train 0", 100)], console=console, clock=clock) as progress:
        for second in range(12):
            clock.now_s = float(second)
            progress.update(0, _progress(second, second * 100, second))
        assert len(_text(console).splitlines()) == 2
        progress.update(0, {"event": "finished"})
    assert _text(console).splitlines()[0] == "5/100 rows (5%), 0/1 slices, 100 tokens/s, ETA 1:35"
    assert _text(console).splitlines()[-1] == "100/100 rows (100%), done"


def test_live_progress_tells_at_once_why_a_slice_failed() -> None:
    console = _console()
    with LiveProgress([("train 0", 9), ("train 1", 9)], console=console) as progress:
        progress.update(1, {"event": "failed", "message": "Model not found: [red]x[/red]"})
    first, last = _text(console).splitlines()
    assert first == "slice train 1 failed: Model not found: [red]x[/red]"
    assert last == "0/18 rows (0%), 0/2 slices, 1 failed"


def test_live_progress_eta_leaves_out_rows_of_failed_slices() -> None:
    progress = LiveProgress([("0", 100), ("1", 100)], console=_console())
    progress.update(0, _progress(10, 100, 1.0))
    progress.update(0, _progress(20, 200, 2.0))
    progress.update(1, {"event": "failed"})
    assert progress.overall().eta_s == pytest.approx(8)


def test_live_progress_table_shows_each_slice_and_the_whole() -> None:
    console = _console()
    progress = LiveProgress([("train 0", 1250), ("train 1", 1250)], rows_done={1: 1250})
    progress.update(0, _progress(100, 10_000, 2.0))
    progress.update(0, _progress(200, 20_000, 4.0))
    progress.update(1, {"event": "finished"})
    console.print(progress.render())
    lines = [" ".join(line.split()) for line in _text(console).splitlines()]
    assert lines[0] == "slice rows tokens/s ETA"
    assert lines[1].endswith("200/1,250 5,000 21s embedding")
    assert lines[2].endswith("1,250/1,250 done")
    assert lines[3].endswith("1,450/2,500 5,000 21s 1/2 slices")


def test_live_progress_with_many_slices_shows_those_at_work() -> None:
    console = _console()
    progress = LiveProgress([(f"train {index}", 10) for index in range(100)])
    for index in range(60):
        progress.update(index, {"event": "finished"})
    progress.update(70, _progress(5, 50, 1.0))
    console.print(progress.render())
    assert "train 70" in _text(console)
    assert "… 84 more" in _text(console)
    assert len(_text(console).splitlines()) == 1 + 16 + 2


def test_live_progress_in_a_terminal_draws_the_table() -> None:
    console = _console(terminal=True)
    with LiveProgress([("train 0", 10)], console=console) as progress:
        progress.update(0, {"event": "finished"})
    assert "10/10" in _text(console)


def test_live_progress_module_does_not_import_rich() -> None:
    code = "import sys, chatspace.jobs.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (float("inf"), "–"),
        (0, "0s"),
        (47.2, "48s"),
        (60, "1:00"),
        (3599.5, "1:00:00"),
        (7509, "2:05:09"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
    ],
)
def test_format_duration_reads_as_people_write_it(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
