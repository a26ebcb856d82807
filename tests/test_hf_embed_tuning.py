from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chatspace.hf_embed import tuning
from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tuning import LEAST_ROWS, tuned_budget

USUAL = Budget(tokens=2048)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Iterator[Encoder]:
    section = ModelSection(name=str(tiny_model), device="cpu", dtype="float32")
    encoder = load_encoder(section, EncodeSection(), path=str(tiny_model))
    yield encoder
    encoder.close()


def with_speeds(monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float]) -> list[int]:
    tried: list[int] = []

    def speed(_: Encoder, n_tokens: int) -> float:
        tried.append(n_tokens)
        return speeds[n_tokens]

    monkeypatch.setattr(tuning, "_tokens_per_s", speed)
    return tried


def test_budget_that_is_clearly_faster_is_taken(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_speeds(monkeypatch, {1024: 9e6, 2048: 1e7, 4096: 1.2e7, 8192: 1.1e7})
    assert tuned_budget(EncodeSection(), encoder, n_rows=LEAST_ROWS) == Budget(tokens=4096)


def test_budget_that_is_hardly_faster_is_left(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_speeds(monkeypatch, {1024: 9e6, 2048: 1e7, 4096: 1.02e7, 8192: 1e7})
    assert tuned_budget(EncodeSection(), encoder, n_rows=LEAST_ROWS) == USUAL


def test_probe_of_a_slow_model_ends_after_its_seconds(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = with_speeds(monkeypatch, dict.fromkeys((1024, 2048, 4096, 8192), 200.0))
    assert tuned_budget(EncodeSection(), encoder, n_rows=LEAST_ROWS) == USUAL
    assert tried == [1024]


@pytest.mark.parametrize(
    ("encode", "n_rows"),
    [
        (EncodeSection(tokens_per_batch=2048), LEAST_ROWS),
        (EncodeSection(batch_size=8), LEAST_ROWS),
        (EncodeSection(), LEAST_ROWS - 1),
    ],
)
def test_budget_that_was_named_or_is_hardly_used_is_not_probed(
    encode: EncodeSection, n_rows: int, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = with_speeds(monkeypatch, {})
    assert tuned_budget(encode, encoder, n_rows=n_rows) == USUAL
    assert tried == []


def test_budget_that_is_taken_is_the_one_that_the_manifests_name(encoder: Encoder) -> None:
    assert encoder.runtime["tokens_per_batch"] == USUAL.tokens
    for budget in (Budget(rows=8), USUAL):
        encoder.take_budget(budget)
        assert encoder.budget == budget
        assert encoder.runtime["tokens_per_batch"] == budget.tokens
        assert encoder.runtime["batch_size"] == budget.rows


def test_probe_measures_a_real_model(encoder: Encoder) -> None:
    budget = tuned_budget(EncodeSection(), encoder, n_rows=LEAST_ROWS, seconds=0.5)
    assert budget.tokens in {1024, 2048, 4096, 8192}


def test_lengths_of_the_probe_fill_its_budget() -> None:
    for n_tokens in (1024, 8192):
        lengths = tuning._lengths(n_tokens, 256)
        assert lengths.min() >= 1 and lengths.max() <= 256
        assert n_tokens - 256 < lengths.sum() <= n_tokens
    assert np.array_equal(tuning._lengths(1024, 256), tuning._lengths(1024, 256))
