from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chatspace.errors import InputError, ModelError
from chatspace.kinds import KINDS
from tests.openai_runs import plan_of
from tests.openai_server import FakeOpenAI, vector_of


def test_embed_queries_gives_vectors_as_the_run_does(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server, output={"truncate_dim": 8, "dtype": "int8"})
    vectors, notes = KINDS["embed_openai"].query_encoder()(plan, ["a shard", "a slice"], None)
    for vector, text in zip(vectors, ["a shard", "a slice"], strict=True):
        cut = vector_of(text, 16)[:8]
        np.testing.assert_allclose(vector, cut / np.linalg.norm(cut), atol=1e-6)
    assert server.n_requests == 1
    assert notes == [f"One request was sent to {server.url}."]


def test_embed_queries_refuses_what_cannot_be_asked(server: FakeOpenAI, tmp_path: Path) -> None:
    server.limit = 3
    plan = plan_of(tmp_path, server)
    embed = KINDS["embed_openai"].query_encoder()
    with pytest.raises(ModelError, match="Unknown prompt: query"):
        embed(plan, ["a"], "query")
    assert server.n_requests == 0
    with pytest.raises(InputError, match="Text too long"):
        embed(plan, ["far too many words here"], None)
