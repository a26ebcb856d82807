"""The slice work of `kind: embed`: what an array task does between its plan and its shards."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from chatspace.hf_embed.flow import Flow
from chatspace.hf_embed.metrics import Counters, Reporter
from chatspace.hf_embed.pipeline import Pipeline, Reader, Rows, Settings
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.plan.work import SliceOutcome, SliceWork, StageTimes
from chatspace.shards.table import Vectors, embedding_table
from chatspace.spec.base import DatasetSection, OutputSection

STAGES = ("loader", "encoder", "writer")


def run_slice(work: SliceWork) -> SliceOutcome:
    """Embeds the shards of a slice and commits each; returns early if a stop is requested.

    Raises:
        UserError: the model or a row cannot be embedded as the spec says, or a shard cannot be written.
        UnfitEnvironmentError: the device is not there.
    """
    from chatspace.data.rows import SplitReader

    output = OutputSection.model_validate(work.plan.spec["output"])
    dataset = DatasetSection.model_validate(work.plan.spec["dataset"])
    reader = SplitReader(
        dataset,
        label=work.split.dataset,
        split=work.split.name,
        files=work.split.files,
        keep_columns=output.keep_columns,
    )
    return embed_slice(work, reader)


def embed_slice(work: SliceWork, reader: Reader) -> SliceOutcome:
    """Does what `run_slice` says, with the rows of `reader`."""
    start = time.perf_counter()
    flow, counters = Flow(), Counters()
    if not work.spans or work.stop.requested:
        return _outcome(work, start=start)
    prepare_process(work.threads)
    with Reporter(work.report, counters, flow.fail):
        encoder = _encoder(work, counters)
        setup_s = time.perf_counter() - start
        counters.stage = "embedding"
        pipeline = _pipeline(work, reader, encoder, counters, flow)
        pipeline.run(work.spans)
        if pipeline.n_committed == len(work.spans):
            counters.stage = "done"
    return _outcome(work, start=start, setup_s=setup_s, pipeline=pipeline)


def prepare_process(threads: int) -> None:
    """Gives PyTorch and the tokenizers library the threads of this task, no more.

    A fixed number of threads is also what makes vectors on a CPU the same bit for bit: sums are split
    among threads.
    """
    # Said outright, so that the library neither guesses nor warns when a process forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:  # only possible before the first parallel work of a process
            pass


def _encoder(work: SliceWork, counters: Counters) -> Any:
    from chatspace.hf_embed.compiling import warm_up
    from chatspace.hf_embed.loading import load_encoder

    model = ModelSection.model_validate(work.plan.spec["model"])
    encode = EncodeSection.model_validate(work.plan.spec["encode"])
    encoder = load_encoder(model, encode, path=work.plan.model.get("path"))
    encoder.runtime.update(software_facts(), threads=work.threads)
    if encode.compile:
        counters.stage = "warming up"
        warm_up(encoder)
    return encoder
