"""The engines that `encode_cpu.py` compares, and how each is asked to do its work.

Every engine gets the same threads and the same texts. An engine that sorts its rows by length does
so itself; none is helped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASELINE = "st"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One row of the table.

    Attributes:
        key: name on the command line.
        label: name in the table.
        script: worker in `engines/`.
        batch: rows in one batch, given to the engine.
        batching: the table's word where the engine makes its batches by another rule.
        environment: whose requirements it needs; None for those of this project.
        export: backend whose exported files it takes instead of the model's own.
        options: see the worker.
    """

    key: str
    label: str
    script: str
    dtype: str = "float32"
    batch: int = 32
    batching: str = ""
    environment: str | None = None
    export: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _ours(key: str, dtype: str, batching: str) -> Engine:
    return Engine(
        key=key,
        label="**chatspace**",
        script="run_chatspace.py",
        dtype=dtype,
        batching=batching,
        options={"batching": batching},
    )


def _st(key: str, dtype: str = "float32", batch: int = 32) -> Engine:
    return Engine(
        key=key,
        label="sentence-transformers",
        script="run_sentence_transformers.py",
        dtype=dtype,
        batch=batch,
    )


def _onnx(key: str, dtype: str, file_name: str) -> Engine:
    return Engine(
        key=key,
        label="sentence-transformers, ONNX Runtime",
        script="run_sentence_transformers.py",
        dtype=dtype,
        environment="onnx",
        export="onnx",
        options={"backend": "onnx", "file_name": file_name},
    )


def _openvino(key: str, dtype: str, batch: int) -> Engine:
    return Engine(
        key=key,
        label="sentence-transformers, OpenVINO",
        script="run_sentence_transformers.py",
        dtype=dtype,
        batch=batch,
        environment="openvino",
        export="openvino",
        options={"backend": "openvino"},
    )


def _infinity(key: str, engine: str, label: str, export: str | None) -> Engine:
    return Engine(
        key=key,
        label=label,
        script="run_infinity.py",
        environment="infinity",
        export=export,
        options={"engine": engine},
    )


def _vllm(key: str, dtype: str) -> Engine:
    return Engine(
        key=key,
        label="vLLM",
        script="run_vllm.py",
        dtype=dtype,
        batching="its own",
        environment="vllm",
    )


ENGINES = (
    _ours("ours", "float32", "pack"),
    _ours("ours-buckets", "float32", "buckets"),
    _ours("ours-bf16", "bfloat16", "pack"),
    _st(BASELINE),
    _st("st-b8", batch=8),
    _st("st-bf16", "bfloat16"),
    _onnx("onnx", "float32", "onnx/model.onnx"),
    _onnx("onnx-int8", "int8", "onnx/model_quantized.onnx"),
    _openvino("openvino", "float32", 32),
    _openvino("openvino-b8", "float32", 8),
    _openvino("openvino-bf16", "bfloat16", 32),
    _openvino("openvino-bf16-b8", "bfloat16", 8),
    _infinity("infinity", "torch", "Infinity, PyTorch", None),
    _infinity("infinity-optimum", "optimum", "Infinity, ONNX Runtime", "onnx"),
    Engine(
        key="fastembed",
        label="fastembed",
        script="run_fastembed.py",
        environment="fastembed",
        export="onnx",
        options={"model_file": "onnx/model.onnx"},
    ),
    _vllm("vllm", "float32"),
    _vllm("vllm-bf16", "bfloat16"),
)


def choose(keys: str) -> Sequence[Engine]:
    """Returns the engines of a list such as `ours,st`, the baseline always among them.

    Raises:
        ValueError: there is no such engine.
    """
    if keys == "all":
        return ENGINES
    wanted = {BASELINE, *(key.strip() for key in keys.split(","))}
    known = [engine.key for engine in ENGINES]
    if unknown := sorted(wanted.difference(known)):
        raise ValueError(f"Unknown engine: {', '.join(unknown)}; known: {', '.join(known)}.")
    return [engine for engine in ENGINES if engine.key in wanted]
