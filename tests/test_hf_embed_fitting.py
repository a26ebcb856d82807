"""What is compared when a model is loaded: how often, how long, and how far beyond a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from chatspace.hf_embed import fitting
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.fitting import Fitting, longest_probe, sliding_window
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.packing import PACKED
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import FlatTokens
from tests.models import build

KINDS = ("mistral-last", "modernbert-mean", "phi3-last")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: build(kind, folder / kind) for kind in KINDS}


def load(folder: Path, **section: Any) -> Encoder:
    model = ModelSection(name=str(folder), device="cpu", dtype="float32", **section)
    return load_encoder(model, EncodeSection(), path=str(folder))


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Lengths of the rows of each batch of tokens that is made of a text."""
    found: list[list[int]] = []
    plain = FlatTokens.features

    def features(tokens: FlatTokens, batch: Any) -> Any:
        found.append(tokens.lengths[batch.rows].tolist())
        return plain(tokens, batch)

    monkeypatch.setattr(FlatTokens, "features", features)
    return found


def test_each_text_is_embedded_alone_once(tiny_model: Path, lengths: list[list[int]]) -> None:
    encoder = load(tiny_model)
    alone = [batch for batch in lengths if len(batch) == 1]
    assert encoder.packs and encoder.dim == 64
    assert len(alone) == len(fitting._TEXTS)


@pytest.mark.parametrize("kind", ["mistral-last", "modernbert-mean"])
def test_text_beyond_the_sliding_window_is_compared(
    kind: str, folders: dict[str, Path], lengths: list[list[int]]
) -> None:
    encoder = load(folders[kind])
    assert encoder.packs and encoder.notes == []
    alone = [batch[0] for batch in lengths if len(batch) == 1]
    assert 48 <= max(alone) <= 72  # one and a half windows of 32 tokens, or somewhat more


def test_window_that_no_row_reaches_beyond_is_left_alone(
    folders: dict[str, Path], lengths: list[list[int]]
) -> None:
    encoder = load(folders["mistral-last"], max_tokens=32)
    assert encoder.packs and encoder.notes == []
    assert len([batch for batch in lengths if len(batch) == 1]) == len(fitting._TEXTS)


def test_rows_with_a_window_too_long_to_look_beyond_are_not_joined(
    folders: dict[str, Path], lengths: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_LONGEST_CPU_PROBE", 30)
    encoder = load(folders["mistral-last"])
    (note,) = encoder.notes
    assert "its sliding window of 32 tokens is too long to be compared here" in note
    assert "windows up to 20 are; model.max_tokens: 32 needs no window" in note
    assert not encoder.packs and len([batch for batch in lengths if len(batch) == 1]) == 3
    assert load(folders["mistral-last"], max_tokens=32).packs


@pytest.mark.parametrize(
    ("max_tokens", "packs", "workers", "widths"),
    [(None, False, 1, [16, 32, 64, 128, 256, 512]), (100, False, 1, [16, 32, 64, 100]),
     (64, True, 2, [16, 32, 64])],
)  # fmt: skip
def test_long_rope_joins_no_rows_where_some_are_long(
    max_tokens: int | None, packs: bool, workers: int, widths: list[int], folders: dict[str, Path]
) -> None:
    folder = folders["phi3-last"]
    model = ModelSection(name=str(folder), device="cpu", dtype="float32", max_tokens=max_tokens)
    encoder = load_encoder(model, EncodeSection(), path=str(folder), threads=2)
    assert (encoder.packs, encoder.workers) == (packs, workers)
    assert list(encoder.buckets.widths()) == widths
    assert ["LongRoPE" in note for note in encoder.notes] == ([] if packs else [True])


def fitting_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, **has: bool) -> Fitting:
    """A fitting that takes its device for a GPU with these libraries."""
    for library in ("flash_attn_2", "flash_attn_3"):
        monkeypatch.setattr(fitting, f"is_{library}_available", lambda n=library: has.get(n, False))
    monkeypatch.setattr(fitting, "flash_is_missing", lambda: has.get("old_pytorch", False))
    model = SentenceTransformer(str(folder), device="cpu")
    found = object.__new__(Fitting)
    found._model, found._inner, found._device = model, model.transformers_model, GPU
    return found


@pytest.mark.parametrize(
    ("has", "names"),
    [
        ({}, [PACKED]),
        ({"flash_attn_2": True}, [PACKED]),  # PyTorch's own is the same
        ({"flash_attn_3": True}, ["flash_attention_3", PACKED]),
        ({"old_pytorch": True, "flash_attn_2": True}, ["flash_attention_2"]),
        ({"old_pytorch": True}, []),
    ],
)
def test_attentions_are_those_that_are_installed_the_fastest_first(
    has: dict[str, bool], names: list[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitting_on_a_gpu(tiny_model, monkeypatch, **has)._attentions() == names


def test_attention_that_fails_leaves_the_next_one(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fitting, "_attentions", lambda _: ["not_there", PACKED])
    encoder = load(tiny_model)
    assert encoder.packs and encoder.runtime["attention_impl"] == PACKED and encoder.notes == []


def test_longest_probe_is_shorter_on_a_cpu_and_for_a_large_model(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SentenceTransformer(str(folders["mistral-last"]), device="cpu").transformers_model
    assert longest_probe(inner, GPU) == 6144
    assert longest_probe(inner, CPU) == 1536
    linears = [module for module in inner.modules() if isinstance(module, torch.nn.Linear)]
    monkeypatch.setattr(
        fitting, "_MOST_CPU_WORK", 100 * sum(linear.weight.numel() for linear in linears)
    )
    assert longest_probe(inner, CPU) == 100


def test_sliding_window_is_what_the_config_names(
    folders: dict[str, Path], tiny_model: Path
) -> None:
    found = {
        name: sliding_window(SentenceTransformer(str(folder), device="cpu").transformers_model)
        for name, folder in {**folders, "bert": tiny_model}.items()
    }
    assert found.pop("phi3-last") is None
    assert found == {"mistral-last": 32, "modernbert-mean": 32, "bert": None}
