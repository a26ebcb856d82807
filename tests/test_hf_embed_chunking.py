"""Long rows become chunks: every character in one, none too long, each embedded as its text is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.chunking.cutting import Chunk
from chatspace.errors import InputError, ModelError
from chatspace.hf_embed.chunking import TokenChunker, make_chunker
from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import LibraryTokenizer
from tests.models import build
from tests.shards import FakeRows
from tests.test_chunking_cutting import SENTENCES, TEXTS, uncovered

PROMPT = "passage: "


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build(kind, root / kind) for kind in ("bert-mean", "qwen3-last")}


def section_of(**values: object) -> ModelSection:
    common = {"name": "tiny", "dtype": "float32", "device": "cpu", "long_text": "chunk"}
    return ModelSection.model_validate({**common, **values})


def load(folder: Path, **values: object) -> tuple[ModelSection, Encoder]:
    section = section_of(**values)
    return section, load_encoder(section, EncodeSection(), path=str(folder), threads=1)


@cache
def chunker_of(folder: Path, **values: object) -> TokenChunker:
    return make_chunker(*load(folder, **values))


def rows_of(*texts: str, metadata: str = "{}") -> FakeRows:
    return FakeRows(
        row_index=10 * np.arange(len(texts)),
        ids=pa.array([f"d{index}" for index in range(len(texts))], pa.string()),
        texts=list(texts),
        metadata=pa.array([metadata] * len(texts), pa.string()),
        skipped={"null_text": 2},
    )


def chunks_of(chunker: TokenChunker, text: str) -> list[Chunk]:
    rows, _ = chunker.split(rows_of(text))
    pairs = zip(rows.char_start.tolist(), rows.char_stop.tolist(), strict=True)
    return [Chunk(start, stop) for start, stop in pairs]


# Any text


@pytest.mark.parametrize("kind", ["bert-mean", "qwen3-last"])
@pytest.mark.parametrize("prompt", ["", PROMPT])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, overlap=st.integers(0, 6), times=st.sampled_from([1, 1, 1, 30]))
def test_split_any_text_is_covered_in_order_within_the_budget(
    folders: dict[str, Path], kind: str, prompt: str, text: str, overlap: int, times: int
) -> None:
    text *= times
    whole = chunker_of(folders[kind], chunk_tokens=24, prompt=prompt or None)
    cutter = replace(whole.chunker.cutter, overlap=min(overlap, 3))
    chunker = replace(whole, chunker=replace(whole.chunker, cutter=cutter, excerpt_chars=1))
    rows, tokens = chunker.split(rows_of(text))
    chunks = chunks_of(chunker, text)
    assert rows.texts == [text[start:stop] for start, stop in chunks]
    assert all(start < stop for start, stop in chunks)
    assert uncovered(text, chunks) == ""
    assert all(a.start < b.start and a.stop < b.stop for a, b in pairwise(chunks))
    assert tokens.lengths.max() <= 24
    too_long = np.flatnonzero(tokens.truncated)
    assert all(len(rows.texts[index]) == 1 for index in too_long)
    again, same = chunker.split(rows_of("x", text))
    assert again.texts[1:] == rows.texts and np.array_equal(same.lengths[1:], tokens.lengths)


# Rows


def test_split_a_row_that_fits_is_one_chunk_and_keeps_its_spaces(folders: dict[str, Path]) -> None:
    chunker = chunker_of(folders["bert-mean"], chunk_tokens=64)
    rows, tokens = chunker.split(rows_of("  short \n", "and " * 300, "x"))
    assert rows.texts[0] == "  short \n" and rows.texts[-1] == "x"
    assert rows.ids.to_pylist()[:3] == ["d0#0", "d1#0", "d1#1"] and rows.ids[-1].as_py() == "d2#0"
    assert rows.row_index.tolist() == [10 * row for row in rows.row]
    n_chunks = np.bincount(rows.row).tolist()
    assert n_chunks[0] == n_chunks[2] == 1 and n_chunks[1] > 4
    assert rows.chunk_index.tolist() == [0, *range(n_chunks[1]), 0]
    assert rows.skipped == {"null_text": 2} and not tokens.truncated.any()


def test_split_chunks_have_the_tokens_of_their_text_with_the_prompt(
    folders: dict[str, Path],
) -> None:
    section, encoder = load(folders["qwen3-last"], chunk_tokens=40, prompt=PROMPT, overlap_tokens=8)
    rows, tokens = make_chunker(section, encoder).split(rows_of(SENTENCES * 12))
    alone = encoder.tokenizer.tokenize(rows.texts, check=lambda: None)
    assert len(rows.texts) > 10 and np.array_equal(alone.lengths, tokens.lengths)
    n_prompt = encoder.tokenizer.count("") - 1
    assert n_prompt > 3 and tokens.lengths.max() <= 40
    assert np.mean(tokens.lengths) > 25


def test_split_excerpts_change_nothing_in_ordinary_text(folders: dict[str, Path]) -> None:
    from pydoc_data.topics import topics

    text = topics["typesseq"]
    for folder in folders.values():
        chunker = chunker_of(folder, chunk_tokens=50, overlap_tokens=5)
        small = replace(chunker, chunker=replace(chunker.chunker, excerpt_chars=1))
        found = chunks_of(small, text)
        assert found == chunks_of(chunker, text) and len(found) > 50


def test_split_a_character_of_too_many_tokens_is_counted(folders: dict[str, Path]) -> None:
    chunker = chunker_of(folders["qwen3-last"], chunk_tokens=3)
    rows, tokens = chunker.split(rows_of("a😀b"))
    assert rows.texts == ["a", "😀", "b"]
    assert tokens.truncated.tolist() == [text == "😀" for text in rows.texts]


def test_split_a_row_of_nothing_but_spaces_is_kept_and_counted(folders: dict[str, Path]) -> None:
    chunker = chunker_of(folders["qwen3-last"], chunk_tokens=8)
    rows, tokens = chunker.split(rows_of(" \n" * 500))
    assert len(rows.texts) == 1 and tokens.truncated.tolist() == [True]


def test_split_characters_that_the_tokenizer_drops_are_in_chunks(folders: dict[str, Path]) -> None:
    text = "word " * 30 + "\x00" * 5000 + " word" * 30
    for folder in folders.values():
        chunks = chunks_of(chunker_of(folder, chunk_tokens=24), text)
        assert uncovered(text, chunks) == "" and len(chunks) > 3


def test_split_metadata_beyond_a_table_is_refused(folders: dict[str, Path]) -> None:
    chunker = chunker_of(folders["bert-mean"], chunk_tokens=20)
    with pytest.raises(InputError, match=r"Too much metadata: row_index=0; 1,000,000 bytes"):
        chunker.split(rows_of("word " * 40_000, metadata="x" * 1_000_000))


def test_split_a_tokenizer_that_cuts_on_the_left_makes_the_same_chunks(
    folders: dict[str, Path],
) -> None:
    kwargs = {"truncation_side": "left"}
    left = make_chunker(*load(folders["bert-mean"], chunk_tokens=40, tokenizer_kwargs=kwargs))
    right = chunker_of(folders["bert-mean"], chunk_tokens=40)
    assert chunks_of(left, SENTENCES * 9) == chunks_of(right, SENTENCES * 9)


# Refusals


def test_make_chunker_limits_that_do_not_go_together_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"model.chunk_tokens=999; the model has \d+ positions"):
        load(folders["bert-mean"], chunk_tokens=999)
    with pytest.raises(ModelError, match=r"overlap_tokens=10; of 20 tokens 18 are text.* most 9"):
        make_chunker(*load(folders["bert-mean"], chunk_tokens=20, overlap_tokens=10))
    section, encoder = load(folders["bert-mean"], chunk_tokens=20)
    library = LibraryTokenizer(None, prompt="")
    with pytest.raises(ModelError, match=r"Cannot cut rows.*Set model.long_text: truncate or"):
        make_chunker(section, replace(encoder, tokenizer=library))
    encoder.max_tokens = None
    with pytest.raises(ModelError, match=r"No limit for chunks.*Set model.chunk_tokens"):
        make_chunker(section, encoder)
