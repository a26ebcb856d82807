"""A limit that the model cannot have is refused when a run is planned, as its task would do it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import ModelError
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.resolve import resolve_model
from chatspace.hf_embed.room import refuse_impossible_limit
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from tests.conftest import SpecMaker
from tests.test_hf_embed_resolve import saved_model, spec_of

PROMPT = "search query: "


def said_by(refuses: Any) -> str | None:
    try:
        refuses()
    except ModelError as error:
        return str(error)
    return None


def loaded_and_closed(section: ModelSection) -> None:
    load_encoder(section, EncodeSection(batching="buckets"), path=section.name).close()


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_limit_is_refused_with_the_words_of_the_task_and_only_where_it_refuses(
    tiny_model: Path, prompt: str | None
) -> None:
    refused = []
    for limit in (2, 3, 8, 9, 128, 10**6):
        section = ModelSection(name=str(tiny_model), max_tokens=limit, prompt=prompt)
        early = said_by(partial(refuse_impossible_limit, section, tiny_model))
        assert early == said_by(partial(loaded_and_closed, section)), limit
        refused += [limit] if early else []
    assert {2, 10**6} <= set(refused) and 128 not in refused


def test_limit_of_a_tokenizer_that_pads_is_no_larger(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer.json"
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding": padding}))
    section = ModelSection(name="m", max_tokens=3, prompt="a")
    said = said_by(partial(refuse_impossible_limit, section, folder))
    assert said == said_by(partial(refuse_impossible_limit, section, tiny_model))


def test_chunk_tokens_that_are_impossible_are_refused_by_setup_without_torch(
    make_spec: SpecMaker, tiny_model: Path
) -> None:
    spec = make_spec(model={"long_text": "chunk", "chunk_tokens": 2})
    code = f"""
import sys
from chatspace.errors import ModelError
from chatspace.jobs.setup import plan_run
from chatspace.spec.loading import spec_from_mapping
values = {spec.model_dump(mode="json", exclude_unset=True)!r}
for limit in (2, 10**6):
    values["model"]["chunk_tokens"] = limit
    try:
        plan_run(spec_from_mapping(values, "test"))
    except ModelError as error:
        print(error)
print({{"torch", "transformers", "sentence_transformers"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    small, large, heavy = done.stdout.splitlines()
    assert small.startswith("No room for text: the limit is 2 tokens; prompt and special tokens")
    assert large.startswith("Too many tokens: model.chunk_tokens=1000000; the model has ")
    assert heavy == "set()"


@pytest.mark.parametrize(
    "model", [{"tokenizer_kwargs": {"add_bos": False}}, {"prompt_name": "no such prompt"}]
)
def test_limit_is_left_to_the_task_where_files_do_not_decide(
    tiny_model: Path, model: dict[str, Any]
) -> None:
    section = ModelSection(name=str(tiny_model), max_tokens=1, **model)
    refuse_impossible_limit(section, tiny_model)


def test_positions_that_the_spec_changes_are_left_to_the_task(tiny_model: Path) -> None:
    settings = {"max_position_embeddings": 10**7}
    section = ModelSection(name=str(tiny_model), max_tokens=10**6, model_kwargs=settings)
    refuse_impossible_limit(section, tiny_model)


@pytest.mark.parametrize("damage", ["tokenizer.json", "modules.json", "config.json"])
def test_damaged_or_missing_files_refuse_nothing(
    tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for content in (b"\x00{", b"{}", b"[1]"):
        (folder / damage).write_bytes(content)
        limit = 10**6 if damage == "config.json" else 1
        refuse_impossible_limit(ModelSection(name="m", max_tokens=limit), folder)


def test_model_whose_first_module_is_no_transformer_is_left_to_the_task(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "static", max_position_embeddings=8)
    static = [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]
    (folder / "modules.json").write_text(json.dumps(static))
    resolve_model(spec_of(str(folder), max_tokens=9))
    (folder / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"max_tokens=9; the model has 8 positions"):
        resolve_model(spec_of(str(folder), max_tokens=9))


def test_transformer_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    saved_model(folder / "0_Transformer", max_position_embeddings=8)
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="the model has 8 positions"):
        resolve_model(spec_of(str(folder), max_tokens=9))
