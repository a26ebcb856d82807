"""Infinity's engine in this process, without its web server."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Embed, Job, serve


def _flat(model: Path) -> Path:
    """Copies an exported model to where Infinity 0.0.78 finds it on a disk.

    It does so only if the ONNX file lies beside the tokenizer, in the current folder.
    """
    target = model.with_name("infinity-model")
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("onnx"), dirs_exist_ok=True)
    shutil.copyfile(model / "onnx" / "model.onnx", target / "model.onnx")
    return target


def load(job: Job) -> Embed:
    with_onnx = job.options["engine"] == "optimum"
    if with_onnx:
        os.chdir(_flat(Path(job.model)))
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(job.threads)
    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path="." if with_onnx else job.model,
            engine=job.options["engine"],
            device="cpu",
            dtype=job.dtype,
            batch_size=job.batch,
            pooling_method="mean",
            model_warmup=False,
            onnx_do_not_prefer_quantized=True,
            # Infinity asks optimum for an option that optimum-onnx 0.1.0 no longer has, and would
            # go on without; ONNX Runtime optimises the graph when it loads it.
            onnx_disable_optimize=True,
        )
    )
    loop.run_until_complete(engine.astart())

    def embed(texts: list[str]) -> Any:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=texts))
        return np.stack(vectors)  # (n_rows, dim)

    return embed


if __name__ == "__main__":
    serve(load, "infinity-emb", "sentence-transformers", "torch", "onnxruntime")
