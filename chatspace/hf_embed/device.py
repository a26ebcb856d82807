"""What the hardware decides: device, dtype, size of a batch, forward passes at the same time."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatspace.errors import UnfitEnvironmentError
from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.spec import EncodeSection
from chatspace.hf_embed.tokens import FastTokenizer

GPU_TOKENS_PER_BATCH = 131072
GPU_PADDED_TOKENS_PER_BATCH = 32768  # a longer batch has rows of more lengths, and more padding
CPU_TOKENS_PER_BATCH = 2048  # activations of more leave the cache; see docs/benchmarks.md
GPU_WORKERS = 2
MOST_CPU_WORKERS = 16  # each holds activations, and Python's lock while it hands over a layer
# Of what the weights leave: the rest is for workspaces and fragments.
_GPU_MEMORY_SHARE = 0.5
_VOLTA, _AMPERE = (7, 0), (8, 0)  # compute capabilities: the first with tensor cores, with bfloat16
_PROBE_TOKENS, _PROBE_WIDTH = 4096, 128
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # Source: malloc.h of glibc


def pick_device(wanted: str) -> torch.device:
    """Returns the device that a spec asks for; `auto` prefers CUDA, then MPS, then the CPU.

    Raises:
        UnfitEnvironmentError: PyTorch does not see that device.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    device = torch.device(wanted)
    n_seen = {"cuda": torch.cuda.device_count(), "mps": int(has_mps), "cpu": 1}[device.type]
    if (device.index or 0) >= n_seen:
        raise UnfitEnvironmentError(
            f"Device not found: model.device={wanted}; PyTorch {torch.__version__} sees {n_seen} "
            f"{device.type} devices here. Use model.device: auto, or a node that has one."
        )
    return device


def prepare_gpu(device: torch.device, *, tf32: bool) -> None:
    """Has a GPU give the same bits for the same batch each time; does nothing to a CPU.

    Without it, sums over the tokens of a row are added in any order.

    Args:
        device: where the model will be.
        tf32: multiply float32 matrices in TensorFloat-32, with the eleven bits of float16.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would cost a pass over each new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that a spec asks for; `auto` is bfloat16 where the device computes it."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= _AMPERE
    else:
        has_bfloat16 = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if has_bfloat16 else torch.float32


def note_on_dtype(wanted: str, device: torch.device) -> list[str]:
    """Returns a line where `auto` takes float32 on a GPU that is much faster in float16."""
    if wanted != "auto" or device.type != "cuda":
        return []
    if not _VOLTA <= torch.cuda.get_device_capability(device) < _AMPERE:
        return []
    return [
        f"{torch.cuda.get_device_name(device)} does not compute in bfloat16, so model.dtype: auto "
        "is float32; float16 is several times as fast, where the model's numbers fit into it."
    ]


def pick_workers(encode: EncodeSection, device: torch.device, threads: int, compiled: bool) -> int:
    """Returns how many forward passes run at the same time: as the spec says, or what is best."""
    if encode.workers is not None:
        return encode.workers
    if compiled:  # a recorded graph belongs to the thread that recorded it
        return 1
    if device.type == "cpu":
        return min(threads, MOST_CPU_WORKERS)
    return GPU_WORKERS if device.type == "cuda" else 1


def pick_streams(
    device: torch.device, workers: int, *, foreign_code: bool
) -> Callable[[], AbstractContextManager[object]]:
    """Returns what makes the surroundings of a worker: on a GPU a CUDA stream of its own.

    Args:
        device: where the model is.
        workers: how many there will be.
        foreign_code: the model has code of its own, which may keep tensors that one pass made for
            the next one; these need passes in one order, so all stay on one stream.
    """
    if device.type != "cuda":
        return nullcontext
    if workers == 1 or foreign_code:
        return partial(torch.cuda.device, device)
    return partial(own_stream, device)


def own_stream(device: torch.device, cuda: Any = torch.cuda) -> AbstractContextManager[object]:
    """Returns a context whose thread computes on a new CUDA stream.

    The streams share the weights, of which there is one copy; so the new one first waits for what
    the calling thread's stream was given. Afterwards nothing goes from stream to stream: a worker
    copies in, computes and copies out on its own, and hands on an array for whose copy it has
    waited. So the memory of a tensor is used on the stream that it was made on, and no
    `record_stream` is needed.

    Args:
        device: a CUDA device.
        cuda: `torch.cuda`, or what takes its place in a test.
    """
    stream = cuda.Stream(device)
    stream.wait_stream(cuda.current_stream(device))
    context: AbstractContextManager[object] = cuda.stream(stream)
    return context


def pick_budget(encode: EncodeSection, device: torch.device, packs: bool) -> Budget:
    """Returns the size of a batch: as the spec says, else a token budget that suits the device."""
    if encode.batch_size is not None:
        return Budget(rows=encode.batch_size)
    on_gpu = GPU_TOKENS_PER_BATCH if packs else GPU_PADDED_TOKENS_PER_BATCH
    default = CPU_TOKENS_PER_BATCH if device.type == "cpu" else on_gpu
    return Budget(tokens=encode.tokens_per_batch or default)


def fitting_budget(encode: EncodeSection, encoder: Encoder) -> Budget:
    """Returns a token budget that the memory of a GPU has room for, a power of two.

    The memory that a token needs is measured, not guessed. What other programs have in use counts
    as room, so that a batch does not depend on them. A budget that the spec names is kept.
    """
    tokenizer, budget = encoder.tokenizer, encoder.budget
    if encode.batch_size is not None or encode.tokens_per_batch is not None:
        return budget
    if not isinstance(tokenizer, FastTokenizer) or budget.tokens is None:
        return budget
    width = min(_PROBE_WIDTH, encoder.buckets.limit)
    tokens = tokenizer.made_up(np.full(_PROBE_TOKENS // width, width))
    batch = encoder.batch_of_all(tokens)
    before = torch.cuda.memory_allocated(encoder.device)
    torch.cuda.reset_peak_memory_stats(encoder.device)
    encoder.encode(tokens, batch)
    peak = torch.cuda.max_memory_allocated(encoder.device) - before
    _, total = torch.cuda.mem_get_info(encoder.device)
    # By the usual number of workers, not theirs: what a batch is must not depend on it.
    room = int(
        (total - before) * _GPU_MEMORY_SHARE * batch.n_padded_tokens / GPU_WORKERS / max(1, peak)
    )
    return Budget(tokens=min(budget.tokens, 2 ** max(0, room.bit_length() - 1)))


def keep_freed_memory() -> None:
    """Has the C library keep the memory of freed tensors for the next ones.

    Else each layer of each batch gets fresh pages from the kernel, which zeroes them: 5 to 8 % of
    the time of a small model on a CPU. It does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Older ones refuse more than 32 MiB, and the second call alone would make things worse.
    if libc.mallopt(_M_MMAP_THRESHOLD, 2**30) or libc.mallopt(_M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def cpu_name() -> str:
    """Returns the processor's name as Linux says it, else the architecture."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
