"""How many tokens a forward pass on this CPU should have, found by trying.

Too few, and each layer's fixed cost shows; too many, and its activations leave the cache. Where the
best lies depends on the model, the processor and on who else uses its cache.

Not covered: GPUs, where it is the memory that decides; see `device.fitting_budget`.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from chatspace.hf_embed.bucketing import Budget, IntArray
from chatspace.hf_embed.device import CPU_TOKENS_PER_BATCH
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.spec import EncodeSection
from chatspace.hf_embed.tokens import FastTokenizer

log = logging.getLogger(__name__)

LEAST_ROWS = 20_000  # a slice of fewer rows is done before it is worth it
_CANDIDATES = (1024, 2048, 4096, 8192)
_GAIN = 1.03  # what a budget must be faster than the usual one by: less is noise
_MEDIAN_TOKENS, _SPREAD = 80, 1.0  # of the made-up rows: log-normal, as passages are


def tuned_budget(
    encode: EncodeSection, encoder: Encoder, *, n_rows: int, seconds: float = 2.5
) -> Budget:
    """Returns the token budget that gave the most tokens a second, or the one that it has.

    It has no part in what a vector is: joined rows have the same bits in any company, which
    `tests/test_hf_embed_encoder.py` holds. The exception is a batch of a single token in float32.

    Args:
        encode: a size of batch that it names is kept.
        encoder: on a CPU.
        n_rows: rows to come; see `LEAST_ROWS`.
        seconds: about how long it may take.
    """
    named = encode.tokens_per_batch or encode.batch_size or encode.compile
    if named or not encoder.packs or n_rows < LEAST_ROWS:
        return encoder.budget
    start, speeds = time.perf_counter(), dict[int, float]()
    for n_tokens in _CANDIDATES:
        speeds[n_tokens] = _tokens_per_s(encoder, n_tokens)
        next_s = 2 * (1 + encoder.workers) * n_tokens / speeds[n_tokens]
        if time.perf_counter() - start + next_s > seconds:
            break
    log.info("token budgets measured %s", {n: round(speed) for n, speed in speeds.items()})
    best = max(speeds, key=lambda n_tokens: speeds[n_tokens])
    usual = speeds.get(CPU_TOKENS_PER_BATCH)
    if usual is None or speeds[best] < _GAIN * usual:
        return encoder.budget
    return Budget(tokens=best)


def _tokens_per_s(encoder: Encoder, n_tokens: int) -> float:
    """Returns the speed of as many batches of about `n_tokens` tokens as there are workers."""
    assert isinstance(encoder.tokenizer, FastTokenizer)
    tokens = encoder.tokenizer.made_up(_lengths(n_tokens, encoder.buckets.limit))
    batch = encoder.batch_of_all(tokens)
    encoder.start(tokens, batch).result()  # oneDNN makes its kernels for a new size
    start = time.perf_counter()
    parts = [encoder.start(tokens, batch) for _ in range(encoder.workers)]
    for part in parts:
        part.result()
    return encoder.workers * batch.n_padded_tokens / (time.perf_counter() - start)


def _lengths(n_tokens: int, limit: int) -> IntArray:
    """Returns lengths of rows that have `n_tokens` tokens together, the same in each call."""
    draw = np.random.default_rng(0).lognormal(np.log(_MEDIAN_TOKENS), _SPREAD, n_tokens)
    lengths = np.clip(draw, 1, min(limit, n_tokens)).astype(np.int64)
    return lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), n_tokens)))]
