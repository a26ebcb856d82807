"""The engines of `encode_gpu.py`: sentence-transformers and chatspace, each loaded and ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from models import LIMIT
from sentence_transformers import SentenceTransformer

from chatspace.hf_embed.compiling import warm_up
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection

Array = npt.NDArray[np.float32]
Run = Callable[[], object]

COMPILED = "chatspace buckets, compiled"
SMALLEST_COMPILED = 64  # tokens; each bucket is a graph, and graphs take the most time here


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One way to embed, loaded and ready.

    Attributes:
        embed: texts in, vectors out, (n_texts, dim).
        prepare: makes the batches of some texts and returns the run over them.
        ready_s: seconds that loading and warming up took.
        note: what it says of itself.
    """

    name: str
    embed: Callable[[Sequence[str]], Array]
    prepare: Callable[[Sequence[str]], Run]
    ready_s: float
    note: str = ""


def chatspace_engine(name: str, path: Path, device: str, encode: EncodeSection) -> Engine:
    """Returns this project's encoder."""
    start = time.perf_counter()
    section = ModelSection(name=path.name, dtype="bfloat16", device=device)
    encoder = load_encoder(section, encode, path=str(path))
    if encode.compile:
        warm_up(encoder)

    def prepare(texts: Sequence[str]) -> Run:
        tokens = encoder.tokenizer.tokenize(texts, check=lambda: None)
        batches = encoder.plan(tokens)

        def run() -> object:
            parts = [encoder.start(tokens, batch) for batch in batches]
            return [part.result() for part in parts]

        return run

    note = f"{encoder.runtime['tokens_per_batch']:,} tokens a batch"
    ready_s = time.perf_counter() - start
    return Engine(
        name=name,
        embed=encoder.embed,
        prepare=prepare,
        ready_s=ready_s,
        note="; ".join([note, *encoder.notes]),
    )


def library_engine(name: str, model: Any, batch_size: int, ready_s: float) -> Engine:
    """Returns sentence-transformers with a batch size."""

    def embed(texts: Sequence[str]) -> Array:
        vectors = model.encode(list(texts), batch_size=batch_size, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    def prepare(texts: Sequence[str]) -> Run:
        ordered = sorted(texts, key=len, reverse=True)
        starts = range(0, len(ordered), batch_size)
        batches = [model.preprocess(ordered[start : start + batch_size]) for start in starts]

        @torch.inference_mode()
        def run() -> object:
            return [
                model(_on(features, model.device))["sentence_embedding"].cpu()
                for features in batches
            ]

        return run

    return Engine(name=name, embed=embed, prepare=prepare, ready_s=ready_s)


def _on(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in features.items()
    }


def load_library(path: Path, device: str, **model_kwargs: Any) -> Any:
    """Returns a model as sentence-transformers loads it."""
    model = SentenceTransformer(str(path), device=device, model_kwargs=model_kwargs)
    model.max_seq_length = LIMIT
    return model.eval()


def _library(path: Path, device: str) -> Iterator[Engine]:
    start = time.perf_counter()
    model = load_library(path, device, dtype=torch.bfloat16, attn_implementation="sdpa")
    ready_s = time.perf_counter() - start
    for batch_size in (32, 256):
        yield library_engine(f"sentence-transformers, {batch_size}", model, batch_size, ready_s)


def _library_unpadded(path: Path, device: str) -> Iterator[Engine | tuple[str, str]]:
    name = "sentence-transformers unpadded, 256"
    if device == "cpu" or find_spec("flash_attn") is None:
        why = "no GPU" if device == "cpu" else "flash-attn is not installed"
        yield name, f"not run: {why}"
        return
    start = time.perf_counter()
    kind = "flash_attention_2"
    try:
        model = load_library(path, device, dtype=torch.bfloat16, attn_implementation=kind)
    except (ImportError, ValueError, RuntimeError) as error:  # installed, but not for this machine
        yield name, why_not(error)
        return
    engine = library_engine(name, model, 256, time.perf_counter() - start)
    flat = getattr(model[0], "can_flatten_inputs", False)
    yield engine if flat else (name, "not run: the library pads this model all the same")


def engines(path: Path, device: str) -> Iterator[Engine | tuple[str, str]]:
    """Yields what is compared, or the name of what cannot run here and why; compiled ones later."""
    yield from _library(path, device)
    yield from _library_unpadded(path, device)
    for name, batching in (("chatspace buckets", "buckets"), ("chatspace packed", "pack")):
        yield chatspace_engine(name, path, device, EncodeSection(batching=batching))


def compiled_engine(path: Path, device: str) -> Engine:
    """Returns this project's encoder with compiled buckets."""
    encode = EncodeSection(batching="buckets", compile=True, bucket_min_tokens=SMALLEST_COMPILED)
    return chatspace_engine(COMPILED, path, device, encode)


def why_not(error: Exception) -> str:
    """Returns what stands in the row of an engine that an error stopped."""
    return f"not run: {type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:160]
