"""The probe: a sample of the corpus is embedded for about a minute, and dropped.

The sample is a list of row ranges, the same for the same plan, of which every beginning is spread
evenly over the split. Ranges are small at first and grow with the sample, up to a whole shard, so
that no range weighs much and a fast device is still measured at what it does with shards.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from chatspace.atomic import atomic_write_text
from chatspace.errors import InputError, SpecError
from chatspace.jobs.attempt import attempt_name, usable_threads
from chatspace.jobs.gather import split_store
from chatspace.jobs.task import outcome_facts
from chatspace.jobs.usage import UsageSampler
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.measure.forecast import Probe, SplitSample, range_text_bytes
from chatspace.plan.model import Plan, SplitPlan
from chatspace.plan.work import Progress, SliceOutcome, SliceWork, StopRequest, split_reader
from chatspace.shards.records import ShardRecord, ShardSpan
from chatspace.shards.store import ShardStore, utc_now

log = logging.getLogger(__name__)

FIRST_RANGE_ROWS = 256
# A range has at most this share of the sample before it.
GROWTH = 1 / 8
LEAST_PLACES = 16
MOST_RANGES = 4096
# A split with a smaller share of the text than this shares the figures of the largest.
LEAST_SHARE = 0.05
STEADY_S = 3.0
MOST_GRACE_S = 10.0
LENGTHS_FROM_ROWS = 20_000
SAY_EVERY_S = 10.0

_ADAPTER: TypeAdapter[Probe] = TypeAdapter(Probe)


def sample_ranges(split: SplitPlan) -> list[tuple[int, int]]:
    """Returns row ranges `(start, stop)` of a split, none twice, in the order to embed them.

    Together they have no more rows than the largest slice: a task has no more.
    """
    cell = min(split.rows_per_shard, max(64, split.rows // LEAST_PLACES))
    per_shard = -(-split.rows_per_shard // cell)
    most_rows = max(sum(s.n_rows for s in split.spans(slice_)) for slice_ in split.slices)
    ranges: list[tuple[int, int]] = []
    n_rows = 0
    for index in _spread(split.n_shards * per_shard):
        shard = split.span(index // per_shard)
        start = shard.row_start + index % per_shard * cell
        stop = min(start + cell, shard.row_stop, split.rows)
        size = min(max(FIRST_RANGE_ROWS, int(n_rows * GROWTH)), stop - start, most_rows - n_rows)
        if size > 0:
            middle = start + (stop - start - size) // 2
            ranges.append((middle, middle + size))
            n_rows += size
        if n_rows >= most_rows or len(ranges) == MOST_RANGES:
            break
    return ranges


def refuse_remote(kind: str) -> None:
    """Refuses to probe a kind whose endpoint charges for each row.

    Raises:
        SpecError: it is one.
    """
    if KINDS[kind].is_remote:
        raise SpecError(
            f"Nothing to probe: kind={kind}; a probe would pay for rows that it drops. "
            "`chatspace embed-dataset SPEC` says tokens, price and time."
        )


def probe_here(plan: Plan, *, seconds: float, say: Callable[[str], None]) -> Probe:
    """Embeds a sample in this process and returns what was measured.

    Args:
        plan: the run; nothing of its output is touched.
        seconds: how long to embed; loading the model comes on top.
        say: told how it goes.

    Raises:
        UserError: a model or a row cannot be used as the spec says.
        UnfitEnvironmentError: the device is not there.
    """
    _take_one_gpu()
    total = sum(split.text_bytes for split in plan.splits) or 1
    share = {split.name: split.text_bytes / total for split in plan.splits}
    largest = max(plan.splits, key=lambda split: share[split.name])
    chosen = [s for s in plan.splits if share[s.name] >= LEAST_SHARE or s is largest]
    part = sum(share[split.name] for split in chosen) or 1.0
    samples: list[SplitSample] = []
    outcomes: dict[str, SliceOutcome] = {}
    with UsageSampler() as sampler:
        for split in chosen:
            say(f"split {split.name}: loading the model")
            measured = _Measured(plan, split, seconds * share[split.name] / part or seconds, say)
            samples.append(measured.run(age_s=_process_age_s() if not samples else 0.0))
            outcomes[split.name] = measured.outcome
            del measured
            gc.collect()  # the next split loads the model anew
    return _probe_of(plan, seconds, samples, outcomes[largest.name], sampler.stop())


def read_probe(path: Path) -> Probe | None:
    """Returns what a probe left, None where there is none, or none that can be read."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("damaged probe path=%s error=%s", path, str(error).splitlines()[0])
        return None


def write_probe(probe: Probe, path: Path) -> None:
    """Writes `probe.json` by rename.

    Raises:
        OutputError: the folder cannot be written.
    """
    atomic_write_text(path, json.dumps(asdict(probe), ensure_ascii=False, indent=1) + "\n")


def spec_key(kind: str, science: Mapping[str, Any]) -> str:
    """Returns the hash of what a run spec says of its vectors; `science` as in the plan."""
    kept = {k: dict(v) if isinstance(v, Mapping) else v for k, v in science.items()}
    for section, key in KINDS[kind].spec_model().UNHASHED:
        kept.get(section, {}).pop(key, None)
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Moment:
    """How far the embedding was at a time of `time.monotonic`."""

    at_s: float
    n_tokens: int


class _Measured:
    """One split's sample, embedded.

    Attributes:
        outcome: what the kind's slice work returned.
    """

    outcome: SliceOutcome

    def __init__(
        self, plan: Plan, split: SplitPlan, seconds: float, say: Callable[[str], None]
    ) -> None:
        self.plan, self.split, self.seconds, self.say = plan, split, seconds, say
        self.ranges = sample_ranges(split)
        self.stop = StopRequest()
        self.moments: list[_Moment] = []
        self.last = Progress(rows=0, n_tokens=0, n_padded_tokens=0, stage="")
        self.records: list[ShardRecord] = []
        self.bytes_per_file = 0
        self._embedding_since_s: float | None = None
        self._said_s = 0.0

    def run(self, *, age_s: float) -> SplitSample:
        """Embeds until the time is over.

        Args:
            age_s: seconds that this process has needed to get here.
        """
        folder = Layout(Path(self.plan.workspace)).run(self.plan.run_id).probe_folder / "shards"
        shutil.rmtree(folder, ignore_errors=True)
        self.store = replace(split_store(self.plan, self.split, attempt_name()), folder=folder)
        spans = (
            ShardSpan(index=i, row_start=a, row_stop=b) for i, (a, b) in enumerate(self.ranges)
        )
        try:
            self.outcome = KINDS[self.plan.kind].slice_work()(
                SliceWork(
                    plan=self.plan,
                    split=self.split,
                    spans=tuple(spans),
                    commit=self._commit,
                    stop=self.stop,
                    report=self._report,
                    threads=usable_threads(),
                )
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not self.records:
            raise InputError(
                f"Probe too short: --minutes {self.seconds / 60:g}; no {self.ranges[0][1]} rows "
                f"were done in it. Give it more time."
            )
        return self._sample(age_s)

    def _report(self, progress: Progress) -> None:
        now_s = time.monotonic()
        self.last = progress
        if progress.stage != "embedding":
            return
        if self._embedding_since_s is None:
            self._embedding_since_s = self._said_s = now_s
        if not self.stop.requested:
            self.moments.append(_Moment(now_s, progress.n_tokens))
        if now_s - self._embedding_since_s >= self.seconds:
            # Once: the shard in hand is finished, and what it holds is known for sure.
            if not self.stop.requested:
                self.stop.request(min(MOST_GRACE_S, max(2.0, self.seconds)))
        elif now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            elapsed_s = now_s - self._embedding_since_s
            self.say(
                f"split {self.split.name}: {elapsed_s:.0f} of {self.seconds:.0f} s, "
                f"{progress.rows:,} rows, {progress.n_tokens / elapsed_s:,.0f} tokens/s"
            )

    def _commit(
        self, span: ShardSpan, table: pa.Table, *, skipped: dict[str, int], truncated: int
    ) -> ShardRecord:
        """Writes a shard as a task does, measures the file and removes it."""
        store: ShardStore = self.store
        record = store.commit(span, table, skipped=skipped, truncated=truncated)
        store.path(span).unlink()
        if not self.records:
            none = ShardSpan(index=len(self.ranges), row_start=0, row_stop=0)
            empty = store.commit(none, table.slice(0, 0), skipped={}, truncated=0)
            store.path(none).unlink()
            self.bytes_per_file = empty.bytes
        self.records.append(record)
        return record

    def _sample(self, age_s: float) -> SplitSample:
        done = [(record.row_start, record.row_stop) for record in self.records]
        rows = sum(stop - start for start, stop in done)
        # Rows of a range that was begun and dropped are counted, and belong to no range.
        whole = min(1.0, rows / max(1, self.last.rows))
        n_tokens = round(whole * self.outcome.n_tokens)
        text_bytes = range_text_bytes(self.split, done)
        tokens_per_s, startup_s = self._speed()
        return SplitSample(
            split=self.split.name,
            ranges=len(done),
            rows=rows,
            text_bytes=text_bytes,
            n_tokens=n_tokens,
            n_padded_tokens=round(whole * self.outcome.n_padded_tokens),
            tokens_per_s=round(tokens_per_s, 1),
            startup_s=round(age_s + startup_s, 3),
            bytes_written=max(0, sum(r.bytes - self.bytes_per_file for r in self.records)),
            bytes_per_file=self.bytes_per_file,
            largest_range=max(stop - start for start, stop in done),
            row_tokens=self._row_tokens(done, n_tokens),
        )

    def _speed(self) -> tuple[float, float]:
        """Returns tokens/s once the work flows, and the seconds until it does.

        The first forward passes are slower than all later ones; a run has them once.
        """
        outcome = self.outcome
        flowing = [moment for moment in self.moments if moment.n_tokens > 0]
        if flowing and flowing[-1].at_s - flowing[0].at_s >= STEADY_S:
            assert self._embedding_since_s is not None
            first, last = flowing[0], flowing[-1]
            speed = (last.n_tokens - first.n_tokens) / (last.at_s - first.at_s)
            if speed > 0:
                waited_s = first.at_s - self._embedding_since_s - first.n_tokens / speed
                return speed, outcome.setup_s + max(0.0, waited_s)
        working_s = max(outcome.elapsed_s - outcome.setup_s, 1e-6)
        return max(outcome.n_tokens, 1) / working_s, outcome.setup_s

    def _row_tokens(self, done: Sequence[tuple[int, int]], n_tokens: int) -> dict[str, float]:
        """Returns percentiles of a row's tokens, from the lengths of some texts of the sample."""
        reader = split_reader(self.plan, self.split)
        lengths: list[int] = []
        for start, stop in done:
            if len(lengths) >= LENGTHS_FROM_ROWS:
                break
            rows = reader.read(ShardSpan(index=0, row_start=start, row_stop=stop))
            lengths += [len(text.encode()) for text in rows.texts]
        if not lengths:
            return {}
        lengths.sort()
        mean_tokens = n_tokens / max(1, sum(record.rows for record in self.records))
        scale = mean_tokens * len(lengths) / sum(lengths)
        return {
            f"p{p}": round(scale * lengths[min(len(lengths) - 1, p * len(lengths) // 100)], 1)
            for p in (10, 50, 90)
        }


def _probe_of(
    plan: Plan,
    seconds: float,
    samples: Sequence[SplitSample],
    outcome: SliceOutcome,
    usage: dict[str, Any],
) -> Probe:
    runtime = outcome.runtime
    return Probe(
        run_id=plan.run_id,
        spec_key=spec_key(plan.kind, plan.spec),
        created_at=utc_now(),
        attempt=attempt_name(),
        host=platform.node(),
        device_name=str(runtime.get("device_name", "unknown")),
        gpu=runtime.get("gpu"),
        dtype=str(runtime.get("dtype", "unknown")),
        threads=usable_threads(),
        seconds=seconds,
        tokens_per_batch=runtime.get("tokens_per_batch"),
        samples=tuple(samples),
        runtime=runtime,
        usage=usage,
        stages=outcome_facts(outcome)["stages"],
        notes=tuple(outcome.notes),
    )


def _spread(n: int) -> Iterator[int]:
    """Yields 0 to n - 1 in an order of which every beginning is spread evenly.

    Source: steps of the golden section modulo one, the most even of all additive sequences
    (Knuth, The Art of Computer Programming 3, 6.4, exercise 9).
    """
    step = max(1, round(n * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, n) != 1:
        step += 1
    yield from ((n // 2 + k * step) % n for k in range(n))


def _take_one_gpu() -> None:
    """Leaves this process the first of the GPUs that it may use: a task's process has one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def _process_age_s() -> float:
    """Returns the seconds since this process was started, 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return max(0.0, uptime_s - int(stat[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0
