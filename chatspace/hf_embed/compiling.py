"""Compiled models: one graph for each bucket, all of them made before the first row.

The length of a batch is fixed in its graph and the number of rows is not, so that the last batch of
a bucket, which is smaller, needs no graph of its own. Modes that record CUDA graphs need both
fixed: there a smaller batch is filled up with copies of its first row.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.device import cpu_name
from chatspace.hf_embed.encoder import Encoder, Forward, is_out_of_memory
from chatspace.hf_embed.tokens import FastTokenizer, Features

_MIN_ROWS = 2  # PyTorch makes a graph of its own for a dimension of one
_RECORDING_MODES = ("reduce-overhead", "max-autotune")


def share_graphs(cache: Path) -> None:
    """Has the compiler keep what it made below `cache`, for the other tasks of this workspace."""
    processor = re.sub(r"\W+", "-", cpu_name())  # code for one is not for another
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor" / processor))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))


def compile_model(model: Any, encoder: Encoder, *, mode: str | None) -> Forward:
    """Compiles a model in place and returns its forward; the first calls make the graphs."""
    forward, budget = encoder.forward, encoder.budget
    model.compile(dynamic=False, mode=mode)
    n_graphs = len(list(encoder.buckets.widths())) + 8

    def with_enough_graphs(features: Features) -> torch.Tensor:
        # Said in each call, because it is a setting of the thread that makes the graphs.
        torch._dynamo.config.recompile_limit = n_graphs
        return forward(features)

    if mode in _RECORDING_MODES:
        return _with_fixed_rows(with_enough_graphs, budget)
    return _with_free_rows(with_enough_graphs)


def _with_free_rows(forward: Forward) -> Forward:
    """Wraps a compiled forward so that one graph serves any number of rows."""

    def free(features: Features) -> torch.Tensor:
        n_rows = len(features["input_ids"])
        filled = _filled_up(features, max(n_rows, _MIN_ROWS))
        for value in filled.values():
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return forward(filled)[:n_rows]

    return free


def _with_fixed_rows(forward: Forward, budget: Budget) -> Forward:
    """Wraps a compiled forward so that all batches of a bucket have the same number of rows.

    Where the memory does not suffice for that number, smaller batches are done without a graph.
    """
    too_wide: set[int] = set()

    def fixed(features: Features) -> torch.Tensor:
        n_rows, width = features["input_ids"].shape
        n_full = budget.n_rows(width)
        if n_rows < n_full and width in too_wide:
            with torch.compiler.set_stance("force_eager"):
                return forward(features)
        try:
            # A copy: the next replay of a graph overwrites what the last one returned.
            return forward(_filled_up(features, max(n_rows, n_full)))[:n_rows].clone()
        except RuntimeError as error:
            if is_out_of_memory(error):
                too_wide.add(width)
            raise

    return fixed


def _filled_up(features: Features, n_rows: int) -> Features:
    """Returns features of `n_rows` rows, the first one repeated where there are fewer."""
    n_missing = n_rows - len(features["input_ids"])
    if n_missing == 0:
        return features
    with torch.inference_mode(False):  # tensors made inside need graphs of their own
        return {
            key: torch.cat([value, value[:1].expand(n_missing, *value.shape[1:])])
            if isinstance(value, torch.Tensor)
            else value
            for key, value in features.items()
        }


def warm_up(encoder: Encoder) -> None:
    """Encodes one batch of each bucket, the largest first, so that all graphs are there."""
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, FastTokenizer):
        return
    for width in reversed(list(encoder.buckets.widths())):
        n_rows = max(_MIN_ROWS, encoder.budget.n_rows(width))
        lengths = np.full(n_rows, width)
        lengths[-1] = 1  # so that the mask is one that hides something
        tokens = tokenizer.made_up(lengths)
        # By the worker that will use the graph: recorded ones belong to their thread.
        encoder.start(tokens, encoder.batch_of_all(tokens)).result()
