import json
import os
from pathlib import Path

import pytest

from chatspace.errors import ModelError
from chatspace.hf_embed.resolve import (
    HASH_EDGE_BYTES,
    HASH_WHOLE_BYTES,
    embedding_dim,
    fingerprint_files,
    local_folder,
    resolve_model,
)
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.spec.loading import spec_from_mapping


def spec_of(name: str, **model: str | int) -> EmbedSpec:
    values = {
        "kind": "embed",
        "name": "test",
        "dataset": {"source": "parquet", "path": "/data"},
        "model": {"name": name, **model},
    }
    spec = spec_from_mapping(values, "test")
    assert isinstance(spec, EmbedSpec)
    return spec


def saved_model(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_resolve_model_hub_name_is_known_by_name_and_revision() -> None:
    assert resolve_model(spec_of("org/model", revision="abc")) == {
        "name": "org/model",
        "label": "org__model",
        "path": None,
        "revision": "abc",
        "fingerprint": {"hub": "org/model", "revision": "abc"},
    }


def test_resolve_model_folder_is_known_by_its_files(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "my model")
    found = resolve_model(spec_of(str(folder)))
    assert (found["label"], found["path"], found["embedding_dim"]) == ("my model", str(folder), 64)
    assert set(found["fingerprint"]["files"]) == {"config.json", "model.safetensors"}
    copy = resolve_model(spec_of(str(saved_model(tmp_path / "copy"))))
    assert copy["fingerprint"] == found["fingerprint"]


def test_resolve_model_relative_folders_have_real_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    assert resolve_model(spec_of("."))["label"] == "tiny"
    assert resolve_model(spec_of("./"))["label"] == "tiny"
    monkeypatch.chdir(tmp_path / "tiny" / "inner")
    assert resolve_model(spec_of(".."))["label"] == "tiny"
    monkeypatch.chdir(tmp_path)
    assert resolve_model(spec_of("tiny"))["path"] == str(tmp_path / "tiny")


def test_local_folder_tells_folders_from_hub_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELS", "/models")
    assert local_folder("org/model") is None
    assert local_folder("all-MiniLM-L6-v2") is None
    assert local_folder("./model") == tmp_path / "model"
    assert local_folder("$MODELS/tiny") == Path("/models/tiny")
    assert local_folder("~/tiny") == Path.home() / "tiny"
    assert local_folder("a/b/c") == tmp_path / "a/b/c"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert local_folder("org/model") == tmp_path / "org/model"


@pytest.mark.parametrize(("make", "state"), [(True, "holds no config.json"), (False, "not exist")])
def test_resolve_model_folder_without_a_model_is_refused(
    tmp_path: Path, make: bool, state: str
) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    with pytest.raises(ModelError, match=state) as caught:
        resolve_model(spec_of(str(folder)))
    assert "\n" not in str(caught.value)


def test_fingerprint_files_any_change_of_what_is_loaded_shows(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "tiny")
    seen = [fingerprint_files(folder)]
    (folder / "README.md").write_text("not loaded")
    (folder / ".cache.json").write_text("{}")
    assert fingerprint_files(folder) == seen[0]
    for name in ("tokenizer.json", "1_Pooling/config.json", "modeling_tiny.py", "vocab.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        seen.append(fingerprint_files(folder))
    (folder / "model.safetensors").write_bytes(b"Weights")
    seen.append(fingerprint_files(folder))
    assert len({json.dumps(s) for s in seen}) == len(seen)


def test_fingerprint_files_large_weights_by_size_and_edges(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "large")
    path = folder / "model.safetensors"
    size = HASH_WHOLE_BYTES + HASH_EDGE_BYTES
    seen = []
    for size_, position in ((size, None), (size + 1, None), (size, 0), (size, size - 1)):
        path.write_bytes(b"")
        os.truncate(path, size_)  # sparse: costs no disk
        if position is not None:
            with path.open("rb+") as file:
                file.seek(position)
                file.write(b"x")
        seen.append(fingerprint_files(folder)["model.safetensors"])
    assert len(set(seen)) == 4
    assert seen[0].startswith(f"{size}:")


def test_embedding_dim_last_dense_layer_then_hidden_size_then_unknown(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "tiny")
    assert embedding_dim(folder) == 64
    for name, features in (("2_Dense", 32), ("3_Dense", 16)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"out_features": features}))
    assert embedding_dim(folder) == 16
    assert embedding_dim(tmp_path) is None
    (tmp_path / "config.json").write_text("{torn")
    assert embedding_dim(tmp_path) is None
