"""fastembed with ONNX Runtime, given the same model as a custom one."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from protocol import Embed, Job, serve

NAME = "local/all-MiniLM-L6-v2"


def load(job: Job) -> Embed:
    TextEmbedding.add_custom_model(
        model=NAME,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=NAME),
        dim=384,
        model_file=job.options["model_file"],
    )
    model = TextEmbedding(
        NAME,
        specific_model_path=job.model,
        threads=job.threads,
        providers=["CPUExecutionProvider"],
    )

    def embed(texts: list[str]) -> Any:
        return np.stack(list(model.embed(texts, batch_size=job.batch)))  # (n_rows, dim)

    return embed


if __name__ == "__main__":
    serve(load, "fastembed", "onnxruntime", "tokenizers")
