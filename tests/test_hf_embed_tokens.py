"""The tokenizers of a shard, as the threads of a run use them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from chatspace.hf_embed import model_input
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import LibraryTokenizer


def test_library_tokenizer_is_right_while_another_thread_makes_batches(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting without truncation and cutting are settings of the one tokenizer beneath."""
    monkeypatch.setattr(model_input, "_agrees", lambda *_: False)
    section = ModelSection(name=str(tiny_model), device="cpu", dtype="float32")
    tokenizer = load_encoder(section, EncodeSection(), path=str(tiny_model)).tokenizer
    assert isinstance(tokenizer, LibraryTokenizer)
    texts = ["a few words", "word " * 400] * 12
    expected = tokenizer.tokenize(texts, check=lambda: None)
    limit = int(expected.lengths.max())

    def load(_: int) -> bool:
        found = tokenizer.tokenize(texts, check=lambda: None)
        return bool((found.truncated == expected.truncated).all()) and np.array_equal(
            found.lengths, expected.lengths
        )

    def make_batches(_: int) -> bool:
        shapes = {tuple(tokenizer.preprocess(texts[:2])["input_ids"].shape) for _ in range(60)}
        return shapes == {(2, limit)}

    with ThreadPoolExecutor(3) as threads:
        loads = threads.map(load, range(4))
        batches = threads.map(make_batches, range(8))
        assert all(loads) and all(batches)
