"""Vectors of questions, from the endpoint of a run: one request, which is charged."""

from __future__ import annotations

from collections.abc import Sequence

from chatspace.errors import InputError, ModelError
from chatspace.openai_embed.answers import FloatArray
from chatspace.openai_embed.client import TooLongError
from chatspace.openai_embed.shard import cut
from chatspace.openai_embed.work import open_session
from chatspace.plan.model import Plan
from chatspace.spec.output import OutputSection

ADVICE = (
    "Look at the endpoint; if it has moved, name its address with --base-url URL. One that is slow "
    "gets longer with OPENAI_TIMEOUT, unless the spec says requests.timeout_s."
)


def embed_queries(
    plan: Plan,
    texts: Sequence[str],
    prompt_name: str | None = None,
    base_url: str | None = None,
) -> tuple[FloatArray, list[str]]:
    """Returns the vectors of some texts as the run would give them, and what to know of them.

    Args:
        plan: the run.
        texts: none of them empty.
        prompt_name: must be None: an endpoint has no prompts.
        base_url: address of the endpoint now [what the spec, the environment, or the plan names].

    Returns:
        Vectors, (n_texts, dim), float32; notes, a line each.

    Raises:
        InputError: a text is too long.
        ModelError: a prompt is asked for, or another model answers.
        SpecError: the address is none.
        UnfitEnvironmentError: there is no key, or the endpoint does not answer.
    """
    if prompt_name is not None:
        raise ModelError(
            f"Unknown prompt: {prompt_name}; {plan.model['name']} is behind an endpoint and has "
            "none. Write the prompt before the text."
        )
    session = open_session(plan, None, base_url)
    asker = session.asker
    asker.advice = ADVICE
    try:
        answer = asker.ask(texts, int(asker.counter.count(texts).sum()))
    except TooLongError as refusal:
        raise InputError(f"Text too long: the endpoint says: {refusal}. Shorten it.") from None
    finally:
        session.client.close()
    output = OutputSection.model_validate(plan.spec["output"])
    return cut(answer.vectors, output), [f"One request was sent to {session.base_url}."]
