"""Joined rows against sentence-transformers' own vectors of each text alone, family by family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from chatspace.hf_embed.compiling import warm_up
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from tests.models import ALL_KINDS, build

# T5 adds a learned bias to each pair of positions, and takes no positions from outside; Phi-3 turns
# those of all rows of a batch by its longest.
PADDED_KINDS = ("t5-mean", "phi3-last")
FLOORS = {"float32": 0.99999, "bfloat16": 0.9995}
WINDOW = 32  # of the models that have one
N_WORDS = (3, 3, 3, 5, 5, 8, 8, 8, 10, 10, 13, 16, 16, 20, 20, 20, 25, 30, 35, 40, 60, 300)
SHORT_WORDS = ("the", "of", "to", "in", "is", "and", "for", "with", "that", "be")  # a token each
N_SHORT_WORDS = (*range(13, 18), *range(29, 34))  # with special tokens, around a window's edge


class Result(NamedTuple):
    """One line of the table that ends this file's run."""

    kind: str
    prompt: str
    batching: str
    dtype: str
    min_cosine: float
    rows: int


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parity")
    return {kind: build(kind, folder / kind) for kind in ALL_KINDS}


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[list[Result]]:
    found: list[Result] = []
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{'kind':22}{'prompt':8}{'batching':20}{'dtype':10}{'min cosine':>12}{'rows':>6}")
        for kind, prompt, batching, dtype, cosine, rows in sorted(found):
            print(f"{kind:22}{prompt:8}{batching:20}{dtype:10}{cosine:12.7f}{rows:6}")


@cache
def unlike_texts() -> tuple[str, ...]:
    """Texts of other words each, from three to many more than any model has room for."""
    from pydoc_data.topics import topics

    words = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})
    draw = random.Random(0)
    own = [draw.sample(words, k=min(n, 8)) for n in N_WORDS]
    return tuple(" ".join((some * n)[:n]) for some, n in zip(own, N_WORDS, strict=True))


@cache
def all_texts() -> tuple[str, ...]:
    """All lengths, mixed: empty, one token, equal, around the windows, too long, twice the same."""
    draw = random.Random(1)
    short = [" ".join(["a", *draw.choices(SHORT_WORDS, k=n)]) for n in N_SHORT_WORDS]
    odd = ["", "a", "b", "the", "naïve 北京 🙂👩‍👩‍👧 שלום", "two\n\nlines\t", "x" * 90]
    texts = [*unlike_texts(), *short, *odd]
    texts += [texts[2], texts[12], "a"]
    draw.shuffle(texts)
    return tuple(texts)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models so small lose more than they gain where threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(
    folder: Path,
    *,
    dtype: str = "float32",
    prompt: str | None = None,
    device: str = "cpu",
    **encode: Any,
) -> Any:
    """Returns an encoder that joins rows where it can, to be used in a `with`."""
    section = ModelSection(name=str(folder), dtype=dtype, device=device, prompt_name=prompt)
    options = EncodeSection(**{"batching": "pack", **encode})
    return closing(load_encoder(section, options, path=str(folder), threads=2))


@cache
def reference(folder: Path, texts: tuple[str, ...], prompt: str | None = None) -> np.ndarray:
    """Returns what sentence-transformers gives for each text in a batch of its own, in float32."""
    model = SentenceTransformer(str(folder), device="cpu")
    return np.concatenate([model.encode([text], prompt_name=prompt) for text in texts])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine of each row of `a` and the same row of `b`, (n_rows,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def notes_on_joining(encoder: Encoder) -> list[str]:
    return [note for note in encoder.notes if "joined" in note]


# What the other tests rest on


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_models_give_other_texts_and_other_orders_clearly_other_vectors(
    kind: str, folders: dict[str, Path]
) -> None:
    texts = unlike_texts()
    vectors = reference(folders[kind], texts)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(len(texts), k=1)]
    assert pairs.max() < 0.99
    turned = tuple(" ".join(reversed(text.split())) for text in texts)
    order = cosines(vectors, reference(folders[kind], turned))
    assert order.max() < 0.9999 and order.mean() < 0.995


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_texts_are_of_all_the_lengths_that_matter(kind: str, folders: dict[str, Path]) -> None:
    with load(folders[kind]) as encoder:
        tokens = encoder.tokenizer.tokenize(all_texts(), check=lambda: None)
        assert encoder.max_tokens is not None
    lengths = tokens.lengths.tolist()
    n_special = min(lengths)
    assert n_special + 1 in lengths
    assert len(set(lengths)) <= len(lengths) - 10
    assert {size + more for size in (WINDOW // 2, WINDOW) for more in (0, 1, 2)} <= set(lengths)
    assert sum(length > 2 * WINDOW for length in lengths) >= 5
    assert 1 <= tokens.truncated.sum() <= len(lengths) / 4
    assert max(lengths) == encoder.max_tokens


# Parity


@pytest.mark.parametrize("dtype", FLOORS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_vectors_joined_are_those_of_each_text_alone(
    kind: str, dtype: str, folders: dict[str, Path], results: list[Result]
) -> None:
    texts = all_texts()
    with load(folders[kind], dtype=dtype) as encoder:
        found = encoder.embed(texts)
        batching = encoder.runtime["batching"]
        notes = notes_on_joining(encoder)
    assert found.dtype == np.float32 and found.shape == (len(texts), encoder.dim)
    cosine = cosines(found, reference(folders[kind], texts)).min()
    results.append(Result(kind, "-", batching, dtype, cosine, len(texts)))
    assert cosine >= FLOORS[dtype]
    assert batching == ("buckets" if kind in PADDED_KINDS else "pack")
    assert len(notes) == (kind in PADDED_KINDS), notes


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOORS)
def test_vectors_on_a_gpu_are_those_of_each_text_alone_and_the_same_bits_again(
    dtype: str, folders: dict[str, Path], results: list[Result]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    texts, low = all_texts(), {}
    for kind in ALL_KINDS:
        with load(folders[kind], dtype=dtype, device="cuda", tokens_per_batch=512) as encoder:
            found, again = encoder.embed(texts), encoder.embed(texts)
            batching = f"{encoder.runtime['batching']} gpu"
        assert found.tobytes() == again.tobytes(), kind
        cosine = cosines(found, reference(folders[kind], texts)).min()
        results.append(Result(kind, "-", batching, dtype, cosine, len(texts)))
        if cosine < FLOORS[dtype]:
            low[kind] = cosine
    assert low == {}


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_vectors_compiled_on_a_gpu_are_those_of_each_text_alone(
    mode: str | None, folders: dict[str, Path], results: list[Result]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    options = {"batching": "auto", "compile": True, "compile_mode": mode, "bucket_min_tokens": 64}
    with load(folders["bert-mean"], device="cuda", tokens_per_batch=512, **options) as encoder:
        warm_up(encoder)
        found = encoder.embed(all_texts())
    cosine = cosines(found, reference(folders["bert-mean"], all_texts())).min()
    results.append(Result("bert-mean", "-", f"{mode or 'compile'} gpu", "float32", cosine, 1))
    assert cosine >= FLOORS["float32"]


@pytest.mark.parametrize("dtype", FLOORS)
@pytest.mark.parametrize("kind", ["bert-mean", "qwen3-last"])
def test_vectors_joined_with_a_prompt_are_those_of_each_text_alone(
    kind: str, dtype: str, folders: dict[str, Path], results: list[Result]
) -> None:
    texts = all_texts()
    with load(folders[kind], dtype=dtype, prompt="query") as encoder:
        found = encoder.embed(texts)
        assert encoder.runtime["batching"] == "pack"
    expected = reference(folders[kind], texts, "query")
    cosine = cosines(found, expected).min()
    results.append(Result(kind, "query", "pack", dtype, cosine, len(texts)))
    assert cosine >= FLOORS[dtype]
    assert cosines(expected, reference(folders[kind], texts)).min() < 0.99


def test_vectors_joined_exclude_the_prompt_where_the_pooling_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = SentenceTransformer(str(folders["bert-mean"]), device="cpu")
    model.set_pooling_include_prompt(False)
    model.save(str(tmp_path), create_model_card=False)
    texts = tuple(text for text in all_texts() if text)  # of the empty one nothing is left to pool
    with load(tmp_path, prompt="query") as encoder:
        found = encoder.embed(texts)
    expected = reference(tmp_path, texts, "query")
    assert cosines(found, expected).min() >= FLOORS["float32"]
    assert cosines(expected, reference(folders["bert-mean"], texts, "query")).min() < 0.999


@pytest.mark.parametrize("tokens_per_batch", [64, 512, 4096])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_vectors_joined_hold_with_any_token_budget(
    kind: str, tokens_per_batch: int, folders: dict[str, Path]
) -> None:
    texts = all_texts()
    with load(folders[kind], tokens_per_batch=tokens_per_batch) as encoder:
        tokens = encoder.tokenizer.tokenize(texts, check=lambda: None)
        n_batches = len(encoder.plan(tokens))
        found = encoder.embed(texts)
    assert n_batches >= tokens.lengths.sum() / max(tokens_per_batch, tokens.lengths.max())
    assert cosines(found, reference(folders[kind], texts)).min() >= FLOORS["float32"]


# Company and repetition


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_vectors_do_not_depend_on_the_other_texts(kind: str, folders: dict[str, Path]) -> None:
    texts = all_texts()
    with load(folders[kind]) as encoder:
        together = encoder.embed(texts)
        backwards = encoder.embed(texts[::-1])[::-1]
        in_thirds = np.empty_like(together)
        for first in range(3):
            in_thirds[first::3] = encoder.embed(texts[first::3])
        alone = np.concatenate([encoder.embed([text]) for text in texts])
    for others in (backwards, in_thirds, alone):
        np.testing.assert_allclose(others, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOORS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_vectors_are_the_same_bits_when_made_again(
    kind: str, dtype: str, folders: dict[str, Path]
) -> None:
    texts = all_texts()
    with load(folders[kind], dtype=dtype) as encoder:
        once, again = encoder.embed(texts), encoder.embed(texts)
    with load(folders[kind], dtype=dtype) as encoder:
        fresh = encoder.embed(texts)
    assert once.tobytes() == again.tobytes() == fresh.tobytes()
