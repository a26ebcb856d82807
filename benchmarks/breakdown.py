"""Where the time of this project's encoder goes, on one core.

usage: python breakdown.py MODEL CORPUS DTYPE      prints seconds of each part as JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PARTS = (
    "tokenising",
    "linear layers",
    "attention",
    "layer norms, activation, residuals",
    "copies and layout",
    "all else",
)
_OPERATORS = {
    "linear layers": ("linear", "addmm", "aten::mm"),
    "attention": ("attention", "bmm", "softmax"),
    "layer norms, activation, residuals": ("layer_norm", "gelu", "aten::add", "aten::mul"),
    "copies and layout": ("copy", "clone", "contiguous", "aten::cat", "aten::index", "embedding"),
}
"""Parts of the names of PyTorch's operators; the first that fits counts."""


def measure(model: str, corpus: Path, dtype: str) -> dict[str, float]:
    """Returns seconds by part of one pass, batch after batch on one thread."""
    from chatspace.hf_embed.work import prepare_process

    prepare_process(1)
    from torch.profiler import ProfilerActivity, profile

    from chatspace.hf_embed.loading import load_encoder
    from chatspace.hf_embed.spec import EncodeSection, ModelSection

    section = ModelSection(name=model, dtype=dtype, device="cpu")
    encoder = load_encoder(section, EncodeSection(batching="pack"), path=model)
    texts = json.loads(corpus.read_text(encoding="utf-8"))
    start = time.perf_counter()
    tokens = encoder.tokenizer.tokenize(texts, check=lambda: None)
    found = {"tokenising": time.perf_counter() - start}
    batches = encoder.plan(tokens)
    encoder.encode(tokens, batches[0])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for batch in batches:
            encoder.encode(tokens, batch)
        elapsed_s = time.perf_counter() - start
    found |= _by_part(profiler.key_averages())
    found["all else"] = max(0.0, elapsed_s - sum(found.values()) + found["tokenising"])
    return found


def _by_part(events: Any) -> dict[str, float]:
    seconds = dict.fromkeys(_OPERATORS, 0.0)
    for event in events:
        if part := _part(event.key):
            seconds[part] += event.self_cpu_time_total * 1e-6
    return seconds


def _part(operator: str) -> str | None:
    name = operator.removesuffix("_")
    fits = (part for part, signs in _OPERATORS.items() if any(sign in name for sign in signs))
    return next(fits, None)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
