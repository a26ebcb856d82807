"""Encoders on a CPU, texts of all lengths and scripts, and how alike vectors are."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection


def go_on() -> None:
    """A check that never ends the tokenising."""


def some_texts(n: int) -> list[str]:
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 90))) for _ in range(n)]
    odd = ["a", "🙂👩‍👩‍👧", "שלום עולם, مرحبا", "NUL \0 inside", "\0", "x" * 3000]
    return [*texts, *odd, " ".join(words[:20_000])]


def load(folder: Path, **options: Any) -> Encoder:
    encode = options.pop("encode", EncodeSection())
    section = ModelSection(name=str(folder), device="cpu", **{"dtype": "float32", **options})
    return load_encoder(section, encode, path=str(folder))


def vectors_of(encoder: Encoder, texts: list[str]) -> np.ndarray:
    tokens = encoder.tokenizer.tokenize(texts, check=go_on)
    vectors = np.full((len(texts), encoder.dim), np.nan, np.float32)
    for batch in encoder.plan(tokens):  # one after the other, where `embed` has workers
        vectors[batch.rows] = encoder.encode(tokens, batch)
    return vectors


def min_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosine.min())
