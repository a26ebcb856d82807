"""Names that an error suggests: near ones, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.spec.problems import near_name

FILES = ["arr.json", "p.parquet", "part-00000.parquet", "wiki.parquet"]


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("tokn_budget", ["token_budget", "max_tokens"], "token_budget"),
        ("Train", ["test", "train"], "train"),
        ("wikki.parquet", FILES, "wiki.parquet"),
        ("torch", ["princeton", "nyu_torch"], "nyu_torch"),
        ("wiki", FILES, "wiki.parquet"),
        ("missing.parquet", FILES, None),
        ("data.parquet", FILES, None),
        ("art", FILES, None),
        ("p", FILES, None),
        ("question", ["id", "conversation"], None),
        ("text", [], None),
        ("", FILES, None),
    ],
)
def test_near_name_suggests_only_what_is_spelt_alike(
    name: str, known: list[str], near: str | None
) -> None:
    assert near_name(name, known) == near


@given(name=st.text(min_size=3), others=st.lists(st.text()))
def test_near_name_finds_a_name_that_is_there(name: str, others: list[str]) -> None:
    found = near_name(name, [*others, name])
    assert found is not None
    assert found.lower() == name.lower() or found == name
