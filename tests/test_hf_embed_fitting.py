"""What is compared when a model is loaded: how often, how long, and how far beyond a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from chatspace.hf_embed import fitting
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.fitting import longest_probe, sliding_window
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import FlatTokens
from tests.models import build

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: build(kind, folder / kind) for kind in ("mistral-last", "modernbert-mean")}


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


def test_window_that_is_too_long_to_look_beyond_is_said(
    folders: dict[str, Path], lengths: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_LONGEST_CPU_PROBE", 30)
    encoder = load(folders["mistral-last"])
    (note,) = encoder.notes
    assert "longer than the sliding window of 32 tokens were not compared" in note
    assert "windows up to 20 are" in note
    assert encoder.packs and len([batch for batch in lengths if len(batch) == 1]) == 3


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
    assert found == {"mistral-last": 32, "modernbert-mean": 32, "bert": None}
