"""Compiled models: one graph for each bucket, all of them made before the first row.

The length of a batch is fixed in its graph and the number of rows is not, so that the last batch of
a bucket, which is smaller, needs no graph of its own.

Not covered: modes of torch.compile that record CUDA graphs record one for each number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from chatspace.hf_embed.bucketing import padded
from chatspace.hf_embed.encoder import Encoder, Forward
from chatspace.hf_embed.tokens import FastTokenizer, Features

_MIN_ROWS = 2  # PyTorch makes a graph of its own for a dimension of one


def compile_model(model: Any, mode: str | None, n_buckets: int) -> None:
    """Compiles a model's forward pass in place; the graphs are made when it is first called."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, n_buckets + 8)
    model.compile(dynamic=False, mode=mode)


def with_free_rows(forward: Forward) -> Forward:
    """Wraps a compiled forward so that one graph serves any number of rows."""

    def free(features: Features) -> torch.Tensor:
        tensors = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}
        n_rows = len(features["input_ids"])
        if n_rows < _MIN_ROWS:
            with torch.inference_mode(False):  # tensors made inside need graphs of their own
                twice = {key: value.repeat(_MIN_ROWS, 1) for key, value in tensors.items()}
            return free(features | twice)[:n_rows]
        for tensor in tensors.values():
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return forward(features)

    return free


def warm_up(encoder: Encoder) -> None:
    """Encodes one batch of each bucket, the largest first, so that all graphs are there."""
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, FastTokenizer):
        return
    for width in reversed(list(encoder.buckets.widths())):
        n_rows = max(_MIN_ROWS, encoder.budget.n_rows(width))
        tokens = tokenizer.made_up(n_rows, width)
        encoder.encode(tokens, padded(np.arange(n_rows), width))
