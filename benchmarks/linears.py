"""Prints what a CPU gains from laying out the weights of linear layers, by us and by torch.compile.

usage: python benchmarks/linears.py [--quick] > table.md

Three forward passes of all-MiniLM-L6-v2 over the same joined rows take turns, in one thread: plain
layers; layers whose weights oneDNN has laid out once (`chatspace.hf_embed.linears`, what a run
does); and the model compiled by torch.compile with frozen weights, which lays them out too, fuses
activations and residuals into them, and needs a C++ compiler on every node. Each row carries the
smallest cosine of a text's vector, the mean of its tokens, to that of the plain layers in float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from corpora import LIMIT, corpus
from minilm import prepared_model, token_count
from report import hardware, least_cosine, median_ratio, print_table, versions

from chatspace.hf_embed import packing
from chatspace.hf_embed.bucketing import Batch, Budget, plan_packs
from chatspace.hf_embed.device import keep_freed_memory
from chatspace.hf_embed.linears import prepack_linears
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import Features

Pass = Callable[[Features], torch.Tensor]
Array = npt.NDArray[np.float32]
OPAQUE = "chatspace_opaque"
_groups: list[list[tuple[int, int]]] = [[]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all passes are given.

    Attributes:
        batches: joined rows.
        n_tokens: of all rows.
        expected: vectors of the plain layers in float32, (n_rows, hidden_size).
    """

    batches: list[Features]
    n_tokens: int
    expected: Array


@torch.library.custom_op("chatspace::attend", mutates_args=())
def opaque_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Is the packed attention as one step for the compiler, which cannot trace its loop."""
    options = {"scaling": scale, "is_causal": False, "row_groups": _groups[0]}
    return packing.attend(torch.nn.Identity(), query, key, value, None, **options)[0].clone()


@opaque_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def attend(
    module: torch.nn.Module, query: Any, key: Any, value: Any, mask: None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Is the attention implementation of all three."""
    return opaque_attention(query, key, value, options["scaling"]), None


def model(folder: str, dtype: torch.dtype) -> Any:
    """Returns the transformer alone."""
    from transformers import AttentionInterface, AutoModel, logging

    logging.set_verbosity_error()
    AttentionInterface.register(OPAQUE, attend)
    loaded = AutoModel.from_pretrained(
        folder, dtype=dtype, attn_implementation=OPAQUE, add_pooling_layer=False
    )
    return loaded.eval()


def forward(of: Any) -> Pass:
    """Returns the forward pass of a model, (1, n_tokens, hidden_size)."""

    def run(features: Features) -> torch.Tensor:
        found: torch.Tensor = of(
            input_ids=features["input_ids"], position_ids=features["position_ids"]
        ).last_hidden_state
        return found

    return run


def passes(folder: str, dtype: torch.dtype) -> dict[str, Pass]:
    """Returns the three forward passes."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    laid_out = model(folder, dtype)
    prepack_linears(laid_out)
    return {
        "plain": forward(model(folder, dtype)),
        "laid out": forward(laid_out),
        "compiled, frozen": torch.compile(forward(model(folder, dtype)), dynamic=True),
    }


def seconds(run: Pass, batches: Sequence[Features]) -> float:
    """Returns how long all batches take."""
    start = time.perf_counter()
    with torch.no_grad():
        for features in batches:
            _groups[0] = features["row_groups"]
            run(features)
    return time.perf_counter() - start


def vectors(run: Pass, batches: Sequence[Features]) -> Array:
    """Returns the mean of each row's tokens, (n_rows, hidden_size)."""
    found = []
    with torch.no_grad():
        for features in batches:
            _groups[0] = features["row_groups"]
            hidden = run(features)[0].float()  # (n_tokens, hidden_size)
            lengths = features["cu_seq_lens_q"].diff().long()  # (n_rows,)
            found.append(torch.segment_reduce(hidden, "mean", lengths=lengths).numpy())
    return np.concatenate(found)


def work_of(folder: str, n_tokens: int) -> Work:
    """Returns joined rows of passages, and the vectors that they should have."""
    section = ModelSection(name=folder, device="cpu", dtype="float32", max_tokens=LIMIT)
    encoder = load_encoder(section, EncodeSection(), path=folder)
    texts = corpus("passages", n_tokens=n_tokens, count=token_count(Path(folder)))
    tokens = encoder.tokenizer.tokenize(texts, check=lambda: None)
    plan: list[Batch] = plan_packs(tokens.lengths, Budget(tokens=2048))
    batches = [tokens.features(batch) for batch in plan]
    expected = vectors(forward(model(folder, torch.float32)), batches)
    return Work(batches=batches, n_tokens=int(tokens.lengths.sum()), expected=expected)


def compare(folder: str, dtype: torch.dtype, work: Work, n_rounds: int) -> list[list[object]]:
    """Returns the rows of the table for one dtype."""
    runs = passes(folder, dtype)
    first_s = {name: seconds(run, work.batches) for name, run in runs.items()}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name, run in runs.items():
            speeds[name].append(work.n_tokens / seconds(run, work.batches))
    rows: list[list[object]] = []
    for name, run in runs.items():
        median = statistics.median(speeds[name])
        ratio = median_ratio(speeds[name], speeds["plain"])
        extra_s = max(0.0, first_s[name] - work.n_tokens / median)
        cosine = least_cosine(vectors(run, work.batches), work.expected)
        label = str(dtype).removeprefix("torch.")
        rows.append([label, name, median, ratio, extra_s, f"{cosine:.6f}"])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small round, to see it work")
    quick = parser.parse_args().quick
    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_freed_memory()
    torch.set_num_threads(1)
    print("\n".join([*hardware(), f"- Versions: {versions('torch', 'transformers')}"]), end="\n\n")
    n_tokens, n_rounds = (4000, 1) if quick else (20_000, 7)
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(prepared_model(Path(scratch)))
        work = work_of(folder, n_tokens)
        rows = [
            row
            for dtype in (torch.float32, torch.bfloat16)
            for row in compare(folder, dtype, work, n_rounds)
        ]
    columns = ["dtype", "linear layers", "tokens/s, 1 thread", "ratio", "first pass, extra s"]
    print_table([*columns, "min cosine"], rows)


if __name__ == "__main__":
    main()
