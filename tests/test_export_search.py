from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.errors import InputError, ModelError
from chatspace.export.formats import Export
from chatspace.export.search import find_id, nearest_rows, search_like, search_text
from chatspace.export.source import FloatArray, VectorSource, open_source, unit_rows
from chatspace.jobs.gather import gather_run
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.run import Run
from tests.conftest import SpecMaker, texts
from tests.vector_runs import random_vectors, vector_run

VECTORS = random_vectors(300, 12)


class Blocks(VectorSource):
    """A source of small blocks."""

    @property
    def block_rows(self) -> int:
        return 11


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VectorSource:
    whole = open_source(vector_run(tmp_path_factory.mktemp("run"), VECTORS))
    return Blocks(plan=whole.plan, shards=whole.shards, schema=whole.schema)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 400))
def test_nearest_rows_are_those_of_brute_force(source: VectorSource, seed: int, k: int) -> None:
    query = unit_rows(random_vectors(1, 12, seed))[0]
    scores = unit_rows(VECTORS) @ query  # (300,)
    hits = nearest_rows(source, query, k=k)
    assert [hit.row_index for hit in hits] == np.argsort(-scores, kind="stable")[:k].tolist()
    assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:k], atol=1e-6)


def test_nearest_rows_of_equal_scores_come_in_input_order(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, np.tile(random_vectors(1), (40, 1)))
    hits = nearest_rows(open_source(plan), unit_rows(random_vectors(1))[0], k=7)
    assert [hit.row_index for hit in hits] == list(range(7))


def test_search_like_leaves_the_row_itself_out(source: VectorSource) -> None:
    hits = search_like(source, "docs/train/42", k=3)
    scores = unit_rows(VECTORS) @ unit_rows(VECTORS)[42]
    assert [hit.row_index for hit in hits] == np.argsort(-scores)[1:4].tolist()
    assert hits[0].text == f"text {hits[0].row_index} of train"


def test_find_id_of_a_stranger_shows_what_ids_look_like(source: VectorSource) -> None:
    assert find_id(source, "docs/train/299") == 299
    with pytest.raises(InputError, match=r"Unknown id: --like nobody; .*look like docs/train/0"):
        find_id(source, "nobody")


@pytest.mark.parametrize("k", [0, -1, 10_001])
def test_search_of_too_few_or_too_many_is_refused(source: VectorSource, k: int) -> None:
    with pytest.raises(InputError, match=f"Out of range: -k {k}; 1 to 10,000"):
        search_like(source, "docs/train/1", k=k)


def test_search_of_vectors_of_one_number_is_refused(tmp_path: Path) -> None:
    one = open_source(vector_run(tmp_path, random_vectors(20, 1)))
    with pytest.raises(InputError, match="No directions: embedding_dim=1"):
        search_like(one, "docs/train/1", k=1)


def test_search_with_a_model_that_was_exchanged_is_refused(source: VectorSource) -> None:
    def embed(plan: Plan, asked: Sequence[str], prompt: str | None) -> tuple[FloatArray, list[str]]:
        return np.ones((len(asked), 5), np.float32), []

    with pytest.raises(ModelError, match="Another model: it gives 5 numbers, the run has 12"):
        search_text(source, "x", k=1, embed=embed)


def test_search_at_an_address_with_a_model_of_this_machine_is_refused(source: VectorSource) -> None:
    with pytest.raises(InputError, match=r"No endpoint: --base-url; kind=embed of .* Leave"):
        search_text(source, "x", k=1, base_url="http://localhost:8000/v1")


def test_query_encoder_of_a_kind_without_one_points_to_like() -> None:
    kind = replace(KINDS["embed"], name="other", package="chatspace.demo")
    with pytest.raises(InputError, match=r"No search by text: kind=other; .*--like"):
        kind.query_encoder()


def test_search_without_stored_text_has_none(tmp_path: Path) -> None:
    plan = vector_run(tmp_path, random_vectors(20), keep_text=False)
    (hit,) = search_like(open_source(plan), "docs/train/1", k=1)
    assert hit.text is None and "text" not in hit.to_json()


# With a real model


def embedded(spec_maker: SpecMaker, **sections: object) -> Plan:
    plan = set_up(spec_maker(**sections)).plan
    path = Layout(Path(plan.workspace)).run(plan.run_id).plan
    for split in plan.splits:
        for slice_ in split.slices:
            run_task(path, split.name, slice_.index)
    gather_run(plan)
    return plan


@pytest.mark.parametrize(
    ("output", "least"),
    [
        ({"dtype": "float32"}, 0.99999),
        ({"dtype": "float16"}, 0.99999),
        ({"dtype": "int8"}, 0.999),
        ({"dtype": "binary"}, 0.7),
        ({"dtype": "int8", "truncate_dim": 24}, 0.999),
    ],
)
def test_search_text_finds_the_row_with_that_text(
    make_spec: SpecMaker, output: dict[str, object], least: float
) -> None:
    plan = embedded(make_spec, dataset={"max_rows": 60}, output={"rows_per_shard": 16, **output})
    text = texts(60)[17]
    hits, notes = search_text(open_source(plan), text, k=3)
    assert hits[0].text == text and hits[0].score > least
    assert notes == [] and hits[0].score >= hits[1].score >= hits[2].score
    assert Run(plan).vectors().shape == (60, output.get("truncate_dim", 64))


def test_search_and_export_of_a_run_of_chunks_tell_chunks_apart(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    import lancedb

    model = {"long_text": "chunk", "chunk_tokens": 24, "document_vector": True}
    plan = embedded(make_spec, dataset={"max_rows": 30}, model=model, output={"rows_per_shard": 8})
    source = open_source(plan)
    assert source.rows == Run(plan).manifest()["chunks"] > 30
    rows = source.rows_at(np.arange(source.rows), ["id", "text", "row_index", "chunk_index"])
    later = next(row for row in rows.to_pylist() if row["chunk_index"] == 1)
    (hit,) = search_text(source, later["text"], k=1)[0]
    assert (hit.text, hit.score) == (later["text"], pytest.approx(1, abs=1e-5))
    for to in ("numpy", "datasets", "lancedb"):
        Export(to=to, out=tmp_path / to).write(source)
    lance = lancedb.connect(tmp_path / "lancedb").open_table("vectors").to_arrow()
    assert lance["document_vector"].null_count == source.rows - 30
    ids = pq.read_table(tmp_path / "numpy" / "ids.parquet")
    assert ids["chunk_index"].to_pylist() == rows["chunk_index"].to_pylist()


def test_search_text_with_a_prompt_puts_it_before_the_text(make_spec: SpecMaker) -> None:
    plan = embedded(make_spec, dataset={"max_rows": 20})
    source, text = open_source(plan), texts(20)[3]
    plain, prompted = (
        search_text(source, text, k=1, prompt_name=name)[0][0] for name in (None, "query")
    )
    assert plain.score > 0.99999 > prompted.score
    with pytest.raises(ModelError, match=r"Unknown prompt: .*known: document, query"):
        search_text(source, text, k=1, prompt_name="qury")
    with pytest.raises(InputError, match="Nothing to search for"):
        search_text(source, "  \n", k=1)
    notes = search_text(source, "word " * 500, k=1)[1]
    assert notes == ["Text cut to 128 tokens, the limit of the model."]
    config = Path(plan.model["path"]) / "config_sentence_transformers.json"
    before = config.read_text()
    try:
        config.write_text(before + "\n")
        (note,) = search_text(source, text, k=1)[1]
    finally:
        config.write_text(before)
    assert note.endswith("are not those that made this run: scores may mean nothing.")
