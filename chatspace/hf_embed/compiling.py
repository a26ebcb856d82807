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

from chatspace.errors import UnfitEnvironmentError
from chatspace.hf_embed.bucketing import Budget
from chatspace.hf_embed.device import cpu_name
from chatspace.hf_embed.encoder import Encoder, Forward, is_out_of_memory
from chatspace.hf_embed.tokens import FastTokenizer, Features

_MIN_ROWS = 2  # PyTorch makes a graph of its own for a dimension of one
_RECORDING_MODES = ("reduce-overhead", "max-autotune")
# Compilers that are missing, by what PyTorch and Triton say of it.
_MISSING = {
    "No working C++ compiler found": "C++ compiler",
    "Failed to find C compiler": "C compiler",
}


def share_graphs(cache: Path) -> None:
    """Has the compiler keep what it made below `cache`, for the other tasks of this workspace.

    Folders that the user names in the environment stay. PyTorch's own default is not the user's
    word: PyTorch writes it there on import, and a process that did so hands it on to its children.
    """
    processor = re.sub(r"\W+", "-", cpu_name())  # code for one is not for another
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": cache / "torchinductor" / processor,
        "TRITON_CACHE_DIR": cache / "triton",
    }
    given = {name: os.environ.get(name) for name in folders}  # as it is before the next line
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    for name, folder in folders.items():
        if not (path := given[name]) or Path(path).is_relative_to(default_cache_dir()):
            os.environ[name] = str(folder)


def compile_model(model: Any, encoder: Encoder, *, mode: str | None) -> Forward:
    """Compiles a model in place and returns its forward; the first calls make the graphs.

    Those calls raise an `UnfitEnvironmentError` where this machine has no compiler.
    """
    forward, budget = encoder.forward, encoder.budget
    model.compile(dynamic=False, mode=mode)
    n_graphs = len(list(encoder.buckets.widths())) + 8

    def with_enough_graphs(features: Features) -> torch.Tensor:
        # Said in each call, because it is a setting of the thread that makes the graphs.
        torch._dynamo.config.recompile_limit = n_graphs
        try:
            return forward(features)
        except RuntimeError as error:  # what the compilers of PyTorch raise is one
            refuse_missing_compiler(error)
            raise

    if mode in _RECORDING_MODES:
        return _with_fixed_rows(with_enough_graphs, budget)
    return _with_free_rows(with_enough_graphs)


def refuse_missing_compiler(error: RuntimeError) -> None:
    """Tells a machine on which no graphs can be made apart from all that may be amiss with a model.

    Raises:
        UnfitEnvironmentError: there is no C++ compiler, or for a GPU no C compiler.
    """
    for sign, compiler in _MISSING.items():
        if sign in str(error):
            raise UnfitEnvironmentError(
                f"No {compiler} on this node: encode.compile=true; PyTorch makes the graphs of a "
                f"compiled model with one. Load one (module load gcc), or leave encode.compile out."
            ) from error


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
