"""What a dry run counts: the tokens of rows that are spread over what a run has left to do.

A few rows at a time, or a shard where all are counted; their texts are dropped after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatspace.chunking.chunker import Chunker, Rows
from chatspace.openai_embed.chunking import make_chunker
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import Counts, TokenCounter
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.work import split_reader
from chatspace.shards.records import ShardSpan
from chatspace.shards.store import shard_indexes

BLOCK_ROWS = 50
ASKED_INPUTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Some rows, counted as they would be sent: cut, left out, or in chunks.

    Attributes:
        row_tokens: tokens of each row, all its chunks together, (n_rows,).
        input_tokens: tokens of each input, a row or a chunk, (n_inputs,).
        n_long: rows above the limit.
        texts: the first inputs, `ASKED_INPUTS` at most.
    """

    row_tokens: Counts
    input_tokens: Counts
    n_long: int
    texts: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Counted):
    """The rows of a run that were counted.

    Attributes:
        rows_left: input rows whose shards are not there.
        rows_seen: those of them that were read; some are empty and never sent.
    """

    rows_left: int
    rows_seen: int

    @property
    def is_all(self) -> bool:
        """Whether every row that is left was read."""
        return self.rows_seen == self.rows_left

    @property
    def rows_per_row(self) -> float:
        """Rows with text for each row of the input."""
        return len(self.row_tokens) / self.rows_seen if self.rows_seen else 0.0

    @property
    def inputs_per_row(self) -> float:
        """Inputs that are sent for each row of the input."""
        return len(self.input_tokens) / self.rows_seen if self.rows_seen else 0.0


def count_sample(
    plan: Plan, model: ModelSection, counter: TokenCounter, sample_rows: int
) -> Sample:
    """Returns the counts of about `sample_rows` rows of those that are left, 0 for all of them."""
    missing = {split.name: missing_shards(plan, split) for split in plan.splits}
    n_left = sum(span.n_rows for spans in missing.values() for span in spans)
    n_wanted = n_left if sample_rows == 0 else min(sample_rows, n_left)
    parts, rows_seen = [], 0
    texts: list[str] = []
    chunker = make_chunker(model, counter)
    for split in plan.splits:
        spans = missing[split.name]
        share = n_wanted * sum(span.n_rows for span in spans) // n_left if n_left else 0
        reader = split_reader(plan, split)
        for span in _blocks(spans, share):
            counted = _counted(reader.read(span), model, counter, chunker)
            texts += counted.texts[: max(0, ASKED_INPUTS - len(texts))]
            parts.append(counted)
            rows_seen += span.n_rows
    none = [np.empty(0, np.int64)]
    return Sample(
        row_tokens=np.concatenate(none + [part.row_tokens for part in parts]),
        input_tokens=np.concatenate(none + [part.input_tokens for part in parts]),
        n_long=sum(part.n_long for part in parts),
        texts=texts,
        rows_left=n_left,
        rows_seen=rows_seen,
    )


def missing_shards(plan: Plan, split: SplitPlan) -> list[ShardSpan]:
    """Returns the shards of a split that are not there."""
    present = set(shard_indexes(Path(plan.workspace) / split.output_dir))
    return [span for span in split.spans() if span.index not in present]


def _counted(
    rows: Rows, model: ModelSection, counter: TokenCounter, chunker: Chunker[int] | None
) -> Counted:
    if chunker is not None:
        split = chunker.split(rows)
        tokens, row = np.array(split.kept, np.int64), split.rows.row  # (n_chunks,)
        row_tokens = np.bincount(row, tokens, len(rows.texts)).astype(np.int64)
        n_long = int((np.bincount(row) > 1).sum())
        texts = split.rows.texts[:ASKED_INPUTS]
        return Counted(row_tokens=row_tokens, input_tokens=tokens, n_long=n_long, texts=texts)
    counts = counter.count(rows.texts)  # (n_rows,)
    is_long = counts > model.max_tokens
    is_sent = ~is_long if model.on_too_long == "skip" else np.ones_like(is_long)
    tokens = np.where(is_sent, np.minimum(counts, model.max_tokens), 0)
    sent = [rows.texts[row] for row in np.flatnonzero(is_sent)[:ASKED_INPUTS]]
    return Counted(
        row_tokens=tokens,
        input_tokens=tokens[is_sent],
        n_long=int(is_long.sum()),
        texts=[counter.cut(text, model.max_tokens) for text in sent],
    )


def _blocks(spans: list[ShardSpan], n_rows: int) -> Iterator[ShardSpan]:
    """Yields ranges of rows, about `n_rows` together, evenly spread over some shards."""
    total = sum(span.n_rows for span in spans)
    n_blocks = max(1, n_rows // BLOCK_ROWS)
    is_all = n_rows >= total
    taken, before = 0, 0
    for span in spans:
        if is_all:
            yield span
            continue
        # Block k begins at row k * total / n_blocks of those that are left.
        while taken < n_blocks and (at := taken * total // n_blocks) < before + span.n_rows:
            start = span.row_start + at - before
            stop = min(start + min(BLOCK_ROWS, max(1, n_rows)), span.row_stop)
            yield ShardSpan(index=span.index, row_start=start, row_stop=stop)
            taken += 1
        before += span.n_rows
