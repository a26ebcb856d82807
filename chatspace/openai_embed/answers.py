"""An answer of an embeddings endpoint as an array, in the order of the inputs, checked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class BadAnswerError(Exception):
    """An answer is not what was asked for; asking again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The vectors of one request.

    Attributes:
        vectors: (n_inputs, dim) float32, in the order of the inputs.
        n_tokens: tokens that the endpoint counted and charges, None where it does not say.
        model: whose vectors the endpoint says they are, None where it does not say.
    """

    vectors: FloatArray
    n_tokens: int | None
    model: str | None = None


def read_answer(body: Any, n_inputs: int, dim: int | None) -> Answer:
    """Returns the vectors of an answer, ordered by their `index`.

    Args:
        body: the JSON of the answer.
        n_inputs: inputs of the request.
        dim: length that vectors must have, None where it is not known yet.

    Raises:
        BadAnswerError: a vector is missing, there twice, of another length, or not finite.
    """
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        raise BadAnswerError("it holds no list of vectors")
    if len(data) != n_inputs:
        raise BadAnswerError(f"{len(data)} vectors for {n_inputs} inputs")
    order = [item.get("index") for item in data]
    if sorted(str(i) for i in order) != sorted(str(i) for i in range(n_inputs)):
        raise BadAnswerError("its indexes are not those of the inputs")
    vectors: list[FloatArray] = [_EMPTY] * n_inputs
    for item in data:
        vectors[int(item["index"])] = _vector(item.get("embedding"))
    lengths = {len(vector) for vector in vectors}
    if lengths != {dim or len(vectors[0])} or 0 in lengths:
        raise BadAnswerError(
            f"vectors of {'/'.join(map(str, sorted(lengths)))} numbers"
            + (f" where {dim} are due" if dim else "")
        )
    matrix = np.stack(vectors)  # (n_inputs, dim)
    if not np.isfinite(matrix).all():
        raise BadAnswerError("a vector has a number that is not finite")
    model = body.get("model")
    return Answer(
        vectors=matrix,
        n_tokens=_n_tokens(body),
        model=model if isinstance(model, str) and model else None,
    )


_EMPTY: FloatArray = np.empty(0, np.float32)


def _vector(value: Any) -> FloatArray:
    """Returns a vector that was sent as base64 of little-endian floats, or as a list."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
        return np.asarray(value, np.float32).reshape(-1)
    except (ValueError, TypeError, binascii.Error):
        raise BadAnswerError("a vector is neither base64 nor a list of numbers") from None


def _n_tokens(body: Mapping[str, Any]) -> int | None:
    usage = body.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    return tokens if isinstance(tokens, int) else None
