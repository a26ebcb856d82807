"""The encoder of a slice: batches of tokens in, vectors out, whatever the memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatspace.errors import ModelError
from chatspace.hf_embed.bucketing import Batch, Buckets, Budget, plan_batches
from chatspace.hf_embed.tokens import Features, RowTokenizer, Tokens

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
        trim_to: see `plan_batches`.
        normalize: scale vectors to length one.
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
    trim_to: int | None = None
    normalize: bool = False
    runtime: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _smallest_split: int | None = field(default=None, init=False)

    def plan(self, tokens: Tokens) -> list[Batch]:
        """Returns the batches of a shard."""
        return plan_batches(
            tokens.lengths, buckets=self.buckets, budget=self.budget, trim_to=self.trim_to
        )

    def encode(self, tokens: Tokens, batch: Batch, features: Features | None = None) -> FloatArray:
        """Returns the vectors of one batch, (n_rows, dim), float32, in the order of `batch.rows`.

        A batch that does not fit into memory is halved, and halved again; later ones start whole.

        Args:
            tokens: the shard that the batch is of.
            batch: which of its rows.
            features: what `tokens.features` gives for the batch, if it was made already.

        Raises:
            ModelError: a single row does not fit into memory.
        """
        if features is None:
            features = tokens.features(batch.rows, batch.width)
        reason = self._try_forward(features)
        if not isinstance(reason, str):
            return reason
        if len(batch.rows) == 1:
            raise ModelError(
                f"Out of memory: one row of {batch.width} tokens; {_first_line(reason)} "
                f"Set model.max_tokens lower, or use a device with more memory."
            )
        self._note_split(batch)
        middle = len(batch.rows) // 2
        halves = (batch.rows[:middle], batch.rows[middle:])
        return np.concatenate(
            [self.encode(tokens, Batch(rows=rows, width=batch.width)) for rows in halves]
        )

    def _try_forward(self, features: Features) -> FloatArray | str:
        """Returns vectors, or why the memory did not suffice."""
        try:
            # Moved outside: tensors made in inference mode would need compiled graphs of their own.
            on_device = to_device(features, self.device)
            with torch.inference_mode():
                vectors = self.forward(on_device).float()  # (n_rows, dim)
                if self.normalize:  # in float32, so that half precision gives lengths of one too
                    vectors = torch.nn.functional.normalize(vectors, dim=-1)
                result: FloatArray = vectors.cpu().numpy()
                return result
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Here the exception is gone, and with its traceback the tensors of the failed pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return reason

    def _note_split(self, batch: Batch) -> None:
        n_tokens = -(-len(batch.rows) // 2) * batch.width
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
    """Returns features with their tensors on a device."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in features.items()
    }


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error of PyTorch means that memory is short, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in _MEMORY_SIGNS)


def _first_line(text: str) -> str:
    line = (text.splitlines() or [""])[0].strip()
    return line if line.endswith(".") else f"{line}."
