"""The slice work of `kind: embed_openai`: what a task does between its plan and its shards."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chatspace.env import variables
from chatspace.errors import SpecError
from chatspace.layout import Layout
from chatspace.openai_embed.asking import Asker
from chatspace.openai_embed.batching import BatchRun
from chatspace.openai_embed.client import Client
from chatspace.openai_embed.direct import DirectRun
from chatspace.openai_embed.endpoint import DEFAULT_TIMEOUT_S, Endpoint, endpoint_now, find_key
from chatspace.openai_embed.limits import RateLimiter
from chatspace.openai_embed.served import keep_served, read_served
from chatspace.openai_embed.shard import Opener
from chatspace.openai_embed.slice_run import Counters
from chatspace.openai_embed.spec import ModelSection, RequestsSection, SpendingSection
from chatspace.openai_embed.tokens import as_the_run_began, make_counter
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.work import SliceOutcome, SliceWork

# While a person waits for the answer to one question: a server that is there answers sooner.
QUESTION_TIMEOUT_S = 10.0
QUESTION_GIVE_UP_S = 5.0


def run_slice(work: SliceWork) -> SliceOutcome:
    """Embeds the shards of a slice and commits each; returns early if a stop is requested.

    Raises:
        UserError: money may not be spent, or a row or model cannot be used as the spec says.
        UnfitEnvironmentError: there is no key, or the endpoint refuses it or does not answer.
    """
    start = time.perf_counter()
    if not work.spans or work.stop.requested:
        return _outcome(start, Counters(), {}, is_done=not work.spans)
    check_spending(work.plan)
    _refuse_probe(work)
    session = open_session(work.plan, work.split)
    counters, requests = Counters(), session.requests
    asker = session.asker
    opener = Opener(work, session.model, asker.counter, session.client.delete, asker.limiter.check)
    try:
        opener.remove_leftovers()
        common: dict[str, Any] = {
            "work": work, "opener": opener, "asker": asker,
            "requests": requests, "counters": counters,
        }  # fmt: skip
        run: BatchRun | DirectRun
        if requests.mode == "batch":
            run = BatchRun(client=session.client, **common)
        else:
            run = DirectRun(**common)
        run.run()
    finally:
        session.client.close()
    run.report("done" if run.is_done else "embedding")
    return _outcome(start, counters, session.facts(), is_done=run.is_done)


def check_spending(plan: Plan) -> None:
    """Refuses to go on unless the spec says that money may be spent.

    Raises:
        SpecError: it does not.
    """
    if not SpendingSection.model_validate(plan.spec["spending"]).execute:
        raise SpecError(
            "Nothing is spent unasked: spending.execute=false. See the price with "
            "`chatspace embed-dataset SPEC`, then set spending.execute: true."
        )


def _refuse_probe(work: SliceWork) -> None:
    """Refuses ranges of rows that are no shards: a probe would pay for rows and drop them.

    Raises:
        SpecError: a range is none of the plan's shards.
    """
    if any(span != work.split.span(span.index) for span in work.spans):
        raise SpecError(
            "Nothing to probe: kind=embed_openai; a probe would pay for rows that it drops. "
            "`chatspace embed-dataset SPEC` says tokens, price and time."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A client and what it is asked through."""

    client: Client
    asker: Asker
    model: ModelSection
    requests: RequestsSection
    base_url: str

    def facts(self) -> dict[str, Any]:
        """Returns what was really used, for manifests; no secret is among it."""
        tally = self.asker.tally
        return {
            "device": "api",
            "endpoint": self.base_url,
            "mode": self.requests.mode,
            "tokens": self.asker.counter.method,
            "served_model": self.asker.served_model,
            "n_requests": tally.requests,
            "n_retries": tally.retries,
            "n_rate_limited": tally.limited,
            "waited_s": round(self.asker.limiter.waited_s, 3),
            "limits_per_min": self.asker.limiter.limits(),
            "openai": version("openai"),
        }


def open_session(plan: Plan, split: SplitPlan | None, base_url: str | None = None) -> Session:
    """Returns a client for the endpoint of a plan, where it is now.

    Args:
        plan: the run.
        split: whose tasks share the account's limits; None for a single question that a person
            waits for.
        base_url: an address that goes before that of spec, environment and plan.

    Raises:
        SpecError: the address, or what the environment says of the endpoint, is none.
        UnfitEnvironmentError: there is no key, or the official client is not installed.
    """
    is_question = split is None
    model = ModelSection.model_validate(plan.spec["model"])
    requests = RequestsSection.model_validate(plan.spec["requests"])
    name, found = plan.model["name"], variables()
    endpoint = endpoint_now(plan.model, plan.spec, found, base_url)
    endpoint = _soon(endpoint) if is_question else endpoint
    client = Client(endpoint, find_key(endpoint, found))
    earlier = read_served(plan)
    counter = make_counter(model, name, Path(plan.workspace))
    if not is_question:
        counter = as_the_run_began(counter, Layout(Path(plan.workspace)).run(plan.run_id))
    asker = Asker(
        client=client,
        limiter=RateLimiter(
            requests_per_min=requests.requests_per_min,
            tokens_per_min=requests.tokens_per_min,
            share=1 / tasks_at_once(plan, split),
        ),
        counter=counter,
        name=name,
        dimensions=model.dimensions,
        dim=plan.model.get("embedding_dim") or (earlier.dim if earlier else None),
        on_too_long=model.on_too_long,
        give_up_s=QUESTION_GIVE_UP_S if is_question else requests.give_up_min * 60,
        is_awaited=is_question,
        earlier=earlier,
    )
    if not is_question:
        asker.keep = partial(keep_served, plan)
    return Session(
        client=client, asker=asker, model=model, requests=requests, base_url=endpoint.base_url
    )


def _soon(endpoint: Endpoint) -> Endpoint:
    """Returns an endpoint of which a lost request is noticed soon, unless somebody says when."""
    if endpoint.timeout_s != DEFAULT_TIMEOUT_S:
        return endpoint
    return replace(endpoint, timeout_s=QUESTION_TIMEOUT_S)


def tasks_at_once(plan: Plan, split: SplitPlan | None) -> int:
    """Returns how many tasks may share the account's limits at the same time."""
    if split is None:
        return 1
    n_tasks = sum(len(other.slices) for other in plan.splits)
    return min(n_tasks, (plan.cluster.get("array_parallelism") or n_tasks) * len(plan.splits))


def _outcome(
    start: float, counters: Counters, facts: dict[str, Any], *, is_done: bool
) -> SliceOutcome:
    return SliceOutcome(
        n_tokens=counters.n_tokens_done,
        n_padded_tokens=0,
        stages=counters.stages,
        runtime=facts,
        interrupted=not is_done,
        elapsed_s=time.perf_counter() - start,
    )
