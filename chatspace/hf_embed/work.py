"""The slice work of `kind: embed`: what an array task does between its plan and its shards."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.chunking.chunker import Rows
from chatspace.hf_embed.chunking import make_chunker
from chatspace.hf_embed.flow import Flow
from chatspace.hf_embed.metrics import Counters, Reporter
from chatspace.hf_embed.pipeline import Pipeline, Settings
from chatspace.hf_embed.reading import Reader
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.work import SliceOutcome, SliceWork, StageTimes
from chatspace.shards.table import Vectors, embedding_table
from chatspace.spec.output import OutputSection

STAGES = ("loader", "encoder", "writer")
KEPT_SHAPES = 256


def run_slice(work: SliceWork) -> SliceOutcome:
    """Embeds the shards of a slice and commits each; returns early if a stop is requested.

    Raises:
        UserError: a model or row cannot be used as the spec says, or a shard cannot be written.
        UnfitEnvironmentError: the device is not there, or no compiler for `encode.compile`.
    """
    return embed_slice(work, work.reader())


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
        pipeline.run(work.shards())
        if pipeline.is_done:
            counters.stage = "done"
    return _outcome(work, start=start, setup_s=setup_s, pipeline=pipeline)


def prepare_process(threads: int) -> None:
    """Gives PyTorch and the tokenizers library the threads of this task, no more.

    A fixed number of threads is also what makes vectors on a CPU the same bit for bit: sums are
    split among threads.
    """
    # Said outright, so that the library neither guesses nor warns when a process forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    # oneDNN and PyTorch's layer above it keep code for each shape of their input, megabytes each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_SHAPES))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KEPT_SHAPES))
    # A bar would fill a log file with lines; the libraries read this when they are imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from chatspace.hf_embed.device import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # only possible before the first parallel work of a process
            torch.set_num_interop_threads(1)


def _encoder(work: SliceWork, counters: Counters) -> Any:
    from chatspace.hf_embed.compiling import share_graphs, warm_up

    encode = EncodeSection.model_validate(work.plan.spec["encode"])
    if encode.compile:  # before the next imports, which bring the compiler
        share_graphs(Layout(Path(work.plan.workspace)).cache())
    from chatspace.hf_embed.loading import load_encoder
    from chatspace.hf_embed.truncation import truncate
    from chatspace.hf_embed.tuning import tuned_budget

    model = pinned_model(work.plan)
    path = work.plan.model.get("path")
    encoder = load_encoder(model, encode, path=path, threads=work.threads)
    truncate(encoder, work.plan.spec["output"].get("truncate_dim"))
    counters.stage = "warming up"
    if encode.compile:
        warm_up(encoder)
    if encoder.device.type == "cpu":
        n_rows = sum(span.n_rows for span in work.spans)
        encoder.take_budget(tuned_budget(encode, encoder, n_rows=n_rows))
    facts = software_facts() | hardware_facts(encoder.runtime["device"])
    encoder.runtime.update(facts, threads=work.threads)
    return encoder


def pinned_model(plan: Plan) -> ModelSection:
    """Returns the model as the spec says, at the commit that was found when the run was planned."""
    model = ModelSection.model_validate(plan.spec["model"])
    commit = plan.model.get("revision")
    return model.model_copy(update={"revision": commit}) if commit else model


def _pipeline(
    work: SliceWork, reader: Reader, encoder: Any, counters: Counters, flow: Flow
) -> Pipeline:
    spec = work.plan.spec
    model = ModelSection.model_validate(spec["model"])
    output = OutputSection.model_validate(spec["output"])

    def to_table(rows: Rows, vectors: Vectors) -> pa.Table:
        return embedding_table(
            rows=rows,
            vectors=vectors,
            source=spec["dataset"]["source"],
            dataset=work.split.dataset,
            split=work.split.name,
            model=work.plan.model.get("name", model.name),
            created_at=work.plan.created_at,
            run_id=work.plan.run_id,
            keep_text=output.keep_text,
            dtype=output.dtype,
        )

    return Pipeline(
        encoder=encoder,
        reader=reader,
        to_table=to_table,
        commit=work.commit,
        stop=work.stop,
        settings=Settings(
            prefetch_shards=EncodeSection.model_validate(spec["encode"]).prefetch_shards,
            refuse_too_long=model.what_if_long == "error",
            dtype=output.dtype,
            document_vectors=bool(model.document_vector),
        ),
        counters=counters,
        chunker=make_chunker(model, encoder) if model.what_if_long == "chunk" else None,
        flow=flow,
    )


def _outcome(
    work: SliceWork, *, start: float, setup_s: float = 0.0, pipeline: Pipeline | None = None
) -> SliceOutcome:
    elapsed_s = time.perf_counter() - start
    if pipeline is None:  # nothing to do, or told to stop before there was anything in hand
        times = {name: StageTimes() for name in STAGES}
        return SliceOutcome(
            n_tokens=0,
            n_padded_tokens=0,
            stages=times,
            runtime={},
            interrupted=bool(work.spans),
            elapsed_s=elapsed_s,
        )
    return SliceOutcome(
        n_tokens=pipeline.counters.n_tokens,
        n_padded_tokens=pipeline.counters.n_padded_tokens,
        stages={name: pipeline.clocks[name].times for name in STAGES},
        runtime=pipeline.encoder.runtime,
        interrupted=not pipeline.is_done,
        notes=tuple(pipeline.encoder.notes),
        elapsed_s=elapsed_s,
        setup_s=setup_s,
    )


def hardware_facts(device: str) -> dict[str, Any]:
    """Returns the name of the processor, and of the GPU and its driver where one is used."""
    import torch

    from chatspace.hf_embed.device import cpu_name

    if not device.startswith("cuda"):
        return {"device_name": cpu_name(), "gpu": None, "driver": None}
    name = torch.cuda.get_device_name(device)
    return {"device_name": name, "gpu": name, "driver": driver_version()}


def driver_version() -> str | None:
    """Returns the version of the NVIDIA driver, None where `nvidia-smi` does not say."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None


def software_facts() -> dict[str, str]:
    """Returns the versions of the libraries that decide what a vector is."""
    names = ("torch", "transformers", "sentence-transformers", "tokenizers")
    return {name: version(name) for name in names}
