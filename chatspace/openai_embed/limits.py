"""The rate limiter: requests and tokens a minute, as the account has them and the endpoint says."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Buckets hold this part of a minute, so that a task does not begin with a minute's worth at once.
BURST = 1 / 6
MOST_HELD_S = 3600.0
_STEP_S = 0.25  # how soon what waits sees that the task ends
LIMITS = ("requests", "tokens")  # as headers name them
SHORTEST_S = 1e-3  # a shorter wait may be lost in the rounding of the clock
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Halted(Exception):
    """The task ends: raised in what waits, never outside."""


def duration_s(text: str) -> float | None:
    """Returns seconds of `1s`, `6m0s`, `20ms` or a plain number, None for anything else.

    Source: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    text = text.strip()
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Returns how long an answer asks to wait, None where it does not.

    Source: Retry-After, seconds or a date, https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if (ms := duration_s(headers.get("retry-after-ms", ""))) is not None:
        return min(ms / 1000, MOST_HELD_S)
    text = headers.get("retry-after", "")
    wait_s = duration_s(text)
    if wait_s is None and text:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:  # no zone, or -0000
            moment = moment.replace(tzinfo=UTC)
        wait_s = (moment - (now or datetime.now(UTC))).total_seconds()
    return None if wait_s is None else min(max(0.0, wait_s), MOST_HELD_S)


def used_up_s(headers: Mapping[str, str]) -> float | None:
    """Returns how long nothing is left of a limit, None where something is, or nothing is said.

    Source: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    waits = [
        duration_s(headers.get(f"x-ratelimit-reset-{name}", ""))
        for name in LIMITS
        if duration_s(headers.get(f"x-ratelimit-remaining-{name}", "")) == 0
    ]
    known = [wait_s for wait_s in waits if wait_s]
    return min(max(known), MOST_HELD_S) if known else None


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """What may still be sent of one sort, refilled evenly; without a limit it is never empty."""

    per_min: float | None
    is_given: bool
    level: float = 0.0
    at_s: float = 0.0

    def refill(self, now_s: float, need: float) -> None:
        if self.per_min is not None:
            full = max(self.per_min * BURST, need)
            self.level = min(full, self.level + (now_s - self.at_s) * self.per_min / 60)
        self.at_s = now_s

    def wait_s(self, need: float) -> float:
        if self.per_min is None or self.level >= need:
            return 0.0
        return (need - self.level) * 60 / self.per_min

    def set_limit(self, per_min: float) -> None:
        if self.per_min is None:
            self.level = per_min * BURST
        self.per_min = per_min


@dataclass(slots=True)
class RateLimiter:
    """Lets a request through when the account's limits allow it; shared by a task's threads.

    Args:
        requests_per_min: limit of requests, None until a header says one.
        tokens_per_min: limit of tokens, None until a header says one.
        share: part of the limits that this task may use.
        clock: seconds, never going back.
        sleep: waits; called with at most a second, so that `halt` is seen.
    """

    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    share: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    halt: threading.Event = field(default_factory=threading.Event)
    waited_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Condition = field(default_factory=threading.Condition)
    _queue: deque[object] = field(default_factory=deque)
    _held_until_s: float = 0.0
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        now_s = self.clock()
        given = {"requests": self.requests_per_min, "tokens": self.tokens_per_min}
        for name, per_min in given.items():
            mine = None if per_min is None else per_min * self.share
            self._buckets[name] = _Bucket(
                per_min=mine, is_given=mine is not None, level=(mine or 0) * BURST, at_s=now_s
            )

    def acquire(self, n_tokens: float) -> None:
        """Waits until one request of so many tokens may be sent, and counts it.

        Requests wait in a queue: small ones would else take what a large one waits for, again and
        again.

        Raises:
            Halted: the task ends.
        """
        place = object()
        try:
            with self._turn:
                self._queue.append(place)
                while self._queue[0] is not place:
                    self._turn.wait(_STEP_S)
                    self.check()
            self._take({"requests": 1.0, "tokens": float(n_tokens)})
        finally:
            with self._turn:
                self._queue.remove(place)
                self._turn.notify_all()

    def _take(self, needs: Mapping[str, float]) -> None:
        while True:
            self.check()
            with self._lock:
                now_s = self.clock()
                for name, need in needs.items():
                    self._buckets[name].refill(now_s, need)
                wait_s = max(
                    self._held_until_s - now_s,
                    *(self._buckets[name].wait_s(need) for name, need in needs.items()),
                )
                if wait_s <= 0:
                    for name, need in needs.items():
                        self._buckets[name].level -= need
                    return
            self.pause(min(max(wait_s, SHORTEST_S), 1.0))

    def check(self) -> None:
        """Returns unless the task ends.

        Raises:
            Halted: it does.
        """
        if self.halt.is_set():
            raise Halted

    def pause(self, wait_s: float) -> None:
        """Waits in steps of at most a second.

        Raises:
            Halted: the task ends.
        """
        end_s = self.clock() + wait_s
        while (left_s := end_s - self.clock()) > 0:
            self.check()
            step_s = min(max(left_s, SHORTEST_S), _STEP_S)
            self.sleep(step_s)
            with self._lock:
                self.waited_s += step_s

    def hold(self, wait_s: float) -> None:
        """Lets no request through for so long: what an answer with Retry-After asks for."""
        with self._lock:
            self._held_until_s = max(self._held_until_s, self.clock() + wait_s)

    def correct(self, n_taken: float, n_used: float) -> None:
        """Puts right what a request took with `acquire`, once its answer says what it used.

        What was estimated too low is taken now, also below nothing: what comes next waits for it.
        """
        with self._lock:
            self._buckets["tokens"].level += n_taken - n_used

    def observe(self, headers: Mapping[str, str]) -> None:
        """Takes over what an answer, or a refusal, says of the limits and what is left of them.

        A limit that the user gave stays. What is left counts for the whole account, so that other
        programs that use the same key slow this one down.
        """
        for name, bucket in self._buckets.items():
            limit = duration_s(headers.get(f"x-ratelimit-limit-{name}", ""))
            left = duration_s(headers.get(f"x-ratelimit-remaining-{name}", ""))
            with self._lock:
                if limit and not bucket.is_given:
                    bucket.set_limit(limit * self.share)
                if left is not None and bucket.per_min is not None:
                    bucket.level = min(bucket.level, left)
        if (wait_s := used_up_s(headers)) is not None:
            self.hold(wait_s)

    def limits(self) -> dict[str, float | None]:
        """Returns the limits of the whole account as they are known by now, a minute."""
        return {
            name: None if bucket.per_min is None else bucket.per_min / self.share
            for name, bucket in self._buckets.items()
        }
