"""Saves the model as ONNX or OpenVINO files, once, in the environment of that backend.

usage: python export.py MODEL BACKEND TARGET
"""

from __future__ import annotations

import sys

from sentence_transformers import SentenceTransformer


def export(model: str, backend: str, target: str) -> None:
    kwargs = {"provider": "CPUExecutionProvider"} if backend == "onnx" else {"device": "CPU"}
    exported = SentenceTransformer(
        model, device="cpu", backend=backend, model_kwargs={"export": True, **kwargs}
    )
    exported.save_pretrained(target)
    if backend == "onnx":
        from sentence_transformers import export_dynamic_quantized_onnx_model

        export_dynamic_quantized_onnx_model(
            exported, "avx512_vnni", target, file_suffix="quantized"
        )


if __name__ == "__main__":
    export(*sys.argv[1:])
