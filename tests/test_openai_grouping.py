from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.errors import InputError
from chatspace.openai_embed.asking import Inputs, shortened
from chatspace.openai_embed.grouping import group, open_inputs
from chatspace.openai_embed.journal import Journal, Record
from chatspace.openai_embed.spec import ModelSection, RequestsSection
from chatspace.openai_embed.tokens import TiktokenCounter
from tests.test_openai_tokens import tiny


@given(
    counts=st.lists(st.integers(1, 60), max_size=60),
    max_inputs=st.integers(1, 9),
    max_tokens=st.integers(1, 100),
)
def test_group_keeps_order_and_limits(counts: list[int], max_inputs: int, max_tokens: int) -> None:
    inputs = Inputs(
        rows=tuple(range(0, 2 * len(counts), 2)),
        texts=tuple(f"t{i}" for i in range(len(counts))),
        counts=np.array(counts, np.int64),
        cut=frozenset([0, 4]),
    )
    requests = RequestsSection(max_inputs=max_inputs, max_request_tokens=max_tokens)
    groups = list(group(inputs, requests))
    assert [row for part in groups for row in part.rows] == list(inputs.rows)
    assert [text for part in groups for text in part.texts] == list(inputs.texts)
    assert frozenset().union(*(part.cut for part in groups)) == inputs.cut & {*inputs.rows}
    for part in groups:
        assert 1 <= len(part.rows) <= max_inputs
        assert part.counts.sum() <= max_tokens or len(part.rows) == 1
    for one, other in pairwise(groups):  # none could take one more
        is_full = len(one.rows) == max_inputs
        assert is_full or one.counts.sum() + other.counts[0] > max_tokens


def test_shortened_follows_the_proportion_that_a_refusal_names() -> None:
    said = "maximum context length is 8192 tokens, however you requested 16384 tokens"
    assert len(shortened("x" * 1000, said)) == 490
    assert len(shortened("x" * 1000, "input is too long")) == 750
    assert shortened("x", "too long") == ""


TEXTS = ["the", "the and the", "x" * 9, "and"]


def opened(folder: Path, on_too_long: Literal["truncate", "error", "skip"]) -> tuple[Any, Any]:
    """The inputs of four rows with a limit of two tokens, one of which was answered before."""
    journal = Journal(folder / "s.journal", "plan", TEXTS, None)
    journal.add(Record(rows=[3], vectors=np.ones((1, 2), np.float32)))
    model = ModelSection(max_tokens=2, on_too_long=on_too_long)
    counter = TiktokenCounter(tiny())
    try:
        inputs = open_inputs(
            journal, TEXTS, model=model, counter=counter, row_index=[10, 11, 12, 13]
        )
    finally:
        journal.close()
    return inputs, journal.answers


def test_open_inputs_with_an_exact_count_cuts_long_rows(tmp_path: Path) -> None:
    inputs, answers = opened(tmp_path, "truncate")
    assert inputs.texts == ("the", "the and", "xx")
    assert (inputs.rows, inputs.cut) == ((0, 1, 2), {1, 2})
    assert inputs.counts.tolist() == [1, 2, 2]
    assert answers.skipped == set()


def test_open_inputs_never_send_an_empty_text(tmp_path: Path) -> None:
    texts = ["\N{GRINNING FACE}x"]
    journal = Journal(tmp_path / "s.journal", "plan", texts, None)
    model, counter = ModelSection(max_tokens=2), TiktokenCounter(tiny())
    inputs = open_inputs(journal, texts, model=model, counter=counter, row_index=[0])
    journal.close()
    assert (inputs.texts, inputs.cut) == (("\N{GRINNING FACE}",), {0})


def test_open_inputs_with_an_exact_count_leaves_long_rows_out(tmp_path: Path) -> None:
    inputs, answers = opened(tmp_path, "skip")
    assert (inputs.rows, inputs.texts, inputs.cut) == ((0,), ("the",), set())
    assert answers.skipped == {1, 2}


def test_open_inputs_with_an_exact_count_names_a_long_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row_index=11; 3 tokens, limit 2"):
        opened(tmp_path, "error")
