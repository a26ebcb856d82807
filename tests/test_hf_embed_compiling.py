"""Compiled models: which graphs are made, when, and that they change no vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import get_args

import pytest
import torch

from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.hf_embed.compiling import refuse_missing_compiler, share_graphs, warm_up
from chatspace.hf_embed.spec import CompileMode, EmbedSpec, EncodeSection
from chatspace.jobs.causes import cause_of
from chatspace.spec.loading import spec_from_mapping
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


def test_graphs_lie_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"TORCHINDUCTOR_CACHE_DIR": "/mine/inductor", "TRITON_CACHE_DIR": "/mine/triton"}
    for name, folder in mine.items():
        monkeypatch.setenv(name, folder)
    share_graphs(tmp_path)
    assert {name: os.environ[name] for name in mine} == mine


def test_graphs_are_shared_also_where_pytorch_has_written_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{default_cache_dir()}/triton/0")
    share_graphs(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path / "torchinductor"))
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


ENCODER = """
import sys
from types import SimpleNamespace
from chatspace.hf_embed import work
from chatspace.hf_embed.metrics import Counters
spec = {
    "model": {"name": "tiny", "dtype": "float32", "device": "cpu"},
    "encode": {"compile": True, "bucket_min_tokens": 128, "tokens_per_batch": 256},
    "output": {},
}
plan = SimpleNamespace(
    spec=spec, model={"path": sys.argv[1]}, workspace=sys.argv[2], splits=()
)
work.prepare_process(1)
work._encoder(SimpleNamespace(plan=plan, threads=1, spans=()), Counters()).close()
"""


def test_graphs_of_a_task_lie_in_its_workspace(folders: dict[str, Path], tmp_path: Path) -> None:
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in names}
    arguments = ["-c", ENCODER, str(folders["bert-mean"]), str(tmp_path)]
    subprocess.run([sys.executable, *arguments], env=env, check=True, timeout=200)
    assert list((tmp_path / "cache" / "torchinductor").rglob("*.so"))


def test_compile_without_a_compiler_is_an_unfit_environment(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.cpp_builder import cpp_compiler_search

    encode = EncodeSection(compile=True, bucket_min_tokens=128, tokens_per_batch=384)
    encoder = load(folders["bert-mean"], encode=encode)
    torch._dynamo.reset()
    cpp_compiler_search.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    with pytest.raises(UnfitEnvironmentError) as error:
        warm_up(encoder)
    encoder.close()
    assert str(error.value) == (
        "No C++ compiler on this node: encode.compile=true; PyTorch makes the graphs of a compiled "
        "model with one. Load one (module load gcc), or leave encode.compile out."
    )
    assert cause_of(error.value) == "environment"


def test_missing_compiler_of_triton_is_told_apart_from_other_errors() -> None:
    text = "Failed to find C compiler. Please specify via CC environment variable"
    with pytest.raises(UnfitEnvironmentError, match="No C compiler on this node"):
        refuse_missing_compiler(
            RuntimeError(f"RuntimeError: {text} or set triton.knobs.build.impl")
        )
    refuse_missing_compiler(RuntimeError("shapes differ"))  # raises nothing


def spec_with(**encode: object) -> EmbedSpec:
    dataset = {"source": "parquet", "path": "/data/docs"}
    values = {"kind": "embed", "name": "x", "workspace": "/w", "dataset": dataset, "encode": encode}
    return spec_from_mapping(values, "test")


def test_compile_mode_unknown_is_refused_with_the_known_ones() -> None:
    known = list(get_args(CompileMode))
    assert set(known) == set(torch._inductor.list_mode_options()) - {"lite"}
    with pytest.raises(SpecError, match="max-autotune-no-cudagraphs") as error:
        spec_with(compile=True, compile_mode="fastest")
    assert f"encode.compile_mode='fastest'; expected one of {', '.join(known)}" in str(error.value)
    with pytest.raises(SpecError, match="Did you mean reduce-overhead"):
        spec_with(compile=True, compile_mode="reduce_overhead")
    assert spec_with(compile=True, compile_mode="max-autotune").encode.compile


def test_compile_mode_without_compile_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"encode\.compile_mode: default needs encode\.compile: true"
    ):
        spec_with(compile_mode="default")
    spec_with(compile_mode=None)
