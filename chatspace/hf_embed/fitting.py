"""Makes a loaded model fast, and takes back whatever changes its vectors.

A few texts are embedded one by one as the model came, in its own attention. Each change is then
made and has to give the same vectors; one that does not, or that fails, is undone. So there is no
list of models here: whatever can be packed is packed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from chatspace.hf_embed.bucketing import Batch, packed, padded
from chatspace.hf_embed.linears import prepack_linears
from chatspace.hf_embed.mpnet import is_mpnet, pack_mpnet
from chatspace.hf_embed.packing import PACKED, flash_is_missing
from chatspace.hf_embed.tokens import FastTokenizer, RowTokenizer, Tokens

log = logging.getLogger(__name__)

Embed = Callable[[Tokens, Batch], torch.Tensor]
Undo = Callable[[], None]

LEAST_COSINE = {torch.float32: 0.99999, torch.bfloat16: 0.999, torch.float16: 0.9999}
_TEXTS = ("a", "naïve 北京", "The quick brown fox jumps over the lazy dog.")
_LONGEST_PROBE = 600  # a longer sliding window is not crossed: it would take too long on a CPU


class Fitting:
    """A loaded model, and what its vectors were before anything was changed.

    Args:
        model: as sentence-transformers loaded it; changed in place.
        tokenizer: makes its tokens.
        embed: runs it on a batch, (n_rows, dim), float32, on the CPU.
        device: where it is.
    """

    def __init__(
        self, model: Any, tokenizer: RowTokenizer, embed: Embed, device: torch.device
    ) -> None:
        self._model, self._inner = model, model.transformers_model
        self._tokenizer, self._embed, self._device = tokenizer, embed, device

    def fit(self, *, pack: bool, notes: list[str]) -> bool:
        """Makes the model fast and returns whether it takes joined rows.

        Args:
            pack: join rows if the model can be made to take them.
            notes: gets a line that says why it cannot.
        """
        if self._inner is None:  # no transformer: nothing to attend, and nothing slow
            return False
        self._remember()
        packs = False
        if pack:
            reason = self._pack()
            packs = reason is None
            if reason is not None:
                notes.append(f"Batches are padded; rows of this model cannot be joined: {reason}.")
        if self._device.type == "cpu":
            batch = self._joined if packs else self._padded
            self._try(lambda: prepack_linears(self._model), batch)
        return packs

    def _remember(self) -> None:
        self._tokens = self._tokenizer.tokenize(_probes(self._inner), check=lambda: None)
        lengths = self._tokens.lengths
        order = np.argsort(-lengths, kind="stable")  # (n_probes,)
        self._joined = packed(order, lengths)
        self._padded = padded(order, int(lengths.max()))
        alone = [padded(order[[place]], int(lengths[row])) for place, row in enumerate(order)]
        self._expected = torch.cat([self._embed(self._tokens, batch) for batch in alone])

    def _pack(self) -> str | None:
        """Makes the model take joined rows; returns why it cannot, if it cannot."""
        return self._obstacle() or self._try(self._set_attention, self._joined)

    def _obstacle(self) -> str | None:
        name, own = type(self._inner).__name__, is_mpnet(self._inner)
        tokenizer, on_gpu = self._tokenizer, self._device.type == "cuda"
        obstacles = {
            "its rows are tokenised by sentence-transformers": not isinstance(
                tokenizer, FastTokenizer
            ),
            "it has no pooling layer": not any(
                isinstance(module, Pooling) for module in self._model.children()
            ),
            f"{name} takes no positions": not getattr(tokenizer, "takes_positions", False),
            f"{name} does not let its attention be replaced": not own
            and not self._inner.is_backend_compatible(),
            "its attention is in chunks": getattr(
                self._inner.config.get_text_config(), "attention_chunk_size", None
            )
            is not None,
            "flash attention has no float32": on_gpu and self._inner.dtype == torch.float32,
            "flash attention has no biases": on_gpu and own,
            "flash attention of joined rows needs PyTorch 2.12 or newer": on_gpu
            and flash_is_missing(),
        }
        return next((reason for reason, holds in obstacles.items() if holds), None)

    def _set_attention(self) -> Undo:
        if is_mpnet(self._inner):
            return pack_mpnet(self._inner)
        before = self._inner.config._attn_implementation
        if before.startswith("flash_attention"):  # it takes joined rows as it is
            return lambda: None
        self._inner.set_attn_implementation(PACKED)
        return lambda: self._inner.set_attn_implementation(before)

    def _try(self, change: Callable[[], Undo], batch: Batch) -> str | None:
        """Makes a change and returns None, or undoes it and returns why."""
        undo: Undo | None = None
        try:
            undo = change()
            reason = self._difference(self._embed(self._tokens, batch))
        except Exception as error:  # whatever it is, the model stays as it came
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        if reason is not None:
            log.debug("model change undone reason=%s", reason)
            if undo is not None:
                undo()
        return reason

    def _difference(self, found: torch.Tensor) -> str | None:
        cosine = torch.cosine_similarity(found, self._expected).min().item()
        least = LEAST_COSINE.get(self._inner.dtype, LEAST_COSINE[torch.bfloat16])
        return None if cosine >= least else f"its vectors would differ, cosine {cosine:.5f}"


def _probes(inner: Any) -> list[str]:
    """Returns short texts, and one longer than a sliding window where the model has one."""
    config = inner.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "local_attention"))
    longest = max((window for window in windows if isinstance(window, int)), default=0)
    return [*_TEXTS, "so many words " * (min(longest, _LONGEST_PROBE) // 2 + 4)]
