"""Makes a loaded model fast, and takes back whatever changes its vectors.

A few texts are embedded one by one as the model came, in its own attention. Each change is then
made and has to give the same vectors; one that does not, or that fails, is undone. So there is no
list of models here: whatever can be packed is packed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

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
_WORDS = "so many words "
# In tokens; on a CPU, below half a second of attention.
_LONGEST_PROBE, _LONGEST_CPU_PROBE = 6144, 1536
_MOST_CPU_WORK = 2**37  # weights times tokens of a probe: about a second on two cores


class Fitting:
    """A loaded model, and what its vectors were before anything was changed.

    Args:
        model: as sentence-transformers loaded it; changed in place.
        tokenizer: makes its tokens.
        embed: runs it on a batch, (n_rows, dim), float32, on the CPU.

    Attributes:
        dim: length of the vectors.
    """

    def __init__(self, model: Any, tokenizer: RowTokenizer, embed: Embed) -> None:
        self._model, self._inner, self._device = model, model.transformers_model, model.device
        self._tokenizer, self._embed = tokenizer, embed
        self._texts, self._expected = list(_TEXTS), self._one_by_one(_TEXTS)  # (n_texts, dim)
        self.dim = self._expected.shape[1]

    def fit(self, *, pack: bool, notes: list[str]) -> bool:
        """Makes the model fast and returns whether it takes joined rows.

        Args:
            pack: join rows if the model can be made to take them.
            notes: gets a line that says why it cannot.
        """
        if self._inner is None:  # no transformer: nothing to attend, and nothing slow
            return False
        packs = False
        if pack:
            reason = self._pack()
            packs = reason is None
            if reason is not None:
                notes.append(f"Batches are padded; rows of this model cannot be joined: {reason}.")
        if self._device.type == "cpu":
            self._try(lambda: prepack_linears(self._model), _TEXTS, join=packs)
        return packs

    def _one_by_one(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns the vectors of texts, each in a batch of its own, (n_texts, dim)."""
        tokens = self._tokenizer.tokenize(texts, check=lambda: None)
        rows = np.arange(len(texts))
        batches = [padded(rows[[row]], int(tokens.lengths[row])) for row in rows]
        return torch.cat([self._embed(tokens, batch) for batch in batches])

    def _pack(self) -> str | None:
        """Makes the model take joined rows; returns why it cannot, if it cannot."""
        reason = self._obstacle() or self._look_beyond_window()
        if reason is not None:
            return reason
        for name in self._attentions():
            reason = self._try(partial(self._set_attention, name), self._texts, join=True)
            if reason is None:
                break
        return reason

    def _attentions(self) -> list[str]:
        """Returns the attentions of joined rows that are here, the fastest first."""
        if is_mpnet(self._inner) or self._device.type != "cuda":
            return [PACKED]
        named = self._inner.config._attn_implementation
        if named.startswith("flash_attention"):  # as the spec says
            return [named]
        found = ["flash_attention_3"] if is_flash_attn_3_available() else []
        if not flash_is_missing():
            found.append(PACKED)
        elif is_flash_attn_2_available():
            found.append("flash_attention_2")
        return found

    def _look_beyond_window(self) -> str | None:
        """Adds a text that is longer than the sliding window, where rows can be.

        Returns why that cannot be, if it cannot: such rows would then be joined uncompared.
        """
        window = sliding_window(self._inner)
        if window is None or self._n_longest() <= window:
            return None
        n_tokens, most = window * 3 // 2, longest_probe(self._inner, self._device)
        if n_tokens > most:
            return (
                f"its sliding window of {window:,} tokens is too long to be compared here, where "
                f"windows up to {most * 2 // 3:,} are; model.max_tokens: {window} needs no window"
            )
        in_eight = self._tokenizer.count(9 * _WORDS) - self._tokenizer.count(_WORDS)
        text = _WORDS * (1 + 8 * n_tokens // in_eight)
        self._texts.append(text)
        self._expected = torch.cat([self._expected, self._one_by_one([text])])
        return None

    def _n_longest(self) -> float:
        """Returns the longest row that can occur, in tokens."""
        limit: int | None = self._model.max_seq_length
        return float("inf") if limit is None else limit

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
            "its positions (LongRoPE) depend on the longest row of a batch": (
                long_rope_start(self._inner, self._n_longest()) is not None
            ),
            "flash attention has no float32": on_gpu and self._inner.dtype == torch.float32,
            "flash attention has no biases": on_gpu and own,
            "flash attention of joined rows needs PyTorch 2.12 or newer, or flash-attn": (
                not self._attentions()
            ),
        }
        return next((reason for reason, holds in obstacles.items() if holds), None)

    def _set_attention(self, name: str) -> Undo:
        if is_mpnet(self._inner):
            return pack_mpnet(self._inner)
        before = self._inner.config._attn_implementation
        if before == name:
            return lambda: None
        self._inner.set_attn_implementation(name)
        return lambda: self._inner.set_attn_implementation(before)

    def _try(self, change: Callable[[], Undo], texts: Sequence[str], *, join: bool) -> str | None:
        """Makes a change and returns None, or undoes it and returns why."""
        tokens = self._tokenizer.tokenize(texts, check=lambda: None)
        rows = np.argsort(-tokens.lengths, kind="stable")  # (n_texts,)
        batch = packed(rows, tokens.lengths) if join else padded(rows, int(tokens.lengths.max()))
        undo: Undo | None = None
        try:
            undo = change()
            reason = self._difference(self._embed(tokens, batch), self._expected[rows])
        except Exception as error:  # whatever it is, the model stays as it came
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        if reason is not None:
            log.debug("model change undone reason=%s", reason)
            if undo is not None:
                undo()
        return reason

    def _difference(self, found: torch.Tensor, expected: torch.Tensor) -> str | None:
        cosine = torch.cosine_similarity(found, expected).min().item()
        least = LEAST_COSINE.get(self._inner.dtype, LEAST_COSINE[torch.bfloat16])
        return None if cosine >= least else f"its vectors would differ, cosine {cosine:.5f}"


def sliding_window(inner: Any) -> int | None:
    """Returns how far a token of a transformers model sees in some layer, None if to both ends."""
    config = inner.config.get_text_config()
    named = (getattr(config, name, None) for name in ("sliding_window", "local_attention"))
    return max((window for window in named if isinstance(window, int)), default=None)


def long_rope_start(inner: Any, limit: float) -> int | None:
    """Returns the longest row whose positions turn as in short rows, None if all do.

    A LongRoPE model turns them more slowly in a batch with any row above that length, so that a
    short row beside a long one gets another vector than alone.

    Args:
        inner: a transformers model, None where there is none.
        limit: the longest row that can occur, in tokens.

    Source: `longrope_frequency_update` of `transformers.modeling_rope_utils`.
    """
    config = None if inner is None else inner.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    key = "original_max_position_embeddings"
    starts = (int(part[key]) for part in layers if part.get("rope_type") == "longrope")
    return min((start for start in starts if start < limit), default=None)


def longest_probe(inner: Any, device: torch.device) -> int:
    """Returns the longest text, in tokens, that may be embedded to compare vectors."""
    if device.type != "cpu":
        return _LONGEST_PROBE
    linears = (module for module in inner.modules() if isinstance(module, torch.nn.Linear))
    n_weights = sum(linear.weight.numel() for linear in linears)
    return min(_LONGEST_CPU_PROBE, _MOST_CPU_WORK // max(1, n_weights))
