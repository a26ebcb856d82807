"""Batches that do not fit into memory, and workers that have to let one of them be alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from chatspace.errors import ModelError
from chatspace.hf_embed import compiling
from chatspace.hf_embed.bucketing import Buckets, Budget
from chatspace.hf_embed.encoder import Encoder, Forward
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import FastTokenizer, Features
from chatspace.hf_embed.turns import Turns

LIMIT_S = 20


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> FastTokenizer:
    section = ModelSection(name=str(tiny_model), device="cpu", dtype="float32")
    found = load_encoder(section, EncodeSection(), path=str(tiny_model)).tokenizer
    assert isinstance(found, FastTokenizer)
    return found


class Short:
    """A forward that runs out of memory above so many rows."""

    def __init__(self, max_rows: int, error: type[RuntimeError], message: str) -> None:
        self.max_rows, self.error, self.message = max_rows, error, message
        self.calls: list[int] = []

    def __call__(self, features: Features) -> torch.Tensor:
        n_rows = len(features["input_ids"])
        self.calls.append(n_rows)
        if n_rows > self.max_rows:
            raise self.error(self.message)
        return features["input_ids"].float()[:, :4]


def short_encoder(forward: Forward, tokenizer: FastTokenizer, workers: int = 1) -> Encoder:
    return Encoder(
        tokenizer=tokenizer,
        forward=forward,
        device=torch.device("cpu"),
        dim=4,
        max_tokens=128,
        buckets=Buckets(min_tokens=16, max_tokens=128, limit=128),
        budget=Budget(tokens=16 * 8),
        workers=workers,
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB"),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_splits_the_batch_and_says_so_once(
    error: type[RuntimeError], message: str, tokenizer: FastTokenizer
) -> None:
    texts = [chr(97 + i) for i in range(16)]
    enough, short = Short(99, error, message), Short(3, error, message)
    encoder = short_encoder(short, tokenizer)
    expected = short_encoder(enough, tokenizer).embed(texts)
    assert np.array_equal(encoder.embed(texts), expected)
    # Each batch is tried whole again: a lack of memory must not change the batches that follow.
    assert short.calls == [8, 4, 2, 2, 4, 2, 2] * 2
    assert len(encoder.notes) == 1 and "tokens_per_batch=32" in encoder.notes[0]


def test_out_of_memory_with_one_row_is_a_model_error(tokenizer: FastTokenizer) -> None:
    encoder = short_encoder(Short(0, torch.OutOfMemoryError, "CUDA out of memory."), tokenizer)
    with pytest.raises(ModelError, match="one row of 16 tokens; CUDA out of memory"):
        encoder.embed(["a", "b"])


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(tokenizer: FastTokenizer) -> None:
    short = Short(0, RuntimeError, "shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        short_encoder(short, tokenizer).embed(["a"])


# One row at a time


def test_recorded_graphs_that_do_not_fit_leave_smaller_batches_without_a_graph(
    tokenizer: FastTokenizer,
) -> None:
    """A graph is for the number of rows of a whole batch, whatever rows there are to do."""
    plain = Short(5, torch.OutOfMemoryError, "CUDA out of memory.")
    budget = Budget(tokens=16 * 8)
    encoder = short_encoder(compiling._with_fixed_rows(plain, budget), tokenizer)
    texts = [chr(97 + i) for i in range(19)]
    found = encoder.embed(texts)
    enough = Short(99, torch.OutOfMemoryError, "CUDA out of memory.")
    assert np.array_equal(found, short_encoder(enough, tokenizer).embed(texts))
    # Whole batches of 8 are tried, then their halves as they are; the last 3 rows need no filling.
    assert plain.calls == [8, 4, 4, 8, 4, 4, 3]
    assert "batches were split, down to 64 tokens" in encoder.notes[0]


class Lonely:
    """A forward that runs out of memory unless it is alone; the first passes all meet.

    Args:
        n_meet: how many passes wait for each other, so that they fail together.
        too_long: tokens of a row that does not fit even alone.
    """

    def __init__(self, n_meet: int, too_long: int | None = None) -> None:
        self._meet, self._too_long = threading.Barrier(n_meet, timeout=LIMIT_S), too_long
        self._n_meet, self._n_begun, self._n_inside = n_meet, 0, 0
        self._lock = threading.Lock()
        self.n_failed = 0

    def __call__(self, features: Features) -> torch.Tensor:
        with self._lock:
            self._n_inside += 1
            self._n_begun += 1
            meets, others = self._n_begun <= self._n_meet, self._n_inside > 1
        if meets:
            self._meet.wait()
        time.sleep(0.002)
        with self._lock:
            others = meets or others or self._n_inside > 1
            self._n_inside -= 1
            if others or features["input_ids"].shape[1] == self._too_long:
                self.n_failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return features["input_ids"].float()[:, :4]


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("workers", [2, 4])
def test_single_rows_that_fit_only_alone_get_their_vectors(
    workers: int, tokenizer: FastTokenizer
) -> None:
    texts = [chr(97 + i) for i in range(24)]
    forward = Lonely(workers)
    encoder = short_encoder(forward, tokenizer, workers)
    encoder.budget = Budget(rows=1)
    found = encoder.embed(texts)
    encoder.close()
    assert forward.n_failed >= workers
    enough = Short(99, torch.OutOfMemoryError, "CUDA out of memory.")
    assert np.array_equal(found, short_encoder(enough, tokenizer).embed(texts))
    assert encoder.notes == []


@pytest.mark.timeout(2 * LIMIT_S)
def test_single_row_that_fits_not_even_alone_leaves_the_others_their_turn(
    tokenizer: FastTokenizer,
) -> None:
    encoder = short_encoder(Lonely(3, too_long=32), tokenizer, workers=3)
    tokens = tokenizer.tokenize(["a " * 25, "b", "c " * 25, "d", "e", "f"], check=lambda: None)
    encoder.budget = Budget(rows=1)
    batches = encoder.plan(tokens)
    parts = [encoder.start(tokens, batch) for batch in batches]
    for batch, part in zip(batches, parts, strict=True):
        if batch.n_padded_tokens == 32:
            with pytest.raises(ModelError, match="one row of 32 tokens; CUDA out of memory"):
                part.result(timeout=LIMIT_S)
        else:
            assert part.result(timeout=LIMIT_S).shape == (1, 4)
    assert sorted(batch.n_padded_tokens for batch in batches) == [16, 16, 16, 16, 32, 32]
    encoder.close()


@pytest.mark.timeout(2 * LIMIT_S)
def test_turns_alone_means_that_nobody_else_is_inside() -> None:
    turns, lock = Turns(), threading.Lock()
    inside: list[int] = []
    found: list[tuple[bool, int]] = []

    def visit(number: int) -> None:
        alone = number % 3 == 0
        with turns.alone() if alone else turns.together():
            with lock:
                inside.append(number)
            time.sleep(0.001)
            with lock:
                found.append((alone, len(inside)))
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(120), timeout=LIMIT_S))
    assert len(found) == 120
    assert all(n_inside == 1 for alone, n_inside in found if alone)
    assert max(n_inside for alone, n_inside in found if not alone) > 1


def test_turns_are_given_back_after_an_error() -> None:
    turns = Turns()
    for enter in (turns.alone, turns.together, turns.alone):
        with pytest.raises(ZeroDivisionError), enter():
            raise ZeroDivisionError
