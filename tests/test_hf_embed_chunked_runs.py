"""Runs that cut long rows: the same files whatever happens, every row accounted for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from chatspace.errors import SpecError
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.jobs.gather import gather_run, verify_run
from chatspace.jobs.overview import summary_of
from chatspace.jobs.setup import set_up
from chatspace.run import Run
from chatspace.shards.table import embedding_matrix
from tests.conftest import SpecMaker, texts, write_parquet
from tests.test_exactly_once import digests, kill_at_random_moment, run_all
from tests.test_hf_embed_pipeline import FakeCommit, FakeReader, Slicer

CHUNKS = {"long_text": "chunk", "chunk_tokens": 40, "overlap_tokens": 6, "document_vector": True}


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("CHATSPACE_THREADS", "1")


def slicer_of(model: Path, **settings: Any) -> Slicer:
    return Slicer(model, spec={"model": {**CHUNKS, **settings}})


# One slice


def test_slice_of_long_rows_stores_their_chunks(tiny_model: Path) -> None:
    slicer = slicer_of(tiny_model)
    outcome = slicer.run()
    assert not outcome.interrupted and sorted(slicer.commit.tables) == [0, 1, 2, 3]
    for index, table in slicer.commit.tables.items():
        firsts = table.filter(pc.equal(table["chunk_index"], 0))
        assert firsts["row_index"].to_pylist() == [
            row for row in range(40 * index, min(40 * index + 40, 150)) if row % 10 != 3
        ]
        assert table.num_rows > firsts.num_rows
        for row in table.to_pylist():
            whole = slicer.reader.text_of(row["row_index"])
            assert row["text"] == whole[row["char_start"] : row["char_stop"]]
            assert row["id"] == f"d/train/{row['row_index']}#{row['chunk_index']}"
    assert [truncated for _, truncated in slicer.commit.facts.values()] == [0, 0, 0, 0]
    assert slicer.reports[-1].rows == 150 and slicer.reports[-1].stage == "done"


def test_slice_vectors_are_those_of_the_chunks_texts(tiny_model: Path) -> None:
    slicer = slicer_of(tiny_model)
    slicer.run([0])
    table = slicer.commit.tables[0]
    section = ModelSection(name="tiny", dtype="float32", device="cpu")
    encoder = load_encoder(section, EncodeSection(), path=str(tiny_model), threads=1)
    alone = encoder.embed(table["text"].to_pylist())
    vectors = embedding_matrix(table["embedding"])
    assert np.allclose(vectors, alone, atol=1e-5)
    lengths = encoder.tokenizer.tokenize(table["text"].to_pylist(), check=lambda: None).lengths
    assert lengths.max() <= 40
    rows = table["row_index"].to_numpy()
    documents = {r["row_index"]: r["document_vector"] for r in table.to_pylist()[::-1]}
    for row in np.unique(rows):
        mean = (vectors[rows == row] * lengths[rows == row][:, None]).sum(0)
        assert np.allclose(documents[row], mean / np.linalg.norm(mean), atol=1e-5)


def test_slice_chunks_have_the_same_bits_in_any_division(tiny_model: Path) -> None:
    whole, parts = slicer_of(tiny_model), FakeCommit()
    whole.run()
    for indices in ([3], [1, 0], [2]):
        part = slicer_of(tiny_model)
        part.commit = parts
        part.run(indices)
    assert parts.bits() == whole.commit.bits()
    assert all(parts.tables[i].equals(whole.commit.tables[i]) for i in range(4))


def test_slice_without_document_vectors_or_text_has_neither(tiny_model: Path) -> None:
    slicer = slicer_of(tiny_model, document_vector=None)
    slicer.spec["output"] = {"keep_text": False, "dtype": "float16"}
    slicer.run([0])
    table = slicer.commit.tables[0]
    assert "document_vector" not in table.column_names
    assert table["text"].null_count == table.num_rows
    assert embedding_matrix(table["embedding"]).dtype == np.float16


def test_slice_without_chunks_has_the_columns_it_had(tiny_model: Path) -> None:
    slicer = Slicer(tiny_model)
    slicer.run([0])
    names = "id source dataset split row_index text metadata embedding model created_at run_id"
    assert slicer.commit.tables[0].column_names == names.split()


def test_slice_told_to_stop_within_long_rows_commits_whole_shards(tiny_model: Path) -> None:
    slicer = slicer_of(tiny_model)
    slicer.reader = FakeReader(text_of=lambda row: f"row {row}. " + "A statement. " * 200)
    slicer.commit.on_commit = lambda span: slicer.stop.request(60)
    assert slicer.run().interrupted
    for table in slicer.commit.tables.values():
        assert pc.sum(pc.equal(table["chunk_index"], 0)).as_py() == 36


# Whole runs


def long_rows(n: int, seed: int) -> list[str | None]:
    """Rows of which every third is long, with blank and missing ones among them."""
    rng = random.Random(seed)
    words = texts(n * 8, seed=seed)
    rows: list[str | None] = [
        ". ".join(rng.choices(words, k=rng.randint(5, 12))) if i % 3 == 0 else words[i]
        for i in range(n)
    ]
    rows[7], rows[20] = None, " \n "
    return rows


@pytest.mark.slow
def test_run_of_chunks_gives_the_same_files_in_one_three_and_eight_slices(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": long_rows(200, seed=4)})
    found = {}
    for count in (1, 3, 8):
        spec = make_spec(
            workspace=str(tmp_path / f"ws{count}"),
            slices={"count": count},
            dataset={"path": str(data)},
            model=CHUNKS,
            output={"rows_per_shard": 20},
        )
        plan = set_up(spec).plan
        run_all(plan)
        assert verify_run(plan) == {"train": 10}
        found[count] = digests(plan)
    assert len(found[1]) == 10 and found[1] == found[3] == found[8]
    manifest = Run(plan).manifest()
    assert (manifest["rows_total"], manifest["rows_embedded"]) == (200, 198)
    assert manifest["rows_skipped"] == {"empty_text": 1, "null_text": 1}
    assert manifest["chunks"] > 300 and manifest["rows_truncated"] == 0
    assert manifest["chunks"] == sum(shard["chunks"] for shard in manifest["shards"])
    assert Run(plan).vectors().shape == (manifest["chunks"], manifest["embedding_dim"])
    assert summary_of(plan, gather_run(plan), elapsed_s=1).chunks == manifest["chunks"]
    status = Run(plan).status()
    assert (status.rows_done, status.rows) == (200, 200)


@pytest.mark.slow
def test_run_of_chunks_killed_and_run_again_gives_the_same_files(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "long" / "docs.parquet", {"text": long_rows(600, seed=5)})
    sections: dict[str, Any] = {"dataset": {"path": str(data)}, "model": CHUNKS}
    calm = set_up(make_spec(workspace=str(tmp_path / "calm"), **sections)).plan
    run_all(calm)
    killed = set_up(make_spec(workspace=str(tmp_path / "killed"), **sections)).plan
    kill_at_random_moment(killed, random.Random(0))
    assert 0 < len(digests(killed)) < killed.splits[0].n_shards
    run_all(killed)
    assert digests(killed) == digests(calm)
    assert verify_run(killed) == {"train": killed.splits[0].n_shards}


# The spec


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"chunk_tokens": 64},
            "chunk_tokens: only where rows are cut into chunks; add long_text: c",
        ),
        ({"long_text": "error", "overlap_tokens": 4}, "add long_text: chunk, or leave it out"),
        ({"document_vector": True, "chunk_tokens": 9}, "chunk_tokens, document_vector: only"),
        ({"long_text": "chunks"}, "expected one of truncate, error, chunk. Did you mean chunk?"),
        ({"long_text": "chunk", "on_too_long": "error"}, "earlier name of long_text; keep long_t"),
        ({**CHUNKS, "overlap_tokens": 21}, "overlap_tokens=21 is more than half of the 40 tokens"),
        ({**CHUNKS, "max_tokens": 30}, "chunk_tokens=40 is above max_tokens=30; lower it, or set"),
        ({**CHUNKS, "overlap_tokens": -1}, "expected an integer of 0 or more"),
        ({**CHUNKS, "chunk_tokens": 0}, "expected an integer greater than 0"),
        ({**CHUNKS, "chunk_token": 40}, "Did you mean chunk_tokens?"),
    ],
)
def test_spec_of_chunks_that_makes_no_sense_is_refused(
    make_spec: SpecMaker, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(model=model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_spec_earlier_name_of_long_text_means_the_same() -> None:
    assert ModelSection(on_too_long="error").what_if_long == "error"
    assert ModelSection(long_text="error").what_if_long == "error"
    assert ModelSection().what_if_long == "truncate"


def test_spec_keys_of_chunks_are_hashed_only_where_they_are_used(make_spec: SpecMaker) -> None:
    plain = make_spec().hashed()["model"]
    assert not {"long_text", "chunk_tokens", "overlap_tokens", "document_vector"} & set(plain)
    chunked = make_spec(model=CHUNKS).hashed()["model"]
    assert CHUNKS.items() <= chunked.items()
