from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatspace.plan.model import Plan
from chatspace.watch.tails import Tail, read_tail, read_tails
from tests.plans import plan_of
from tests.runs import layout_of, log_events, progress, started


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def tail_of(plan: Plan, *events: dict[str, Any] | str, n_bytes: int = 1 << 16) -> Tail:
    tail = read_tail(log_events(plan, "train", 0, *events), n_bytes)
    assert tail is not None
    return tail


def test_read_tail_rate_is_that_of_one_stage_of_the_latest_attempt(plan: Plan) -> None:
    before = [progress("12_0.r0", float(t), 1000 * t) for t in range(9)]
    loading = [progress("12_0.r1", float(t), 0, stage="loading model") for t in range(20)]
    steps = [progress("12_0.r1", 20.0 + t, 7 * t) for t in range(5)]
    tail = tail_of(plan, started("12_0.r0"), *before, started("12_0.r1"), *loading, *steps)
    assert (tail.rows_per_s, tail.tokens_per_s) == (7.0, 700.0)
    assert (tail.attempt, tail.ending) == ("12_0.r1", None)


@pytest.mark.parametrize(
    "steps",
    [
        [progress("a-1", 5.0, 10)],
        [progress("a-1", 5.0, 10), progress("a-1", 5.5, 20)],
        [progress("a-1", 5.0, 10), progress("a-1", 50.0, 10)],
        [{"event": "progress", "rows": 3}],
        [{"event": "progress", "rows": "x", "elapsed_s": None, "stage": 1}],
    ],
    ids=["one point", "too short", "no rows", "no clock", "not numbers"],
)
def test_read_tail_says_no_rate_rather_than_a_wrong_one(
    plan: Plan, steps: list[dict[str, Any]]
) -> None:
    assert tail_of(plan, started("a-1"), *steps).rows_per_s is None


def test_read_tail_of_a_long_log_is_read_from_its_end(plan: Plan) -> None:
    steps = [progress("12_0.r0", float(t), t) for t in range(5000)]
    tail = tail_of(plan, started("12_0.r0"), *steps, n_bytes=4096)
    assert tail.rows_per_s == 1.0
    assert tail.attempt == "12_0.r0"


def test_read_tail_end_longer_than_what_is_read_first(plan: Plan) -> None:
    finished = {"event": "finished", "attempt": "12_0.r0", "notes": ["x" * 9000]}
    tail = tail_of(plan, started("12_0.r0"), finished, n_bytes=4096)
    assert tail.ending is not None
    assert tail.ending["event"] == "finished"


def test_read_tail_attempt_is_taken_from_the_head_where_the_end_has_none(plan: Plan) -> None:
    steps = [{"event": "progress", "note": "x" * 100}] * 100
    tail = tail_of(plan, started("12_0.r0", log="/logs/a.out"), *steps, n_bytes=4096)
    assert (tail.attempt, tail.log) == ("12_0.r0", "/logs/a.out")


def test_read_tail_end_of_a_later_attempt_is_not_the_story_of_an_earlier_one(plan: Plan) -> None:
    interrupted = {"event": "interrupted", "attempt": "12_0.r0"}
    ended = {"event": "ended", "attempt": "12_0.r1", "exit_code": 4}
    tail = tail_of(plan, started("12_0.r0"), interrupted, ended)
    assert tail.ending is not None
    assert (tail.ending["event"], tail.attempt) == ("ended", "12_0.r1")


def test_read_tail_torn_last_line_is_passed_over(plan: Plan) -> None:
    tail = tail_of(plan, started("12_0.r0"), {"event": "failed", "error": "x"}, '{"event": "pro')
    assert tail.ending is not None
    assert tail.ending["error"] == "x"


def test_read_tail_without_a_file_or_an_event_is_none(tmp_path: Path) -> None:
    assert read_tail(tmp_path / "none.jsonl") is None
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert read_tail(tmp_path / "empty.jsonl") is None


def test_read_tails_lanes_of_an_earlier_attempt_do_not_count(plan: Plan) -> None:
    old = {"event": "failed", "error": "old"}
    log_events(plan, "train", "00000.lane1", started("12_0.r0.lane1"), old, age_s=100)
    log_events(plan, "train", 0, started("12_0.r1"))
    tails = read_tails(layout_of(plan))
    assert list(tails) == ["train-00000"]
    assert tails["train-00000"].ending is None


@pytest.mark.parametrize(
    ("endings", "joined"),
    [
        (("finished", "finished"), "finished"),
        (("finished", None), None),
        (("interrupted", "finished"), "interrupted"),
        (("finished", "failed"), "failed"),
        (("ended", None), "ended"),
    ],
)
def test_read_tails_task_has_ended_when_all_its_lanes_have(
    plan: Plan, endings: tuple[str | None, ...], joined: str | None
) -> None:
    for lane, ending in zip(("", ".lane1"), endings, strict=True):
        last = [{"event": ending, "attempt": f"12_0.r0{lane}"}] if ending else []
        log_events(plan, "train", f"00000{lane}", started(f"12_0.r0{lane}"), *last)
    tail = read_tails(layout_of(plan))["train-00000"]
    assert (tail.ending and tail.ending["event"]) == joined
