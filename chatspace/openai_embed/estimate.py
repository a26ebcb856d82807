"""The dry run: rows, tokens, requests, price and time of what a run has left to do.

Unless it is asked to, it sends nothing to the endpoint; a file that tiktoken misses is fetched.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chatspace.errors import InputError
from chatspace.openai_embed.asking import Asker
from chatspace.openai_embed.batching import MAX_BATCH_BYTES, MAX_BATCH_INPUTS
from chatspace.openai_embed.catalogue import PRICES_OF, usd_per_million
from chatspace.openai_embed.client import TooLongError
from chatspace.openai_embed.grouping import estimated_requests
from chatspace.openai_embed.sample import Sample, count_sample, missing_shards
from chatspace.openai_embed.spec import ModelSection, RequestsSection, SpendingSection
from chatspace.openai_embed.tokens import (
    BYTES_PER_TOKEN,
    LEAST_OF_ESTIMATE,
    MOST_OF_ESTIMATE,
    Counts,
    TokenCounter,
    make_counter,
)
from chatspace.openai_embed.work import open_session, tasks_at_once
from chatspace.plan.model import Plan

MINUTE_S = 60
# Source: https://platform.openai.com/docs/guides/batch
BATCH_HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run has left to do, and what that takes.

    Attributes:
        rows: input rows of all splits.
        rows_done: those whose shards are there.
        rows_counted: rows whose tokens were counted.
        n_tokens: of all rows that are left, as they are sent.
        method: how tokens were counted, in words.
        is_guess: whether nobody counted tokens: they were estimated from bytes.
        spread: relative standard error of `n_tokens` from sampling, 0 where all were counted.
        too_long: about how many rows are above the limit.
        n_inputs: about how many rows, or chunks of rows, are sent.
        n_batches: about how many batches they are with the Batch API.
        n_rounds: how many of these follow each other.
        usd: price, None where it is not known.
        minutes: at the account's limits, None where they are not known.
        asked: what one request said, in words; None where none was sent.
    """

    rows: int
    rows_done: int
    rows_counted: int
    n_tokens: int
    method: str
    is_guess: bool
    spread: float
    too_long: int
    n_inputs: int
    n_requests: int
    n_batches: int
    n_rounds: int
    usd: float | None
    minutes: float | None
    limits: dict[str, float | None]
    asked: str | None = None

    @property
    def range(self) -> tuple[float, float]:
        """What the tokens really are, as multiples of `n_tokens`: at least, at most."""
        least, most = (LEAST_OF_ESTIMATE, MOST_OF_ESTIMATE) if self.is_guess else (1.0, 1.0)
        return least * max(0.0, 1 - 2 * self.spread), most * (1 + 2 * self.spread)


def dry_run(plan: Plan) -> list[str]:
    """Returns what a planned run has left to do and what that takes, as lines of text.

    Nothing is sent unless the spec says `spending.ask_endpoint` and rows are left: then one request
    of a few of them. The last line says whether it was.

    Raises:
        UnfitEnvironmentError: there is no key, or the endpoint does not answer soon.
    """
    estimate = _estimate(plan)
    sent = "one request was sent" if estimate.asked else "nothing was sent"
    return [*estimate_lines(plan, estimate), "", f"This was a dry run: {sent}."]


def _estimate(plan: Plan) -> Estimate:
    model = ModelSection.model_validate(plan.spec["model"])
    counter = make_counter(model, plan.model["name"], Path(plan.workspace), may_fetch=True)
    may_ask = SpendingSection.model_validate(plan.spec["spending"]).ask_endpoint
    if not may_ask or not any(missing_shards(plan, split) for split in plan.splits):
        return estimate_run(plan, counter)
    session = open_session(plan, None)
    try:
        return estimate_run(plan, counter, asker=session.asker)
    finally:
        session.client.close()


def estimate_run(plan: Plan, counter: TokenCounter, *, asker: Asker | None = None) -> Estimate:
    """Returns what a planned run has left to do.

    Args:
        plan: the run.
        counter: counts tokens.
        asker: sends one request of a few rows, which is charged [nothing is sent].
    """
    model = ModelSection.model_validate(plan.spec["model"])
    spending = SpendingSection.model_validate(plan.spec["spending"])
    requests = RequestsSection.model_validate(plan.spec["requests"])
    sample = count_sample(plan, model, counter, spending.sample_rows)
    counts = sample.row_tokens  # (n_counted,)
    n_sent = round(sample.rows_left * sample.rows_per_row)
    rows = sum(split.rows for split in plan.splits)
    batches = _batches(plan, sample)
    at_once = requests.max_batches * tasks_at_once(plan, plan.splits[0])
    estimate = Estimate(
        rows=rows,
        rows_done=rows - sample.rows_left,
        rows_counted=len(counts),
        n_tokens=round(float(counts.mean()) * n_sent) if len(counts) else 0,
        method=counter.method,
        is_guess=not counter.is_exact,
        spread=0.0 if sample.is_all else _spread(counts),
        too_long=round(sample.n_long / len(counts) * n_sent) if len(counts) else 0,
        n_inputs=round(sample.rows_left * sample.inputs_per_row),
        n_requests=_n_requests(plan, sample, requests),
        n_batches=sum(batches),
        n_rounds=max(-(-sum(batches) // at_once), *batches, 0),
        usd=None,
        minutes=None,
        limits={"requests": requests.requests_per_min, "tokens": requests.tokens_per_min},
    )
    if asker is not None and sample.texts:
        estimate = _asked(estimate, sample, asker, counter)
    return _priced(estimate, plan.model["name"], requests)


def estimate_lines(plan: Plan, estimate: Estimate) -> list[str]:
    """Returns an estimate as lines of text."""
    requests = RequestsSection.model_validate(plan.spec["requests"])
    left = estimate.rows - estimate.rows_done
    share = "all rows" if estimate.spread == 0 else f"{estimate.rows_counted:,} rows of a sample"
    error = f", sampling error {2 * estimate.spread:.1%}" if estimate.spread else ""
    done = f" of {estimate.rows:,}, the others are done" if estimate.rows_done else ""
    mode = "Batch API" if requests.mode == "batch" else f"{requests.concurrency} at a time"
    lines = [
        f"run {plan.run_id}",
        f"  model     {plan.model['name']} at {plan.model['base_url']}",
        f"  rows      {left:,}{done}",
    ]
    if left == 0:
        return lines
    lines += [
        f"  tokens    {estimate.n_tokens:,}; {estimate.method}, {share}{error}",
        *([f"  beware    {_range_words(estimate)}"] if estimate.is_guess else []),
    ]
    if estimate.too_long:
        lines.append(f"  too long  {_too_long_words(plan, estimate)}")
    lines += [
        f"  requests  {estimate.n_requests:,}, {mode}",
        f"  price     {_price_words(plan.model['name'], estimate, requests.mode)}",
        f"  time      {_time_words(estimate, requests)}",
    ]
    return [*lines, *([f"  asked     {estimate.asked}"] if estimate.asked else [])]


def _spread(counts: Counts) -> float:
    if len(counts) < 2:
        return 1.0
    return float(counts.std(ddof=1) / np.sqrt(len(counts)) / max(1e-9, counts.mean()))


def _n_requests(plan: Plan, sample: Sample, requests: RequestsSection) -> int:
    return sum(
        estimated_requests(
            sample.input_tokens, round(span.n_rows * sample.inputs_per_row), requests
        )
        for split in plan.splits
        for span in missing_shards(plan, split)
    )


def _batches(plan: Plan, sample: Sample) -> list[int]:
    """Returns about how many batches of the Batch API each shard takes that is left."""
    found = []
    for split in plan.splits:
        for span in missing_shards(plan, split):
            n_inputs = round(span.n_rows * sample.inputs_per_row)
            mean = float(sample.input_tokens.mean()) if n_inputs else 0.0
            by_bytes = -(-n_inputs * mean * BYTES_PER_TOKEN // MAX_BATCH_BYTES)
            found.append(max(-(-n_inputs // MAX_BATCH_INPUTS), int(by_bytes)))
    return found


def _asked(estimate: Estimate, sample: Sample, asker: Asker, counter: TokenCounter) -> Estimate:
    """Returns the estimate with what one request of a few rows says of tokens and limits."""
    ours = int(counter.count(sample.texts).sum())
    start = time.monotonic()
    try:
        answer = asker.ask(sample.texts, ours)
    except TooLongError as refusal:
        raise InputError(
            f"Inputs too long: the endpoint says: {refusal}. Lower model.max_tokens or "
            "model.chunk_tokens, or leave --ask-endpoint out."
        ) from None
    took_s = time.monotonic() - start
    said = answer.n_tokens
    limits = {
        name: estimate.limits[name] or found for name, found in asker.limiter.limits().items()
    }
    words = f"{len(sample.texts)} inputs in one request of {took_s:.2f} s: "
    words += f"{said:,} tokens" if said else "the endpoint does not count tokens"
    estimate = replace(estimate, limits=limits, asked=words)
    if not said or counter.is_exact:
        return estimate
    return replace(
        estimate,
        n_tokens=round(estimate.n_tokens * said / ours),
        is_guess=False,
        method=f"the endpoint's own count of {len(sample.texts)} inputs, scaled by their bytes",
    )


def _priced(estimate: Estimate, name: str, requests: RequestsSection) -> Estimate:
    price = usd_per_million(name, requests.mode)
    per_min = {"requests": estimate.n_requests, "tokens": estimate.n_tokens}
    times = [per_min[name] / limit for name, limit in estimate.limits.items() if limit]
    return replace(
        estimate,
        usd=None if price is None else estimate.n_tokens * price / 1e6,
        minutes=max(times) if times and requests.mode == "direct" else None,
    )


def _too_long_words(plan: Plan, estimate: Estimate) -> str:
    model = ModelSection.model_validate(plan.spec["model"])
    about = f"about {estimate.too_long:,} rows above {model.limit_tokens:,} tokens"
    if model.is_chunked:
        return f"{about}: cut into chunks, {estimate.n_inputs:,} inputs in all"
    return f"{about}: {model.on_too_long}"


def _range_words(estimate: Estimate) -> str:
    least, most = (f"{round(estimate.n_tokens * times):,}" for times in estimate.range)
    return (
        f"really {least} to {most} tokens: bytes / {BYTES_PER_TOKEN} is a guess that fits English; "
        "other languages and numbers have more. --ask-endpoint takes the endpoint's own count"
    )


def _usd_words(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.6f}"


def _price_words(name: str, estimate: Estimate, mode: str) -> str:
    if estimate.usd is None:
        return f"not known: {name} is not in the table of {PRICES_OF} (mode {mode})"
    price = usd_per_million(name, mode)
    shown = _usd_words(estimate.usd)
    if estimate.is_guess:
        least, most = (_usd_words(estimate.usd * times) for times in estimate.range)
        shown = f"{shown}, or {least} to {most},"
    return f"{shown} at ${price:g} for a million tokens, table of {PRICES_OF}"


def _batch_time_words(estimate: Estimate) -> str:
    if estimate.n_rounds <= 1:
        return f"up to {BATCH_HOURS} hours, which is what the Batch API promises"
    return (
        f"up to {BATCH_HOURS * estimate.n_rounds} hours: {estimate.n_batches:,} batches, a day for "
        "each, a few at a time (requests.max_batches), those of one shard one after another"
    )


def _time_words(estimate: Estimate, requests: RequestsSection) -> str:
    if requests.mode == "batch":
        return _batch_time_words(estimate)
    if estimate.minutes is None:
        return (
            "not known without your account's limits: give requests.tokens_per_min and "
            "requests.requests_per_min, or --ask-endpoint"
        )
    limits = " and ".join(
        f"{limit:,.0f} {what}" for what, limit in estimate.limits.items() if limit
    )
    seconds = estimate.minutes * MINUTE_S
    shown = f"{seconds:.0f} s" if seconds < 120 else f"{estimate.minutes:,.0f} min"
    return f"at least {shown}, at {limits} a minute"
