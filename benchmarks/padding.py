"""How many tokens a model computes for each real one, by the way rows are put into batches.

    python benchmarks/padding.py            # one table; no model is run
    python benchmarks/padding.py --quick    # fewer rows

Counted, not timed: the figures are the same on every machine. The last rows call the planners that
encoding itself calls. sentence-transformers sorts all rows that it is given at once; chatspace
sorts within a shard, because the vectors of a shard must not depend on other shards.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from corpora import LONGEST, SHAPES, Shape
from report import hardware, print_table, versions

from chatspace.hf_embed.bucketing import (
    CPU_FILL_TO,
    Batch,
    Buckets,
    Budget,
    plan_batches,
    plan_packs,
)
from chatspace.hf_embed.device import CPU_TOKENS_PER_BATCH, GPU_TOKENS_PER_BATCH
from chatspace.hf_embed.loading import TRIM_TO
from chatspace.hf_embed.spec import EncodeSection
from chatspace.spec.output import OutputSection

Lengths = npt.NDArray[np.int64]
Count = Callable[[Lengths], int]

LIMIT = LONGEST
ROWS_PER_BATCH = 32
DISTRIBUTIONS = SHAPES | {f"median {n}": Shape(median=n, sigma=0.5) for n in (200, 400, 600)}
ROWS_PER_SHARD: int = OutputSection().rows_per_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to make batches.

    Attributes:
        count: tokens that the forward passes compute, padding counted, for rows of these lengths.
    """

    name: str
    count: Count


def lengths_of(shape: Shape, n_rows: int, seed: int = 0) -> Lengths:
    """Returns the tokens of rows in order of arrival, cut to the model's limit, (n_rows,)."""
    drawn = np.random.default_rng(seed).lognormal(math.log(shape.median), shape.sigma, n_rows)
    return np.clip(np.rint(drawn), 1, LIMIT).astype(np.int64)


def strategies() -> list[Strategy]:
    """Returns the ways that are compared, the shipped ones last."""
    least = EncodeSection().bucket_min_tokens
    rows, cpu, gpu = (
        Budget(rows=ROWS_PER_BATCH),
        Budget(tokens=CPU_TOKENS_PER_BATCH),
        Budget(tokens=GPU_TOKENS_PER_BATCH),
    )
    return [
        Strategy(name="order of arrival, 32 rows, padded to the longest", count=_to_longest),
        Strategy(
            name="sorted by length, 32 rows, padded to the longest (sentence-transformers)",
            count=lambda lengths: _to_longest(-np.sort(-lengths)),
        ),
        Strategy(name="powers of two from 128, padded to the bucket", count=_bucketed(128, rows)),
        Strategy(name="powers of two from 16, padded to the bucket", count=_bucketed(16, rows)),
        Strategy(
            name=f"chatspace buckets, trimmed, {cpu.tokens:,} tokens a batch",
            count=_bucketed(least, cpu, trim_to=TRIM_TO),
        ),
        Strategy(
            name=f"chatspace buckets, trimmed, {gpu.tokens:,} tokens a batch",
            count=_bucketed(least, gpu, trim_to=TRIM_TO),
        ),
        Strategy(
            name=f"chatspace packed, {cpu.tokens:,} tokens a batch", count=_packed(cpu, CPU_FILL_TO)
        ),
        Strategy(name=f"chatspace packed, {gpu.tokens:,} tokens a batch", count=_packed(gpu, 1)),
    ]


def _to_longest(lengths: Lengths) -> int:
    """Returns the tokens of batches of consecutive rows, each padded to its longest row."""
    starts = range(0, len(lengths), ROWS_PER_BATCH)
    batches = [lengths[start : start + ROWS_PER_BATCH] for start in starts]
    return sum(len(batch) * int(batch.max()) for batch in batches)


def _bucketed(min_tokens: int, budget: Budget, *, trim_to: int | None = None) -> Count:
    buckets = Buckets(min_tokens=min_tokens, max_tokens=LIMIT, limit=LIMIT)
    return _by_shard(
        lambda shard: plan_batches(shard, buckets=buckets, budget=budget, trim_to=trim_to)
    )


def _packed(budget: Budget, fill_to: int) -> Count:
    return _by_shard(lambda shard: plan_packs(shard, budget, fill_to=fill_to))


def _by_shard(plan: Callable[[Lengths], list[Batch]]) -> Count:
    """Returns a counter of the batches that a planner makes of one shard after the other."""

    def count(lengths: Lengths) -> int:
        starts = range(0, len(lengths), ROWS_PER_SHARD)
        shards = [lengths[start : start + ROWS_PER_SHARD] for start in starts]
        return sum(batch.n_padded_tokens for shard in shards for batch in plan(shard))

    return count


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4 * ROWS_PER_SHARD, help="rows of each column")
    parser.add_argument("--quick", action="store_true", help=f"{ROWS_PER_SHARD:,} rows")
    arguments = parser.parse_args()
    n_rows = ROWS_PER_SHARD if arguments.quick else arguments.rows
    drawn = {name: lengths_of(shape, n_rows) for name, shape in DISTRIBUTIONS.items()}
    print("# Padding: tokens computed for each real token\n")
    print("\n".join(hardware()))
    print(f"- Versions: {versions('chatspace', 'numpy')}")
    print(
        f"- Rows: {n_rows:,} a column, lognormal lengths, cut at {LIMIT:,} tokens; "
        f"shards of {ROWS_PER_SHARD:,} rows; counted, no model is run\n"
    )
    columns = [f"{name} ({np.median(lengths):.0f})" for name, lengths in drawn.items()]
    rows = [
        [way.name, *(f"{way.count(lengths) / lengths.sum():.2f}" for lengths in drawn.values())]
        for way in strategies()
    ]
    print_table(["batches (median tokens of a row)", *columns], rows)


if __name__ == "__main__":
    main()
