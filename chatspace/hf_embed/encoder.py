"""The encoder of a slice: batches of tokens in, vectors out, whatever the memory allows.

Several forward passes run at the same time, each in a thread of its own. On a CPU each has one
core, which beats one pass on all of them: small layers do not divide well. On a GPU there are two:
while the device works at one batch, the next is made and handed over. All passes share one copy of
the weights; on a GPU each worker has a CUDA stream of its own, see `device.own_stream`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatspace.errors import RowTooLargeError
from chatspace.hf_embed.bucketing import (
    CPU_FILL_TO,
    Batch,
    Buckets,
    Budget,
    packed,
    padded,
    plan_batches,
    plan_packs,
)
from chatspace.hf_embed.tokens import Features, RowTokenizer, Tokens
from chatspace.hf_embed.turns import Turns
from chatspace.hf_embed.workers import Workers

FloatArray = npt.NDArray[np.float32]
Forward = Callable[[Features], torch.Tensor]

_MEMORY_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


@dataclass(slots=True, kw_only=True)
class Encoder:
    """A loaded model and how its batches are made.

    Attributes:
        tokenizer: makes tokens of texts.
        forward: from features on the device to vectors, (n_rows, dim).
        device: where the model is.
        dim: length of the vectors.
        max_tokens: longest row in tokens; None if the model has no limit.
        packs: the model takes joined rows; else padded ones.
        trim_to: see `plan_batches`.
        normalize: scale vectors to length one.
        workers: forward passes at the same time.
        threads: CPU threads that all of them may use together.
        around_worker: makes what a worker's thread is inside of as long as it lives.
        runtime: what is really used, for the manifests.
        notes: what the user should know, one line each.
    """

    tokenizer: RowTokenizer
    forward: Forward
    device: torch.device
    dim: int
    max_tokens: int | None
    buckets: Buckets
    budget: Budget
    packs: bool = False
    trim_to: int | None = None
    normalize: bool = False
    workers: int = 1
    threads: int = 1
    around_worker: Callable[[], AbstractContextManager[object]] = nullcontext
    runtime: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _smallest_split: int | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _turns: Turns = field(default_factory=Turns, init=False)
    _pool: Workers | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Says in `runtime` what a batch is."""
        self.take_budget(self.budget)

    def take_budget(self, budget: Budget) -> None:
        """Makes batches of this size from now on."""
        self.budget = budget
        self.runtime.update(tokens_per_batch=budget.tokens, batch_size=budget.rows)

    def plan(self, tokens: Tokens) -> list[Batch]:
        """Returns the batches of a shard; rows without tokens are in none of them."""
        if self.packs:
            if self.device.type != "cpu":
                return plan_packs(tokens.lengths, self.budget)
            return plan_packs(tokens.lengths, self.budget, halve_tail=True, fill_to=CPU_FILL_TO)
        return plan_batches(
            tokens.lengths, buckets=self.buckets, budget=self.budget, trim_to=self.trim_to
        )

    def batch_of_all(self, tokens: Tokens) -> Batch:
        """Returns one batch with all rows, as the model takes it."""
        rows = np.argsort(-tokens.lengths, kind="stable")
        if self.packs:
            return packed(rows, tokens.lengths)
        return padded(rows, self.buckets.width(int(tokens.lengths.max())))

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Returns the vectors of some texts, (n_texts, dim), float32, as a shard would have them.

        Raises:
            RowTooLargeError: a single text does not fit into memory.
        """
        tokens = self.tokenizer.tokenize(texts, check=lambda: None)
        vectors = np.zeros((len(texts), self.dim), np.float32)
        parts = [(batch, self.start(tokens, batch)) for batch in self.plan(tokens)]
        for batch, part in parts:
            vectors[batch.rows] = part.result()
        return vectors

    def start(self, tokens: Tokens, batch: Batch) -> Future[FloatArray]:
        """Has a worker do `encode`."""
        if self._pool is None:
            each = max(1, self.threads // self.workers)
            self._pool = Workers(self.workers, each, self.around_worker)
        return self._pool.submit(self.encode, tokens, batch)

    def close(self, wait_s: float = 0.0) -> None:
        """Ends the workers after what they have in hand, and waits at most so long for that."""
        if self._pool is not None:
            self._pool.close(wait_s)
            self._pool = None

    def encode(self, tokens: Tokens, batch: Batch) -> FloatArray:
        """Returns the vectors of one batch, (n_rows, dim), float32, in the order of `batch.rows`.

        A batch that does not fit into memory is halved, and halved again; later ones start whole. A
        single row that does not fit is tried once more while no other worker is in a forward pass.

        Args:
            tokens: the shard that the batch is of.
            batch: which of its rows.

        Raises:
            RowTooLargeError: a single row does not fit into memory, not even alone.
        """
        features = tokens.features(batch)
        with self._turns.together():
            found = self._try_forward(features, len(batch.rows))
        if not isinstance(found, str):
            return found
        if len(batch.rows) == 1:
            return self._encode_alone(features, batch)
        halves = batch.halves(tokens.lengths)
        with self._lock:
            self._note_split(max(half.n_padded_tokens for half in halves))
        return np.concatenate([self.encode(tokens, half) for half in halves])

    def _encode_alone(self, features: Features, batch: Batch) -> FloatArray:
        with self._turns.alone():
            _free_memory()  # also what other workers' passes have left behind
            found = self._try_forward(features, 1)
        if not isinstance(found, str):
            return found
        raise RowTooLargeError(
            f"Out of memory: one row of {batch.n_padded_tokens} tokens; {_first_line(found)} "
            f"Set model.max_tokens lower, or use a device with more memory."
        )

    def _try_forward(self, features: Features, n_rows: int) -> FloatArray | str:
        """Returns the vectors of the first rows, or why the memory did not suffice."""
        try:
            # Moved outside: tensors made in inference mode would need compiled graphs of their own.
            on_device = to_device(features, self.device)
            with torch.inference_mode():
                vectors = self.forward(on_device)[:n_rows].float()  # (n_rows, dim)
                if self.normalize:  # in float32, so that half precision gives lengths of one too
                    vectors = torch.nn.functional.normalize(vectors, dim=-1)
                return to_host(vectors)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Here the exception is gone, and with its traceback the tensors of the failed pass.
        _free_memory()
        return reason

    def _note_split(self, n_tokens: int) -> None:
        if self._smallest_split is not None and n_tokens >= self._smallest_split:
            return
        prefix = "Out of memory: "
        self.notes[:] = [note for note in self.notes if not note.startswith(prefix)]
        self._smallest_split = n_tokens
        self.notes.append(
            f"{prefix}batches were split, down to {n_tokens} tokens, and the run went on; their "
            f"rows were encoded in smaller batches, so that their bits may differ from an "
            f"undisturbed run. Set encode.tokens_per_batch={n_tokens} to avoid it."
        )


def to_device(features: Features, device: torch.device) -> Features:
    """Returns features with their tensors on a device; a copy to a GPU is not waited for."""
    on_gpu = device.type == "cuda"
    return {
        key: (value.pin_memory() if on_gpu else value).to(device, non_blocking=on_gpu)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in features.items()
    }


def to_host(vectors: torch.Tensor) -> FloatArray:
    """Returns vectors as an array; only the thread that needs it waits for the device."""
    if not vectors.is_cuda:
        result: FloatArray = vectors.cpu().numpy()
        return result
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(vectors.device))
    copied.synchronize()  # Python's lock is free meanwhile, for the thread with the next batch
    return host.numpy().copy()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error of PyTorch means that memory is short, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _MEMORY_SIGNS)


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(text: str) -> str:
    line = (text.splitlines() or [""])[0].strip()
    return line if line.endswith(".") else f"{line}."
