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
    note_on_dtype,
    own_stream,
    pick_budget,
    pick_streams,
    pick_workers,
    prepare_gpu,
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
    # What is free at the moment does not matter.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 5000 + free))


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (10**12, 131072),  # room for more than the usual budget
        (4 * 20_000 * BYTES_PER_TOKEN, 16384),  # half of it, for two workers: 20,000 tokens each
        (1, 1),
    ],
)
def test_budget_of_a_gpu_is_what_its_memory_has_room_for_beside_the_weights(
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
    made = {
        (workers, foreign): pick_streams(GPU, workers, foreign_code=foreign)
        for workers in (1, 2)
        for foreign in (False, True)
    }
    has_stream = {key: getattr(make, "func", None) is own_stream for key, make in made.items()}
    assert has_stream == {(1, False): False, (1, True): False, (2, False): True, (2, True): False}


@pytest.mark.parametrize(
    ("capability", "wanted", "is_told"),
    [((7, 5), "auto", True), ((7, 5), "float32", False), ((8, 0), "auto", False),
     ((6, 1), "auto", False)],
)  # fmt: skip
def test_auto_tells_of_float16_on_a_gpu_that_computes_in_it_and_not_in_bfloat16(
    capability: tuple[int, int], wanted: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    told = note_on_dtype(wanted, GPU)
    assert len(told) == is_told and all("Tesla T4 does not compute in bf" in line for line in told)
    assert note_on_dtype(wanted, CPU) == []


def test_a_gpu_is_asked_for_the_same_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare_gpu(CPU, tf32=True)
    assert asked == [] and torch.utils.deterministic.fill_uninitialized_memory
    for tf32, precision in ((False, "highest"), (True, "high")):
        prepare_gpu(torch.device("cuda"), tf32=tf32)
        assert asked == [((True,), {"warn_only": True}), precision]
        asked.clear()
    assert not torch.utils.deterministic.fill_uninitialized_memory


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
