from __future__ import annotations

import pytest

from chatspace.wording import counted


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (12345, "12,345 shards")]
)
def test_counted_is_plural_but_for_one(n: int, text: str) -> None:
    assert counted(n, "shard") == text
