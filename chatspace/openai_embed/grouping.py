"""From the rows of a shard to the requests for those that have no vector yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chatspace.errors import InputError
from chatspace.openai_embed.asking import Inputs
from chatspace.openai_embed.journal import Journal, Record
from chatspace.openai_embed.spec import ModelSection, RequestsSection
from chatspace.openai_embed.tokens import Counts, TokenCounter


def group(inputs: Inputs, requests: RequestsSection) -> Iterator[Inputs]:
    """Yields the inputs in their order, as many at a time as one request may have.

    An input that alone is above the tokens of a request is a request of its own.
    """
    start, n_tokens = 0, 0
    for at, count in enumerate(inputs.counts.tolist()):
        is_full = at - start >= requests.max_inputs
        if at > start and (is_full or n_tokens + count > requests.max_request_tokens):
            yield inputs.part(start, at)
            start, n_tokens = at, 0
        n_tokens += count
    if start < len(inputs.rows):
        yield inputs.part(start, len(inputs.rows))


def open_inputs(
    journal: Journal,
    texts: Sequence[str],
    *,
    model: ModelSection,
    counter: TokenCounter,
    row_index: Sequence[int],
    known: Counts | None = None,
) -> Inputs:
    """Returns the rows that still want a vector, cut to the model's limit where that is exact.

    With an exact count, rows that are too long are dealt with here, without asking: those that are
    left out go into the journal. Without one, the endpoint says which are too long.

    Args:
        journal: what was answered already.
        texts: rows of the shard, or their chunks.
        model: what the spec says of the model.
        counter: counts tokens.
        row_index: number in the split of each text, for messages.
        known: tokens of each text, (n_texts,) [they are counted].

    Raises:
        InputError: a row is too long, and the spec wants an error.
    """
    rows = journal.answers.left
    wanted = [texts[row] for row in rows]
    counts = counter.count(wanted) if known is None else known[rows]
    cut: set[int] = set()
    if counter.is_exact:
        long = np.flatnonzero(counts > model.limit_tokens).tolist()
        if long and model.on_too_long == "error":
            raise InputError(
                f"Row too long: row_index={row_index[rows[long[0]]]}; {counts[long[0]]} tokens, "
                f"limit {model.limit_tokens}. Set model.on_too_long: truncate or skip."
            )
        if long and model.on_too_long == "skip":
            journal.add(Record(rows=[rows[at] for at in long], vectors=None))
            kept = np.setdiff1d(np.arange(len(rows)), long)
            rows, wanted = [rows[at] for at in kept], [wanted[at] for at in kept]
            counts, long = counts[kept], []
        for at in long:
            # At least a character: nobody takes an empty text.
            wanted[at] = counter.cut(wanted[at], model.limit_tokens) or wanted[at][:1]
            counts[at] = min(model.limit_tokens, counts[at])
            cut.add(rows[at])
    return Inputs(rows=tuple(rows), texts=tuple(wanted), counts=counts, cut=frozenset(cut))


def estimated_requests(counts: Counts, n_inputs: int, requests: RequestsSection) -> int:
    """Returns about how many requests a shard of `n_inputs` takes, from the counts of a sample."""
    if n_inputs == 0 or len(counts) == 0:
        return 0
    n_tokens = float(counts.mean()) * n_inputs
    return max(
        -(-n_inputs // requests.max_inputs), int(-(-n_tokens // requests.max_request_tokens))
    )
