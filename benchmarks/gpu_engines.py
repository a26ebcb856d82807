"""The engines of `encode_gpu.py`: sentence-transformers and chatspace, and how each is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from corpora import LIMIT
from sentence_transformers import SentenceTransformer
from torch._dynamo.utils import counters

from chatspace.hf_embed.compiling import warm_up
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection

Array = npt.NDArray[np.float32]
Run = Callable[[], object]

SHORT = "50"
"""The corpus on which recorded graphs should gain most: little work for each kernel that starts."""
SMALLEST_COMPILED = 64  # tokens; each bucket is a graph, and graphs take the most time here


class CannotRunError(Exception):
    """An engine is not for this machine or model; the reason is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One way to embed, loaded and ready.

    Attributes:
        embed: texts in, vectors out, (n_texts, dim).
        prepare: makes the batches of some texts and returns the run over them.
        note: what it says of itself.
    """

    embed: Callable[[Sequence[str]], Array]
    prepare: Callable[[Sequence[str]], Run]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine that is not loaded yet.

    Attributes:
        load: returns it ready; raises `CannotRunError`, or whatever it fails with.
        corpus: the only one that it is for [all].
        compiles: it makes graphs first, which takes minutes.
    """

    name: str
    load: Callable[[], Engine]
    corpus: str | None = None
    compiles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where engines run.

    Attributes:
        path: folder of the model.
        compiles: compiled engines run too.
        few_graphs: one for each compiled engine, for a quick run.
        records: measure recorded graphs, which are for small models.
    """

    path: Path
    device: str
    compiles: bool
    few_graphs: bool
    records: bool


def candidates(place: Place) -> list[Candidate]:
    """Returns what is compared, in the order of the table."""
    found = [
        Candidate(name=f"sentence-transformers, {n}", load=partial(library_engine, place, n))
        for n in (32, 256)
    ]
    unpadded = partial(unpadded_library_engine, place, 256)
    found.append(Candidate(name="sentence-transformers unpadded, 256", load=unpadded))
    for name, encode in (
        ("buckets", EncodeSection(batching="buckets")),
        ("packed", EncodeSection(batching="pack")),
    ):
        load = partial(chatspace_engine, place, encode)
        found.append(Candidate(name=f"chatspace {name}", load=load))
    least = LIMIT if place.few_graphs else SMALLEST_COMPILED
    load = partial(compiled_engine, place, EncodeSection(compile=True, bucket_min_tokens=least))
    found.append(Candidate(name="chatspace buckets, compiled", load=load, compiles=True))
    if place.records:
        found.append(_recording(place))
    return found


def _recording(place: Place) -> Candidate:
    """Returns the encoder with CUDA graphs, of short rows alone: one bucket is one graph."""
    encode = EncodeSection(
        compile=True, compile_mode="reduce-overhead", bucket_min_tokens=SMALLEST_COMPILED
    )
    return Candidate(
        name="chatspace buckets, reduce-overhead",
        load=partial(compiled_engine, place, encode, max_tokens=SMALLEST_COMPILED),
        corpus=SHORT,
        compiles=True,
    )


def chatspace_engine(place: Place, encode: EncodeSection, max_tokens: int = LIMIT) -> Engine:
    """Returns this project's encoder."""
    section = ModelSection(
        name=place.path.name, dtype="bfloat16", device=place.device, max_tokens=max_tokens
    )
    encoder = load_encoder(section, encode, path=str(place.path))
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
    return Engine(embed=encoder.embed, prepare=prepare, note="; ".join([note, *encoder.notes]))


def compiled_engine(place: Place, encode: EncodeSection, max_tokens: int = LIMIT) -> Engine:
    """Returns this project's encoder, compiled.

    Raises:
        CannotRunError: it is not asked for.
    """
    if not place.compiles:
        raise CannotRunError("no GPU; add --compile")
    before = counters["inductor"]["cudagraph_skips"]
    engine = chatspace_engine(place, encode, max_tokens)
    n_left_out = counters["inductor"]["cudagraph_skips"] - before
    if n_left_out:
        return replace(engine, note=f"{engine.note}; {n_left_out} graphs not recorded by PyTorch")
    return engine


def library_engine(place: Place, batch_size: int, attention: str = "sdpa") -> Engine:
    """Returns sentence-transformers with a batch size."""
    model = load_library(
        place.path, place.device, dtype=torch.bfloat16, attn_implementation=attention
    )

    def embed(texts: Sequence[str]) -> Array:
        vectors = model.encode(list(texts), batch_size=batch_size, convert_to_tensor=True)
        array: Array = vectors.float().cpu().numpy()
        return array

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

    flat = bool(getattr(model[0], "can_flatten_inputs", False))
    return Engine(embed=embed, prepare=prepare, note="without padding" if flat else "")


def unpadded_library_engine(place: Place, batch_size: int) -> Engine:
    """Returns sentence-transformers as it leaves padding out.

    Raises:
        CannotRunError: it cannot do so here.
    """
    if place.device == "cpu":
        raise CannotRunError("no GPU")
    if find_spec("flash_attn") is None:
        raise CannotRunError("flash-attn is not installed")
    engine = library_engine(place, batch_size, "flash_attention_2")
    if not engine.note:
        raise CannotRunError("the library pads this model all the same")
    return engine


def load_library(path: Path, device: str, **model_kwargs: Any) -> Any:
    """Returns a model as sentence-transformers loads it."""
    model = SentenceTransformer(str(path), device=device, model_kwargs=model_kwargs)
    model.max_seq_length = LIMIT
    return model.eval()


def _on(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in features.items()
    }


def why_not(error: Exception) -> str:
    """Returns what stands in the row of an engine that an error stopped."""
    reason = str(error) if isinstance(error, CannotRunError) else f"{type(error).__name__}: {error}"
    return f"not run: {reason}".splitlines()[0].replace("|", "/")[:160]
