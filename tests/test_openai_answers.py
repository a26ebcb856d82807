from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.openai_embed.answers import BadAnswerError, read_answer


def body_of(vectors: np.ndarray, order: list[int], *, as_text: bool = True) -> dict[str, Any]:
    def shown(vector: np.ndarray) -> Any:
        raw = vector.astype("<f4").tobytes()
        return base64.b64encode(raw).decode() if as_text else vector.tolist()

    data = [{"index": i, "embedding": shown(vectors[i])} for i in order]
    return {"data": data, "usage": {"total_tokens": 7}}


@given(order=st.integers(1, 9).flatmap(lambda n: st.permutations(range(n))), as_text=st.booleans())
def test_read_answer_puts_vectors_at_their_index(order: list[int], as_text: bool) -> None:
    vectors = np.random.default_rng(0).standard_normal((len(order), 4)).astype(np.float32)
    answer = read_answer(body_of(vectors, order, as_text=as_text), len(order), 4)
    np.testing.assert_array_equal(answer.vectors, vectors)
    assert answer.vectors.dtype == np.float32
    assert answer.n_tokens == 7


def spoiled(**changes: Any) -> dict[str, Any]:
    body = body_of(np.ones((2, 4), np.float32), [0, 1])
    body["data"][0].update(changes)
    return body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (spoiled(index=1), "indexes"),
        (spoiled(index=None), "indexes"),
        (spoiled(embedding="%%%"), "neither base64"),
        (spoiled(embedding="AAAA"), "neither base64"),
        (spoiled(embedding=None), "vector"),
        (spoiled(embedding=[1.0, 2.0]), "vectors of 2/4 numbers where 4 are due"),
        (spoiled(embedding=[float("inf")] * 4), "not finite"),
        (body_of(np.ones((2, 4), np.float32), [0]), "1 vectors for 2 inputs"),
        (body_of(np.ones((3, 4), np.float32), [0, 1, 2]), "3 vectors for 2 inputs"),
        ({"data": "x"}, "no list"),
        ({}, "no list"),
        ([], "no list"),
    ],
)
def test_read_answer_refuses_what_was_not_asked_for(body: Any, said: str) -> None:
    with pytest.raises(BadAnswerError, match=said):
        read_answer(body, 2, 4)


def test_read_answer_takes_any_one_length_where_none_is_known() -> None:
    answer = read_answer({**body_of(np.ones((2, 5), np.float32), [1, 0]), "usage": None}, 2, None)
    assert answer.vectors.shape == (2, 5)
    assert answer.n_tokens is None
