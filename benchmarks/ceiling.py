"""How fast this machine multiplies matrices, and how much of an encoder's work that is.

usage: python ceiling.py MODEL THREADS      prints GFLOP/s of each shape and dtype as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")
N_ROWS = 2048
_SECONDS = 0.2
"""Of repeated products for each figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a BERT-like encoder."""

    hidden: int
    intermediate: int
    n_layers: int

    @classmethod
    def of(cls, model: Path) -> Shape:
        """Reads them from a model's `config.json`."""
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            n_layers=config["num_hidden_layers"],
        )

    def flops(self, lengths: list[int]) -> float:
        """Returns the floating-point operations that rows of these lengths take, in tokens.

        Linear layers take two for each weight and token; attention takes `4 * length * hidden` in
        each layer for each token: products with keys and with values. The rest is left out.
        """
        linear = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        per_row = (n * (linear + 4 * n * self.hidden) for n in lengths)
        return float(self.n_layers * sum(per_row))

    def products(self) -> list[tuple[int, int]]:
        """Returns (inputs, outputs) of the linear layers of one layer, each shape once."""
        return [
            (self.hidden, self.hidden),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        ]


def measure(shape: Shape, threads: int) -> dict[str, dict[str, float]]:
    """Returns GFLOP/s by product, such as `2048x384x1536`, and dtype: the better of two layouts."""
    import torch

    torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {}
    for n_in, n_out in shape.products():
        row = found.setdefault(f"{N_ROWS}x{n_in}x{n_out}", {})
        for name in DTYPES:
            dtype = getattr(torch, name)
            hidden = torch.randn(N_ROWS, n_in).to(dtype)
            linear = torch.nn.Linear(n_in, n_out).to(dtype).requires_grad_(False)
            passes = [lambda x=hidden, f=linear: f(x), *_prepacked(hidden, linear)]
            row[name] = 2e-9 * N_ROWS * n_in * n_out / min(map(_seconds, passes))
    return found


def best(rounds: list[dict[str, dict[str, float]]], dtype: str) -> float:
    """Returns the machine's ceiling in GFLOP/s: the fastest product in any round."""
    return max(row[dtype] for found in rounds for row in found.values())


def _prepacked(hidden: Any, linear: Any) -> list[Callable[[], Any]]:
    """Returns the product with the weight laid out for oneDNN, nothing where that is not there."""
    import torch

    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, N_ROWS)
    except (AttributeError, RuntimeError):
        return []
    operator = torch.ops.mkldnn._linear_pointwise
    return [lambda: operator(hidden, weight, linear.bias, "none", [], "")]


def _seconds(run: Callable[[], Any]) -> float:
    """Returns the shortest time of one run."""
    import torch

    times = []
    with torch.inference_mode():
        run()
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(measure(Shape.of(Path(sys.argv[1])), int(sys.argv[2]))))
