from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatspace.errors import UnfitEnvironmentError
from chatspace.openai_embed.asking import Asker, Embeds
from chatspace.openai_embed.client import AgainError, TooLongError
from chatspace.openai_embed.limits import RateLimiter
from chatspace.openai_embed.tokens import EstimatedCounter
from tests.test_openai_limits import Clock


class Refusing:
    """Refuses every request, and remembers when."""

    def __init__(self, clock: Clock, after_s: float | None, n_times: int = 10**9) -> None:
        self.clock, self.after_s, self.left = clock, after_s, n_times
        self.times: list[float] = []

    def embed(
        self, name: str, texts: Sequence[str], dimensions: int | None
    ) -> tuple[Any, Mapping[str, str]]:
        self.times.append(self.clock())
        self.left -= 1
        if self.left < 0:
            return {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}, {}
        raise AgainError("429 slow down", self.after_s, is_limit=True)


def asker_of(clock: Clock, client: Embeds, give_up_s: float = 60, **limits: float) -> Asker:
    return Asker(
        client=client,
        limiter=RateLimiter(clock=clock, sleep=clock.sleep, **limits),
        counter=EstimatedCounter("tiny"),
        name="tiny",
        dimensions=None,
        dim=None,
        on_too_long="skip",
        give_up_s=give_up_s,
    )


def test_ask_when_told_to_come_back_at_once_backs_off_all_the_same() -> None:
    clock = Clock()
    client = Refusing(clock, after_s=0.0)
    with pytest.raises(UnfitEnvironmentError, match="No answer: tiny"):
        asker_of(clock, client).ask(["a"], 1)
    assert len(client.times) < 12
    gaps = [b - a for a, b in zip(client.times, client.times[1:], strict=False)]
    assert gaps[0] >= 0.25 and gaps[-1] > 8


@pytest.mark.parametrize(("after_s", "n_attempts"), [(None, 2), (1.0, 2), (30.0, 1)])
def test_ask_while_a_person_waits_tries_once_more_and_waits_for_nothing_long(
    after_s: float | None, n_attempts: int
) -> None:
    clock = Clock()
    client = Refusing(clock, after_s=after_s)
    asker = replace(asker_of(clock, client, give_up_s=5, requests_per_min=1), is_awaited=True)
    with pytest.raises(UnfitEnvironmentError, match=rf"No answer: tiny; {n_attempts} attempts"):
        asker.ask(["a"], 1)
    assert len(client.times) == n_attempts and clock.now_s < 3


def test_ask_while_a_person_waits_is_not_repeated_after_a_long_silence() -> None:
    clock = Clock()

    class Silent(Refusing):
        def embed(self, *_: Any) -> tuple[Any, Mapping[str, str]]:
            self.times.append(self.clock())
            self.clock.now_s += 10
            raise AgainError("no answer within 10 s")

    client = Silent(clock, None)
    asker = replace(asker_of(clock, client, give_up_s=5), is_awaited=True)
    with pytest.raises(UnfitEnvironmentError, match=r"the last: no answer within 10 s\. Look at"):
        asker.ask(["a"], 1)
    assert client.times == [0]


def test_patiently_waits_as_asked_where_no_limiter_lets_it_through() -> None:
    clock = Clock()
    client = Refusing(clock, after_s=30.0, n_times=3)
    asker_of(clock, client, give_up_s=1).patiently(lambda: client.embed("tiny", ["a"], None))
    assert client.times == pytest.approx([0, 30, 60, 90])


def test_patiently_after_very_many_tries_still_waits() -> None:
    clock = Clock()
    client = Refusing(clock, after_s=None, n_times=1100)
    asker = asker_of(clock, client, give_up_s=1e9)
    asker.patiently(lambda: client.embed("tiny", ["a"], None))
    assert len(client.times) == 1101
    assert 30 <= client.times[-1] - client.times[-2] <= 60.1


def test_ask_does_not_give_up_for_the_time_that_its_own_limits_take() -> None:
    clock = Clock()
    client = Refusing(clock, after_s=None, n_times=2)
    asker = asker_of(clock, client, give_up_s=5, requests_per_min=1)
    answer = asker.ask(["a"], 1)
    assert answer.vectors.shape == (1, 2)
    assert clock.now_s > 120


class Charging:
    """Answers each request, and charges it with more tokens than were expected."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def embed(
        self, name: str, texts: Sequence[str], dimensions: int | None
    ) -> tuple[Any, Mapping[str, str]]:
        usage = {"total_tokens": self.n_tokens}
        return {"data": [{"index": 0, "embedding": [1.0, 0.0]}], "usage": usage}, {}


@pytest.mark.parametrize("n_used", [70, 100, 130])
def test_ask_charges_the_limit_with_what_the_endpoint_counts(n_used: int) -> None:
    clock = Clock()
    asker = asker_of(clock, Charging(n_used), tokens_per_min=6000)  # 1,000 of them at once
    for _ in range(60):
        asker.ask(["x"], 100)
    sent_before_the_last = 59 * n_used
    assert clock.now_s == pytest.approx((sent_before_the_last - 1000 + 100) / 100, abs=1)


@pytest.mark.parametrize("refusal", [AgainError, TooLongError])
def test_ask_that_is_refused_takes_over_what_the_headers_say(
    refusal: type[AgainError] | type[TooLongError],
) -> None:
    clock = Clock()

    class Full(Refusing):
        def embed(self, *_: Any) -> tuple[Any, Mapping[str, str]]:
            raise refusal("no", headers={"x-ratelimit-limit-requests": "60"})

    asker = asker_of(clock, Full(clock, None), give_up_s=0.1)
    with pytest.raises((UnfitEnvironmentError, TooLongError)):
        asker.ask(["a"], 1)
    assert asker.limiter.limits()["requests"] == 60
