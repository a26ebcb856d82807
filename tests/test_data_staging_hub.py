"""Staging datasets of the hub: the commit, what is asked once, and one line where it fails."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from chatspace.data import hub, staging
from chatspace.data.staged_split import StagedSplit
from chatspace.data.staging import stage_split
from chatspace.errors import InputError, SpecError
from chatspace.spec.dataset import DatasetSection
from tests.test_data_staging import rows


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


class FakeHub:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, revision: str | None = "a" * 40) -> None:
        self.revision, self.loads = revision, 0
        monkeypatch.setattr(hub, "resolve_revision", lambda dataset: self.revision)
        monkeypatch.setattr(staging, "resolve_revision", lambda dataset: self.revision)
        monkeypatch.setattr(hub, "_is_in_reach", lambda dataset: True)
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, name: str, subset: str | None, **options: Any) -> datasets.Dataset:
        self.loads += 1
        return datasets.Dataset.from_dict({"text": [name, str(subset), options["split"]]})


def stage_hub(workspace: Path, **dataset: Any) -> StagedSplit:
    section = DatasetSection(**{"source": "huggingface", "name": "org/x", **dataset})
    return stage_split(section, "train", workspace, "org__x")


def test_stage_hub_pins_the_commit_and_stages_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(monkeypatch)
    first = stage_hub(workspace, subset="s")
    assert first.revision == "a" * 40
    assert first.identity == [
        {"name": "org/x", "subset": "s", "split": "train", "revision": "a" * 40}
    ]
    assert [row["text"] for row in rows(first)] == ["org/x", "s", "train"]
    assert stage_hub(workspace, subset="s") == first
    fake.revision = None  # out of reach
    assert stage_hub(workspace, subset="s") == first
    assert fake.loads == 1
    fake.revision = "b" * 40
    assert stage_hub(workspace, subset="s").revision == "b" * 40
    assert fake.loads == 2


def test_stage_hub_out_of_reach_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        stage_hub(workspace, name="org/does-not-exist")
    assert str(caught.value).startswith("Hub out of reach: dataset.name='org/does-not-exist'; ")
    assert "\n" not in str(caught.value)


def test_stage_hub_unknown_split_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ValueError("Unknown split \"train\". Should be one of ['test'].\nmore")

    FakeHub(monkeypatch)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=r"Cannot load: .*split train; Unknown split") as caught:
        stage_hub(workspace)
    assert "\n" not in str(caught.value)


def test_stage_hub_name_of_a_local_folder_is_refused(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch)
    with pytest.raises(SpecError, match="For local files write source: parquet"):
        stage_hub(workspace, name=str(tmp_path))


def test_resolve_revision_full_commit_needs_no_hub() -> None:
    section = DatasetSection(source="huggingface", name="org/x", revision="c" * 40)
    assert hub.resolve_revision(section) == "c" * 40


def test_stage_hub_duplicate_id_names_the_dataset(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeHub(monkeypatch)
    with pytest.raises(InputError, match=r"row 0 of 'train', split train and in row 2"):
        stage_hub(workspace, name="train", id_field="text")
    assert not workspace.exists()


@pytest.mark.parametrize("revision", [None, "main", "c" * 40])
def test_stage_hub_without_network_fails_soon_and_quietly(
    tmp_path: Path, workspace: Path, revision: str | None
) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chatspace.data.staging import stage_split\n"
        "from chatspace.errors import InputError\n"
        "from chatspace.spec.dataset import DatasetSection\n"
        f"dataset = DatasetSection(source='huggingface', name='org/x', revision={revision!r})\n"
        "try:\n"
        f"    stage_split(dataset, 'train', Path({str(workspace)!r}), 'x')\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**env, **variables}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert time.monotonic() - started < 15
    assert done.stderr == ""
    assert done.stdout.startswith("Hub out of reach: dataset.name='org/x'; ")
    assert done.stdout.count("\n") == 1
    assert not workspace.exists()
