"""One array task as `pipeline.py` runs it: as always, but watched, and with stages left out."""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gpu_load import GpuLoad, gpu_id

from chatspace.errors import InterruptedRun
from chatspace.jobs.attempt import usable_threads

Facts = dict[str, Any]
AHEAD = 4
"""Batches of the encoder alone that are started for each worker, so that none ever waits."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Takes notes while a task runs as it always does, and may take the place of its stages.

    Attributes:
        alone: where to put the vectors of the encoder alone, which embeds the rows of all shards
            while the clock runs and does nothing else; None for the task as it is.
        simulate: random vectors instead of a forward pass.
        at: seconds since 1970, by moment.
        facts: what else was measured.
    """

    alone: Path | None
    simulate: bool
    at: dict[str, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)

    def loading(self, load_encoder: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that loads an encoder as the given one does, and takes notes."""

        def watched(*args: Any, **options: Any) -> Any:
            self.at["imported"] = time.time()
            encoder = load_encoder(*args, **options)
            self.at["loaded"] = time.time()
            self.facts["loaded_mb"] = memory_mb("VmRSS")
            with suppress(OSError):  # where it is not allowed, the peak counts from the start
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            return encoder

        return watched

    def running(self, run: Callable[..., None]) -> Callable[..., None]:
        """Returns what a pipeline's `run` is replaced with; its encoder is ready by then."""

        def watched(pipeline: Any, spans: Sequence[Any]) -> None:
            self.at["ready"] = time.time()
            encoder = pipeline.encoder
            forward = _stand_in(encoder.dim) if self.simulate else encoder.forward
            encoder.forward = self._noting_the_first(forward)
            if self.alone is None:
                with self._gpu_watched(encoder.device):
                    run(pipeline, spans)
            else:
                self._embed(pipeline, spans, self.alone)

        return watched

    @contextmanager
    def _gpu_watched(self, device: Any) -> Iterator[None]:
        load = GpuLoad.start(gpu_id(device)) if device.type == "cuda" else None
        try:
            yield
        finally:
            self.facts["gpu_busy"] = load.stop() if load else None

    def _embed(self, pipeline: Any, spans: Sequence[Any], target: Path) -> None:
        """Embeds shard after shard; their batches follow each other without a pause."""
        encoder, shards = pipeline.encoder, []
        for span in spans:
            texts = pipeline.reader.read(span).texts
            tokens = encoder.tokenizer.tokenize(texts, check=lambda: None)
            vectors = np.zeros((len(texts), encoder.dim), np.float32)  # (n_rows, dim)
            shards.append((tokens, encoder.plan(tokens), vectors))
        started: deque[tuple[Any, Any, Any]] = deque()
        with self._gpu_watched(encoder.device):
            start = time.perf_counter()
            for tokens, batches, vectors in shards:
                for batch in batches:
                    started.append((vectors, batch.rows, encoder.start(tokens, batch)))
                    if len(started) > AHEAD * encoder.workers:
                        _finish(*started.popleft())
            for batch in started:
                _finish(*batch)
            self.facts["seconds"] = time.perf_counter() - start
        np.save(target, np.concatenate([vectors for _, _, vectors in shards]))

    def _noting_the_first(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noting(features: Any) -> Any:
            self.at.setdefault("first batch", time.time())
            return forward(features)

        return noting


def _finish(vectors: Any, rows: Any, part: Future[Any]) -> None:
    vectors[rows] = part.result()


def _stand_in(dim: int) -> Callable[..., Any]:
    """Returns a forward pass that costs nothing: random vectors, (n_rows, dim)."""
    import torch

    def forward(features: Any) -> torch.Tensor:
        starts = features.get("cu_seq_lens_q")
        n_rows = len(features["input_ids"]) if starts is None else len(starts) - 1
        return torch.randn(n_rows, dim)

    return forward


def memory_mb(name: str) -> float:
    """Returns what this process holds now (`VmRSS`) or held at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {name}.")


def run_as_child(arguments: argparse.Namespace) -> None:
    """Runs the one slice of a plan, as an array task would, and writes what was measured.

    The encoder alone goes the same way up to the pipeline, so that it has the same settings; the
    task then finds no shard written and says that it was interrupted.
    """
    from chatspace.hf_embed.work import prepare_process

    prepare_process(usable_threads())
    from chatspace.hf_embed import loading
    from chatspace.hf_embed.pipeline import Pipeline
    from chatspace.jobs.task import run_task

    watch = Watch(alone=arguments.vectors, simulate=arguments.simulate)
    loading.load_encoder = watch.loading(loading.load_encoder)
    Pipeline.run = watch.running(Pipeline.run)  # type: ignore[method-assign]
    with nullcontext() if watch.alone is None else suppress(InterruptedRun):
        run_task(arguments.plan, "train", 0)
    facts = {"started": arguments.started, **watch.at, **watch.facts}
    report = json.dumps({**facts, "peak_mb": memory_mb("VmHWM")})
    arguments.report.write_text(report, encoding="utf-8")
