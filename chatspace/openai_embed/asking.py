"""Asking until there is an answer: retries, waiting, and inputs that turn out to be too long."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from chatspace.errors import InputError, ModelError, UnfitEnvironmentError
from chatspace.openai_embed.answers import Answer, BadAnswerError, read_answer
from chatspace.openai_embed.client import AgainError, RefusedError, TooLongError
from chatspace.openai_embed.journal import Record
from chatspace.openai_embed.limits import RateLimiter
from chatspace.openai_embed.served import Served, refuse_other
from chatspace.openai_embed.tokens import Counts, TokenCounter

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_BACKOFF_S = 0.5
MOST_BACKOFF_S = 60.0
_MOST_DOUBLINGS = 20  # a float ends at 1024
# A server that keeps giving wrong answers is charged for each of them.
BAD_ANSWERS = 3
CUTS = 40
ADVICE = "Look at the endpoint and model.base_url, or raise requests.timeout_s."
_NUMBERS = re.compile(r"(\d[\d,]*) tokens?")


class Embeds(Protocol):
    """What is needed of a client to ask for vectors."""

    def embed(
        self, name: str, texts: Sequence[str], dimensions: int | None
    ) -> tuple[Any, Mapping[str, str]]:
        """Returns the JSON of an answer, and its headers."""
        ...


@dataclass(slots=True)
class Tally:
    """What was sent; several threads add to it."""

    requests: int = 0
    retries: int = 0
    limited: int = 0
    n_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        """Adds to counters by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Rows of a shard that go into one request.

    Attributes:
        rows: their positions among the texts of the shard.
        texts: what is sent.
        counts: tokens of each, (n_rows,).
        cut: rows whose text was cut.
    """

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    counts: Counts
    cut: frozenset[int] = frozenset()

    def part(self, start: int, stop: int) -> Inputs:
        """Returns consecutive inputs."""
        return self.chosen(range(start, stop))

    def chosen(self, places: Sequence[int]) -> Inputs:
        """Returns the inputs at some places."""
        rows = tuple(self.rows[at] for at in places)
        return Inputs(
            rows=rows,
            texts=tuple(self.texts[at] for at in places),
            counts=self.counts[list(places)],
            cut=self.cut & frozenset(rows),
        )


@dataclass(kw_only=True)
class Asker:
    """Gets vectors from an endpoint, whatever it takes within `give_up_s`.

    Attributes:
        client: one attempt.
        name: the model, as the endpoint calls it.
        dimensions: what is asked for, None for the model's own.
        dim: length that vectors must have; set by the first answer where it is not known.
        on_too_long: what happens to rows that the endpoint finds too long.
        is_awaited: a person waits for the answer: it is tried once more at most, and what would
            take longer than `give_up_s` is not waited for.
        advice: what that person can do where there is no answer.
        earlier: what earlier executions of the run were served, None where nothing is known.
        keep: is told what this one is served, before the answer is used.
        stage: what a task is at that was last answered in vain; empty once there is an answer.
    """

    client: Embeds
    limiter: RateLimiter
    counter: TokenCounter
    name: str
    dimensions: int | None
    dim: int | None
    on_too_long: str
    give_up_s: float
    is_awaited: bool = False
    advice: str = ADVICE
    earlier: Served | None = None
    keep: Callable[[Served], None] = lambda _: None
    tally: Tally = field(default_factory=Tally)
    stage: str = ""
    first_backoff_s: float = FIRST_BACKOFF_S
    _served: Served | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def served_model(self) -> str | None:
        """Name that the endpoint gives the model, None where it gave none yet."""
        return self._served.model if self._served else None

    def records(self, inputs: Inputs, row_index: Sequence[int]) -> Iterator[Record]:
        """Yields the answers for a group of inputs, each as soon as it is there.

        A group that is refused for its length is halved until the row that is too long is alone.
        That row is cut, left out, or an error, as the spec says.

        Args:
            inputs: what is sent.
            row_index: number in the split of each text of the shard, for messages.
        """
        try:
            answer = self.ask(inputs.texts, int(inputs.counts.sum()))
        except TooLongError as refusal:
            if len(inputs.rows) == 1:
                yield self._too_long(inputs, row_index, str(refusal))
                return
            middle = len(inputs.rows) // 2
            yield from self.records(inputs.part(0, middle), row_index)
            yield from self.records(inputs.part(middle, len(inputs.rows)), row_index)
            return
        yield record_of(inputs, answer)

    def ask(self, texts: Sequence[str], n_tokens: int) -> Answer:
        """Returns the vectors of some texts.

        Raises:
            TooLongError: the endpoint refuses them for their length.
            ModelError: it keeps giving wrong answers, or those of another model than before.
            UnfitEnvironmentError: it does not answer for too long.
            Halted: the task ends.
        """

        def attempt() -> Answer:
            self.tally.add(requests=1)
            try:
                body, headers = self.client.embed(self.name, texts, self.dimensions)
            except RefusedError as refusal:
                self.limiter.observe(refusal.headers)
                raise
            try:
                answer = self.read(body, len(texts))
                used = n_tokens if answer.n_tokens is None else answer.n_tokens
                # Before the headers, whose figures have this request in them.
                self.limiter.correct(n_tokens, used)
            finally:
                self.limiter.observe(headers)
            self.tally.add(n_tokens=used)
            return answer

        # A single question finds out by itself whether the account's limits let it through.
        before = None if self.is_awaited else lambda: self.limiter.acquire(n_tokens)
        return self.patiently(attempt, before)

    def read(self, body: Any, n_inputs: int) -> Answer:
        """Returns the vectors of an answer, which are of the model that the run began with.

        Raises:
            BadAnswerError: it is not what was asked for; asking again may help.
            ModelError: it is of another model than earlier executions of the run had.
        """
        answer = read_answer(body, n_inputs, None if self.earlier else self.dim)
        found = Served(model=answer.model, dim=answer.vectors.shape[1])
        if self.earlier is not None:
            refuse_other(self.earlier, found, self.name)
        with self._lock:  # two first answers may come at once
            if self._served is None:
                self.keep(found)
            self._served, self.dim = self._served or found, self.dim or found.dim
        # Several models behind one address.
        if found.dim != self.dim or not found.is_like(self._served):
            raise BadAnswerError(f"vectors of {found} where those of {self._served} are due")
        return answer

    def patiently(
        self, attempt: Callable[[], Result], before: Callable[[], None] | None = None
    ) -> Result:
        """Returns what an attempt returns, trying again what may pass.

        Args:
            attempt: is called until it returns something.
            before: waits until one may be made. Like the time that the endpoint asks for, this does
                not count towards giving up.

        Raises:
            ModelError: the endpoint keeps giving wrong answers.
            UnfitEnvironmentError: it does not answer for too long.
        """
        failing_s, n_bad, n_tries = 0.0, 0, 0
        while True:
            if before is not None:
                before()
            began_s = self.limiter.clock()
            try:
                result = attempt()
                self.stage = ""
                return result
            except BadAnswerError as error:
                n_bad += 1
                if n_bad >= BAD_ANSWERS:
                    raise ModelError(
                        f"Wrong answers: {self.name}; {n_bad} times: {error}. "
                        "Check model.dimensions and what the endpoint serves."
                    ) from None
                wait_s, why, is_limit = None, f"wrong answer: {error}", False
            except AgainError as error:
                wait_s, why, is_limit = error.after_s, str(error), error.is_limit
                self.tally.add(limited=int(is_limit))
            self.stage = "waiting for the limits" if is_limit else "waiting for the endpoint"
            # From the first one on; where a person waits, with it.
            failing_s += self.limiter.clock() - began_s if n_tries or self.is_awaited else 0.0
            doublings = min(n_tries, _MOST_DOUBLINGS)
            n_tries += 1
            if failing_s > self.give_up_s or self._is_long_enough(n_tries, wait_s):
                raise self._no_answer(n_tries, failing_s, why)
            backoff_s = min(MOST_BACKOFF_S, self.first_backoff_s * 2**doublings)
            failing_s += self._wait(wait_s, backoff_s, why, is_limit=is_limit)

    def _is_long_enough(self, n_tries: int, wait_s: float | None) -> bool:
        """Returns whether a person who waits should hear now that there is no answer."""
        return self.is_awaited and (n_tries > 1 or (wait_s or 0) > self.give_up_s)

    def _no_answer(self, n_tries: int, failing_s: float, why: str) -> UnfitEnvironmentError:
        why = why.rstrip(".")
        if self.is_awaited:
            return UnfitEnvironmentError(
                f"No answer: {self.name}; {n_tries} attempts in {failing_s:.1f} s, the last: "
                f"{why}. {self.advice}"
            )
        return UnfitEnvironmentError(
            f"No answer: {self.name}; {n_tries} attempts in {failing_s / 60:.1f} min, the last: "
            f"{why}. Finished answers are kept; look at the endpoint, then run it again (if it has "
            "moved, its spec with --set model.base_url=URL)."
        )

    def _wait(self, asked_s: float | None, backoff_s: float, why: str, *, is_limit: bool) -> float:
        """Waits for as long as is asked, or a little longer; returns the seconds nobody asked for.

        Also where no time is asked for, so that no request follows at once on its refusal.
        """
        self.tally.add(retries=1)
        pause_s = backoff_s * random.uniform(0.5, 1.0)  # so that tasks do not come back together
        if asked_s is not None or is_limit:
            # It is the account that has to wait, not this request alone.
            self.limiter.hold(pause_s if asked_s is None else asked_s)
        pause_s = max(pause_s, asked_s or 0.0)
        level = logging.INFO if self.is_awaited else logging.WARNING
        log.log(level, "again in %.1f s: %s", pause_s, why)
        self.limiter.pause(pause_s)
        return pause_s - (asked_s or 0.0)

    def _too_long(self, inputs: Inputs, row_index: Sequence[int], said: str) -> Record:
        """Returns the record of one row that the endpoint finds too long."""
        (row,), (text,) = inputs.rows, inputs.texts
        if self.on_too_long == "skip":
            return Record(rows=inputs.rows, vectors=None)
        if self.on_too_long == "error":
            raise InputError(
                f"Row too long: row_index={row_index[row]}; the endpoint says: {said}. "
                "Set model.on_too_long: truncate or skip."
            )
        for _ in range(CUTS):
            text = shortened(text, said)
            if not text:
                break
            try:
                answer = self.ask([text], int(self.counter.count([text])[0]))
            except TooLongError as refusal:
                said = str(refusal)
                continue
            return Record(
                rows=(row,),
                vectors=answer.vectors,
                cut=(row,),
                n_tokens=answer.n_tokens or 0,
                n_chars=len(text),
            )
        raise InputError(
            f"Row refused: row_index={row_index[row]}; however short, the endpoint says: {said}. "
            "Set model.on_too_long: skip."
        )


def record_of(inputs: Inputs, answer: Answer) -> Record:
    """Returns what is kept of the answer to some inputs."""
    n_tokens = int(inputs.counts.sum()) if answer.n_tokens is None else answer.n_tokens
    return Record(
        rows=inputs.rows, vectors=answer.vectors, cut=sorted(inputs.cut), n_tokens=n_tokens
    )


def shortened(text: str, said: str) -> str:
    """Returns the beginning of a text that was refused, as short as the refusal suggests.

    Where it names its limit and what it got, as OpenAI and vLLM do, the text is cut in that
    proportion and a little more; else a quarter is cut off.
    """
    numbers = sorted({int(number.replace(",", "")) for number in _NUMBERS.findall(said)})
    ratio = 0.75
    if len(numbers) >= 2 and numbers[0] > 0:
        ratio = min(0.98, numbers[0] / numbers[-1] * 0.98)
    return text[: int(len(text) * ratio)]
