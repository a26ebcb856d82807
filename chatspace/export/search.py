"""The rows of a run that are nearest to a text or to another row: exact, by cosine.

Every vector is looked at, a block at a time, so memory is bounded by a block and the `k` best rows
so far. Vectors stored as int8 or as bits are compared as they are read back; the question is not
quantised, which keeps more of the order than comparing bits with bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chatspace.errors import InputError, ModelError
from chatspace.export.source import FloatArray, Positions, VectorSource, unit_rows
from chatspace.kinds import KINDS
from chatspace.plan.model import Plan

MOST_HITS = 10_000
_SHOWN = ("id", "split", "row_index", "chunk_index", "text")

EmbedQueries = Callable[..., tuple[FloatArray, list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A row that was found.

    Attributes:
        score: cosine of its vector and that of the question.
        chunk_index: which part of the row it is, where rows were cut into chunks.
        text: None where the run stores none.
    """

    score: float
    id: str
    split: str
    row_index: int
    text: str | None
    chunk_index: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the hit without what it does not have."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def check_k(k: int) -> None:
    """Refuses a number of hits that makes no sense.

    Raises:
        InputError: it is below 1 or above `MOST_HITS`.
    """
    if not 1 <= k <= MOST_HITS:
        raise InputError(f"Out of range: -k {k}; 1 to {MOST_HITS:,}. Choose a number between.")


def refuse_one_number(source: VectorSource) -> None:
    """Refuses vectors of one number, whose cosine is 1 or -1 whatever they mean.

    Raises:
        InputError: the run's vectors have one number.
    """
    if source.encoding.dim == 1:
        raise InputError(
            f"No directions: embedding_dim=1 in {source.plan.run_id}; the cosine of single numbers "
            "is 1 or -1. Use a model with longer vectors."
        )


def search_text(
    source: VectorSource,
    text: str,
    *,
    k: int,
    prompt_name: str | None = None,
    base_url: str | None = None,
    embed: EmbedQueries | None = None,
) -> tuple[list[Hit], list[str]]:
    """Returns the `k` rows nearest to a text, the nearest first, and notes.

    Args:
        source: the rows.
        text: embedded with the run's own model and settings.
        k: how many; fewer where there are fewer rows.
        prompt_name: the model's prompt for the text [what the run put before its rows].
        base_url: where the endpoint of the model is now [where spec and environment say].
        embed: gives the vector [the run's kind].

    Raises:
        InputError: `k` is out of range, the text is empty, or there is an address and no endpoint.
        ModelError: the model is not usable here, or is another one by now.
    """
    check_k(k)
    if not text.strip():
        raise InputError(f"Nothing to search for: text={text!r}. Write some words.")
    refuse_one_number(source)
    embed = embed or KINDS[source.plan.kind].query_encoder()
    vectors, notes = embed(source.plan, [text], prompt_name, **_address(source.plan, base_url))
    if vectors.shape[1] != source.encoding.dim:
        raise ModelError(
            f"Another model: it gives {vectors.shape[1]} numbers, the run has "
            f"{source.encoding.dim}. Put the run's own model back at {source.plan.model['name']}."
        )
    return nearest_rows(source, unit_rows(vectors)[0], k=k), notes


def _address(plan: Plan, base_url: str | None) -> dict[str, str]:
    """Returns the argument that says where an endpoint is now, none where nobody says it.

    Raises:
        InputError: the model is behind no endpoint.
    """
    if base_url is None:
        return {}
    if not KINDS[plan.kind].is_remote:
        raise InputError(
            f"No endpoint: --base-url; kind={plan.kind} of {plan.run_id} has its model on this "
            "machine. Leave --base-url out."
        )
    return {"base_url": base_url}


def search_like(source: VectorSource, row_id: str, *, k: int) -> list[Hit]:
    """Returns the `k` rows nearest to the row with an id, itself left out.

    Raises:
        InputError: `k` is out of range, or no row has that id.
    """
    check_k(k)
    refuse_one_number(source)
    position = find_id(source, row_id)
    _, vectors = next(source.unit_vectors(position))
    return nearest_rows(source, vectors[0], k=k, but=position)


def find_id(source: VectorSource, row_id: str) -> int:
    """Returns the position of the first row with an id.

    Raises:
        InputError: there is none.
    """
    start = 0
    for table in source.tables(["id"]):
        found = pc.index(table["id"], pa.scalar(row_id, pa.string())).as_py()
        if found >= 0:
            return start + int(found)
        start += table.num_rows
    first = source.rows_at(np.zeros(1, np.int64), ["id"])["id"][0].as_py()
    raise InputError(
        f"Unknown id: --like {row_id}; none of {source.rows:,} rows has it. Ids here look like "
        f"{first}."
    )


def nearest_rows(
    source: VectorSource, query: FloatArray, *, k: int, but: int | None = None
) -> list[Hit]:
    """Returns the `k` rows nearest to a vector; of equally near ones, those that come first.

    Args:
        source: the rows.
        query: of length one, (dim,).
        k: how many.
        but: position of a row that is left out.
    """
    scores, places = np.empty(0, np.float32), np.empty(0, np.int64)
    for start, vectors in source.unit_vectors():
        found = vectors @ query  # (n_rows,)
        if but is not None and start <= but < start + len(found):
            found[but - start] = -np.inf
        limit = scores[-1] if len(scores) == k else -np.inf
        better = np.flatnonzero(found > limit)
        scores = np.concatenate((scores, found[better]))
        places = np.concatenate((places, start + better))
        best = np.lexsort((places, -scores))[:k]
        scores, places = scores[best], places[best]
    return _hits(source, places, scores)


def _hits(source: VectorSource, places: Positions, scores: FloatArray) -> list[Hit]:
    names = [name for name in _SHOWN if name in source.schema.names]
    rows = source.rows_at(places, names).to_pylist()
    return [
        Hit(**row, score=float(np.clip(score, -1, 1)))
        for row, score in zip(rows, scores.tolist(), strict=True)
    ]
