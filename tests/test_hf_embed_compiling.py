"""Compiled models: which graphs are made, when, and that they change no vectors."""

from __future__ import annotations

import os
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from chatspace.hf_embed.compiling import share_graphs, warm_up
from chatspace.hf_embed.spec import EncodeSection
from tests.encoders import load, min_cosine, some_texts, vectors_of
from tests.models import build


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: build(kind, folder / kind) for kind in ("bert-mean", "bert-cls")}


def test_compile_makes_all_graphs_before_the_first_row(folders: dict[str, Path]) -> None:
    from torch._dynamo.utils import counters

    texts = some_texts(12)
    encode = EncodeSection(compile=True, bucket_min_tokens=64, tokens_per_batch=512)
    encoder = load(folders["bert-mean"], encode=encode)
    warm_up(encoder)
    n_graphs = counters["stats"]["unique_graphs"]
    assert n_graphs >= len(list(encoder.buckets.widths())) == 2
    compiled = vectors_of(encoder, texts)
    single = vectors_of(encoder, texts[:1])
    assert counters["stats"]["unique_graphs"] == n_graphs
    plain = vectors_of(load(folders["bert-mean"]), texts)
    assert min_cosine(compiled, plain) > 0.99999 and min_cosine(single, plain[:1]) > 0.99999


def test_compile_of_many_buckets_makes_a_graph_for_each(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    # The graphs are what takes its limits; what code is made of them takes minutes.
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(plain, backend="eager"))
    torch._dynamo.reset()  # what other tests compiled counts too
    encode = EncodeSection(
        compile=True, bucket_min_tokens=10, bucket_max_tokens=10, tokens_per_batch=64
    )
    encoder = load(folders["bert-mean"], encode=encode)
    n_buckets = len(list(encoder.buckets.widths()))
    before = counters["stats"]["unique_graphs"]
    warm_up(encoder)
    assert counters["stats"]["unique_graphs"] - before >= n_buckets == 13
    encoder.close()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compile_of_few_rows_gives_their_vectors(
    mode: str | None, folders: dict[str, Path]
) -> None:
    encode = EncodeSection(
        compile=True, compile_mode=mode, bucket_min_tokens=128, tokens_per_batch=512
    )
    encoder = load(folders["bert-cls"], encode=encode)
    assert encoder.workers == 1 and encoder.runtime["batching"] == "buckets"
    texts = some_texts(1)[:5]
    assert min_cosine(encoder.embed(texts), load(folders["bert-cls"]).embed(texts)) > 0.99999
    encoder.close()


def test_graphs_are_shared_where_the_user_does_not_say_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "remembered, so that it is put back")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    share_graphs(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path / "torchinductor"))
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
