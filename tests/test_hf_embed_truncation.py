from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from chatspace.errors import ModelError, SpecError
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.resolve import refuse_too_long_cut
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.truncation import truncate
from chatspace.jobs.gather import gather_run
from chatspace.jobs.setup import estimated_bytes, set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.run import Run
from chatspace.shards.vectors import quantised
from tests.conftest import SpecMaker, texts
from tests.vector_runs import random_vectors


@pytest.mark.parametrize("normalize", [None, False])
def test_truncated_vectors_are_those_of_sentence_transformers(
    tiny_model: Path, normalize: bool | None
) -> None:
    from sentence_transformers import SentenceTransformer

    section = ModelSection(name=str(tiny_model), dtype="float32", device="cpu")
    encoder = load_encoder(section, EncodeSection(normalize=normalize), path=str(tiny_model))
    truncate(encoder, 24)
    found = encoder.embed(texts(20))
    encoder.close()
    library = SentenceTransformer(str(tiny_model), device="cpu")
    if normalize is False:
        library = SentenceTransformer(modules=list(library)[:-1], device="cpu")
    expected = library.encode(
        texts(20), truncate_dim=24, normalize_embeddings=normalize is None, prompt=""
    )
    assert found.shape == (20, 24) and encoder.runtime["embedding_dim"] == 24
    assert np.allclose(found, expected, atol=1e-5)
    has_unit_length = np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert has_unit_length == (normalize is None)


def test_binary_is_what_sentence_transformers_calls_ubinary() -> None:
    from sentence_transformers.util import quantize_embeddings

    vectors = random_vectors(20, 64)
    expected = quantize_embeddings(vectors, precision="ubinary")
    assert np.array_equal(quantised(vectors, "binary")[0], expected)


def test_truncate_dim_above_the_models_is_refused_when_planned(make_spec: SpecMaker) -> None:
    with pytest.raises(ModelError, match=r"Vectors too short: output.truncate_dim=65; .* 64 num"):
        set_up(make_spec(output={"truncate_dim": 65}))
    with pytest.raises(SpecError, match=r"output\.truncate_dim"):
        make_spec(output={"truncate_dim": 1})
    with pytest.raises(SpecError, match=r"output\.dtype='int4'; .* int8, binary"):
        make_spec(output={"dtype": "int4"})
    refuse_too_long_cut(65, None)  # not known yet: the task will see


def test_truncate_above_the_encoders_is_refused(tiny_model: Path) -> None:
    section = ModelSection(name=str(tiny_model), dtype="float32", device="cpu")
    encoder = load_encoder(section, EncodeSection(), path=str(tiny_model))
    with pytest.raises(ModelError, match="truncate_dim=100; the model gives 64 numbers"):
        truncate(encoder, 100)


def test_hash_covers_dtype_and_cut_and_nothing_of_them_by_default(make_spec: SpecMaker) -> None:
    assert "truncate_dim" not in make_spec().hashed()["output"]
    outputs = ({}, {"dtype": "int8"}, {"dtype": "binary"}, {"truncate_dim": 8})
    hashes = [set_up(make_spec(output=dict(output))).plan.plan_sha256 for output in outputs]
    assert len(set(hashes)) == len(outputs)


def test_estimated_bytes_count_what_is_stored(make_spec: SpecMaker) -> None:
    def estimate(**output: object) -> int:
        size = estimated_bytes(set_up(make_spec(output={"keep_text": False, **output})).plan)
        assert size is not None
        return size

    whole = estimate()
    assert whole - estimate(dtype="float16") == 300 * 128
    assert whole - estimate(dtype="int8") == 300 * (256 - 68)
    assert whole - estimate(dtype="binary") == 300 * (256 - 8)
    assert whole - estimate(truncate_dim=16) == 300 * (256 - 64)


def done(spec_maker: SpecMaker, workspace: Path, count: int, output: dict[str, object]) -> Plan:
    spec = spec_maker(
        workspace=str(workspace),
        dataset={"max_rows": 60},
        output={"rows_per_shard": 16, **output},
        slices={"count": count},
    )
    plan = set_up(spec).plan
    for slice_ in plan.splits[0].slices:
        run_task(Layout(workspace).run(plan.run_id).plan, "train", slice_.index)
    gather_run(plan, verify=True)
    return plan


def digests(plan: Plan) -> list[str]:
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    files = sorted(folder.glob("*.parquet"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.mark.parametrize(
    "output", [{"dtype": "int8", "truncate_dim": 20}, {"dtype": "binary"}], ids=["int8", "binary"]
)
def test_quantised_shards_do_not_depend_on_the_slices(
    make_spec: SpecMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: dict[str, object],
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("CHATSPACE_THREADS", "1")
    one = done(make_spec, tmp_path / "one", 1, output)
    three = done(make_spec, tmp_path / "three", 3, output)
    assert digests(one) == digests(three) and len(digests(one)) == 4
    manifest = Run(one).manifest()
    assert manifest["vectors"]["dim"] == manifest["embedding_dim"] == output.get("truncate_dim", 64)
    assert manifest["min_norm"] == pytest.approx(1, abs=1e-5)
