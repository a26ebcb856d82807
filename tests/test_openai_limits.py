from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.openai_embed.limits import (
    BURST,
    Halted,
    RateLimiter,
    duration_s,
    retry_after_s,
    used_up_s,
)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def limiter_of(clock: Clock, **settings: float) -> RateLimiter:
    return RateLimiter(clock=clock, sleep=clock.sleep, **settings)


@given(
    requests_per_min=st.integers(10, 600),
    tokens_per_min=st.integers(1000, 100_000),
    needs=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
)
def test_acquire_never_lets_more_through_than_the_limits(
    requests_per_min: int, tokens_per_min: int, needs: list[int]
) -> None:
    clock = Clock()
    limiter = limiter_of(clock, requests_per_min=requests_per_min, tokens_per_min=tokens_per_min)
    sent: list[tuple[float, int]] = []
    for need in needs:
        limiter.acquire(need)
        sent.append((clock.now_s, need))
    for first, (start_s, _) in enumerate(sent):
        for last in range(first, len(sent)):
            span_min = (sent[last][0] - start_s) / 60
            inside = [need for _, need in sent[first : last + 1]]
            most = requests_per_min * (span_min + BURST) + 1
            assert len(inside) <= most + 1e-6
            burst = max(tokens_per_min * BURST, *needs)
            assert sum(inside) <= tokens_per_min * span_min + burst + max(needs) + 1e-6


@given(
    tokens_per_min=st.integers(1000, 100_000),
    requests=st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.1, 3.0)), min_size=1, max_size=40
    ),
)
def test_correct_keeps_what_is_really_used_below_the_limit(
    tokens_per_min: int, requests: list[tuple[int, float]]
) -> None:
    clock = Clock()
    limiter = limiter_of(clock, tokens_per_min=tokens_per_min)
    sent: list[tuple[float, float]] = []
    for estimate, times in requests:
        limiter.acquire(estimate)
        limiter.correct(estimate, estimate * times)
        sent.append((clock.now_s, estimate * times))
    largest = max(max(estimate, estimate * times) for estimate, times in requests)
    burst = max(tokens_per_min * BURST, largest)
    for first, (start_s, _) in enumerate(sent):
        used = 0.0
        for end_s, tokens in sent[first:]:
            used += tokens
            assert used <= tokens_per_min * (end_s - start_s) / 60 + burst + largest + 1e-6


def test_correct_gives_back_what_was_estimated_too_high() -> None:
    clock = Clock()
    limiter = limiter_of(clock, tokens_per_min=6000)
    for _ in range(50):
        limiter.acquire(1000)
        limiter.correct(1000, 100)
    assert clock.now_s == pytest.approx((50 * 100 - 100) / 100, abs=1.5)


def test_correct_without_a_limit_changes_nothing() -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    limiter.correct(1, 10**9)
    limiter.observe({"x-ratelimit-limit-tokens": "6000"})
    limiter.acquire(1000)
    assert clock.now_s == 0


def test_acquire_without_limits_never_waits() -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    for _ in range(1000):
        limiter.acquire(10**6)
    assert clock.now_s == 0


def test_acquire_of_more_than_a_bucket_holds_is_let_through_in_time() -> None:
    clock = Clock()
    limiter = limiter_of(clock, tokens_per_min=600)
    limiter.acquire(300)
    assert clock.now_s == pytest.approx(20, abs=0.5)  # 300 less the 100 there are, 10 a second


def test_acquire_shares_the_limits_of_the_account_among_tasks() -> None:
    clock = Clock()
    limiter = limiter_of(clock, requests_per_min=60, share=0.25)
    for _ in range(30):
        limiter.acquire(1)
    assert clock.now_s == pytest.approx((30 - 2.5) * 4, abs=1)
    assert limiter.limits() == {"requests": 60, "tokens": None}


def test_observe_takes_over_limits_that_nobody_gave() -> None:
    limiter = limiter_of(Clock(), requests_per_min=500)
    limiter.observe({"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "1000000"})
    assert limiter.limits() == {"requests": 500, "tokens": 1_000_000}


def test_observe_slows_down_when_others_use_the_account() -> None:
    clock = Clock()
    limiter = limiter_of(clock, tokens_per_min=60_000)
    limiter.observe({"x-ratelimit-remaining-tokens": "100"})
    limiter.acquire(1100)
    assert clock.now_s == pytest.approx(1, abs=0.3)


def test_observe_of_nothing_left_waits_for_the_reset() -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    limiter.observe({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"})
    limiter.acquire(1)
    assert clock.now_s == pytest.approx(12, abs=0.3)


def test_hold_keeps_every_request_back() -> None:
    clock = Clock()
    limiter = limiter_of(clock)
    limiter.hold(5)
    limiter.hold(2)  # a shorter one changes nothing
    limiter.acquire(1)
    assert clock.now_s == pytest.approx(5, abs=0.3)


def test_acquire_of_much_is_let_through_beside_many_small_ones() -> None:
    # A small one goes through every 20 ms, so that the bucket is never as full as the large needs.
    limiter = RateLimiter(tokens_per_min=60_000, share=0.2)
    limiter.acquire(2000)
    done = threading.Event()

    def ask_for_little() -> None:
        with suppress(Halted):
            while not done.is_set():
                limiter.acquire(20)

    threads = [threading.Thread(target=ask_for_little) for _ in range(4)]
    for thread in threads:
        thread.start()
    threading.Timer(5, limiter.halt.set).start()
    limiter.acquire(300)
    done.set()
    for thread in threads:
        thread.join()


def test_acquire_ends_when_the_task_does() -> None:
    limiter = RateLimiter(requests_per_min=1)
    limiter.hold(60)
    threading.Timer(0.1, limiter.halt.set).start()
    with pytest.raises(Halted):
        limiter.acquire(1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("7", 7), ("", None),
     ("soon", None), ("5 apples", None)],
)  # fmt: skip
def test_duration_s_reads_what_headers_say(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    ("requests", "tokens", "seconds"),
    [
        (("0", "4s"), ("9", "60s"), 4),
        (("0", "4s"), ("0", "1m2s"), 62),
        (("1", "4s"), ("9", "60s"), None),
        (("0", ""), ("", ""), None),
        (("0", "soon"), ("0", "2h"), 3600),
    ],
)
def test_used_up_s_is_until_the_last_limit_that_is_used_up_begins_anew(
    requests: tuple[str, str], tokens: tuple[str, str], seconds: float | None
) -> None:
    headers = {}
    for name, (left, reset) in {"requests": requests, "tokens": tokens}.items():
        headers |= {f"x-ratelimit-remaining-{name}": left, f"x-ratelimit-reset-{name}": reset}
    assert used_up_s(headers) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 -0000"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30"}, 30),
        ({"retry-after": "later"}, None),
        ({"retry-after": "999999"}, 3600),
        ({}, None),
    ],
)
def test_retry_after_s_reads_seconds_and_dates(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers, datetime(2026, 11, 21, 12, tzinfo=UTC)) == seconds
