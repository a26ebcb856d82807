"""sentence-transformers with PyTorch, ONNX Runtime or OpenVINO behind it."""

from __future__ import annotations

from typing import Any

import torch
from protocol import Embed, Job, serve
from sentence_transformers import SentenceTransformer

PACKAGES = {
    "torch": ("sentence-transformers", "torch", "transformers"),
    "onnx": ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime"),
    "openvino": ("sentence-transformers", "transformers", "optimum-intel", "openvino"),
}


def load(job: Job) -> Embed:
    torch.set_num_threads(job.threads)
    backend = job.options.get("backend", "torch")
    model = SentenceTransformer(
        job.model, device="cpu", backend=backend, model_kwargs=_model_kwargs(backend, job)
    )

    def embed(texts: list[str]) -> Any:
        # A tensor, because numpy has no bfloat16; lengths of one are only sure in float32.
        vectors = model.encode(texts, batch_size=job.batch, convert_to_tensor=True)
        return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()  # (n_rows, dim)

    return embed


def _model_kwargs(backend: str, job: Job) -> dict[str, Any]:
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = job.threads
        return {
            "provider": "CPUExecutionProvider",
            "file_name": job.options["file_name"],
            "session_options": session,
        }
    if backend == "openvino":
        precision = {"float32": "f32", "bfloat16": "bf16"}[job.dtype]
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": job.threads,
            "PERFORMANCE_HINT": "LATENCY",  # one stream, so that a batch has all threads
        }
        return {"device": "CPU", "ov_config": config}
    return {"dtype": getattr(torch, job.dtype)}


if __name__ == "__main__":
    import json
    import sys

    serve(load, *PACKAGES[json.loads(sys.argv[1])["options"].get("backend", "torch")])
