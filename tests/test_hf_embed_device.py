from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatspace.hf_embed import device
from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.device import fitting_budget, keep_freed_memory, pick_budget, pick_workers
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


def test_budget_of_a_gpu_that_the_spec_names_is_kept(encoder: Encoder) -> None:
    assert fitting_budget(EncodeSection(tokens_per_batch=9), encoder) == encoder.budget


def test_memory_is_kept_without_an_error_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_freed_memory()
    monkeypatch.setattr(device.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: pytest.fail("no glibc here"))
    keep_freed_memory()
