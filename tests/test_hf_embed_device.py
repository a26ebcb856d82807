from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from chatspace.hf_embed import device
from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.device import (
    fitting_budget,
    keep_freed_memory,
    own_stream,
    pick_budget,
    pick_streams,
    pick_workers,
)
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BYTES_PER_TOKEN = 1000


@pytest.mark.parametrize(
    ("encode", "where", "threads", "compiled", "workers"),
    [
        (EncodeSection(), CPU, 2, False, 2),
        (EncodeSection(), CPU, 64, False, 16),
        (EncodeSection(), GPU, 64, False, 2),
        (EncodeSection(compile=True), CPU, 8, True, 1),
        (EncodeSection(workers=3), CPU, 8, False, 3),
    ],
)
def test_workers_are_as_many_as_the_device_likes(
    encode: EncodeSection, where: torch.device, threads: int, compiled: bool, workers: int
) -> None:
    assert pick_workers(encode, where, threads, compiled) == workers


@pytest.mark.parametrize(
    ("encode", "where", "packs", "budget"),
    [
        (EncodeSection(), CPU, True, Budget(tokens=2048)),
        (EncodeSection(), CPU, False, Budget(tokens=2048)),
        (EncodeSection(), GPU, True, Budget(tokens=131072)),
        (EncodeSection(), GPU, False, Budget(tokens=32768)),
        (EncodeSection(tokens_per_batch=100), GPU, True, Budget(tokens=100)),
        (EncodeSection(batch_size=7), GPU, True, Budget(rows=7)),
    ],
)
def test_budget_is_what_the_spec_names_or_the_device_likes(
    encode: EncodeSection, where: torch.device, packs: bool, budget: Budget
) -> None:
    assert pick_budget(encode, where, packs) == budget


@pytest.fixture
def encoder(tiny_model: Path) -> Encoder:
    section = ModelSection(name=str(tiny_model), device="cpu", dtype="float32")
    encoder = load_encoder(section, EncodeSection(workers=2), path=str(tiny_model))
    encoder.budget = Budget(tokens=131072)
    return encoder


def with_gpu_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Has a pretended GPU say that the probe's 4096 tokens took 4,096,000 bytes."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    peak = 5000 + device._PROBE_TOKENS * BYTES_PER_TOKEN
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2 * free))


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (10**12, 131072),  # room for more than the usual budget
        (4 * 20_000 * BYTES_PER_TOKEN, 16384),  # half of it, for two workers: 20,000 tokens each
        (1, 1),
    ],
)
def test_budget_of_a_gpu_is_what_its_free_memory_has_room_for(
    free: int, tokens: int, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu_memory(monkeypatch, free)
    assert fitting_budget(EncodeSection(), encoder) == Budget(tokens=tokens)


class FakeCuda:
    """What `own_stream` takes of `torch.cuda`: streams that wait, and are current in a thread."""

    def __init__(self) -> None:
        self.waits: list[tuple[int, str]] = []
        self._streams = 0
        self._here = threading.local()

    def Stream(self, device: torch.device) -> Any:
        assert device == GPU
        self._streams += 1
        return FakeStream(self, self._streams)

    def current_stream(self, device: torch.device) -> Any:
        assert device == GPU
        return getattr(self._here, "stream", "default")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self._here.stream = stream
        yield
        del self._here.stream


class FakeStream:
    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self._cuda, self.number = cuda, number

    def wait_stream(self, other: str) -> None:
        self._cuda.waits.append((self.number, other))


def test_each_worker_computes_on_a_stream_of_its_own_after_what_was_before(
    encoder: Encoder,
) -> None:
    cuda, meet = FakeCuda(), threading.Barrier(3, timeout=20)
    encoder.workers, encoder.budget = 3, Budget(rows=1)
    encoder.around_worker = partial(own_stream, GPU, cuda)
    plain, streams = encoder.forward, []

    def forward(features: Any) -> torch.Tensor:
        meet.wait()  # so that each worker takes one
        streams.append(cuda.current_stream(GPU).number)
        return plain(features)

    encoder.forward = forward
    encoder.embed(["a", "b", "c", "d", "e", "f"])
    encoder.close(20)
    assert sorted(streams) == [1, 1, 2, 2, 3, 3]
    assert cuda.waits == [(1, "default"), (2, "default"), (3, "default")]


def test_streams_are_for_several_workers_of_a_gpu() -> None:
    assert pick_streams(CPU, 2, foreign_code=False) is nullcontext
    assert pick_streams(GPU, 1, foreign_code=False) is nullcontext
    assert pick_streams(GPU, 2, foreign_code=True) is nullcontext
    assert pick_streams(GPU, 2, foreign_code=False) is not nullcontext


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_streams_on_a_gpu_give_the_same_bits_as_one(dtype: str, tiny_model: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    section = ModelSection(name=str(tiny_model), device="cuda", dtype=dtype)
    texts = [" ".join(["word"] * (1 + row % 90)) for row in range(400)]
    found, streams = [], {1: set(), 4: set()}
    for workers, seen in streams.items():
        encode = EncodeSection(workers=workers, tokens_per_batch=512)
        encoder = load_encoder(section, encode, path=str(tiny_model))
        plain = encoder.forward

        def forward(features: Any, plain: Any = plain, seen: set[int] = seen) -> torch.Tensor:
            seen.add(torch.cuda.current_stream().cuda_stream)
            return plain(features)

        encoder.forward = forward
        found += [encoder.embed(texts).tobytes() for _ in range(3)]
        encoder.close(20)
    assert len(set(found)) == 1
    default = torch.cuda.default_stream().cuda_stream
    assert streams[1] == {default}
    assert 1 < len(streams[4]) <= 4 and default not in streams[4]


def test_budget_of_a_gpu_that_the_spec_names_is_kept(encoder: Encoder) -> None:
    assert fitting_budget(EncodeSection(tokens_per_batch=9), encoder) == encoder.budget


def test_memory_is_kept_without_an_error_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_freed_memory()
    monkeypatch.setattr(device.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: pytest.fail("no glibc here"))
    keep_freed_memory()
