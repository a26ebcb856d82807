"""Staging datasets of the hub: the commit, what is asked once, and one line where it fails."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from chatspace.data import hub, staging
from chatspace.data.hub import HubSplit
from chatspace.data.staged_split import StagedSplit
from chatspace.data.staging import stage_split
from chatspace.data.tables import Table
from chatspace.errors import InputError, SpecError, UnfitEnvironmentError
from chatspace.spec.dataset import DatasetSection
from tests.test_data_staging import rows


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


class FakeHub:
    """A hub whose answers are ready; what its clients do with a real one is in test_data_hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, revision: str | None = "a" * 40) -> None:
        self.revision, self.loads = revision, 0
        monkeypatch.setattr(staging, "resolve_revision", lambda dataset: self.revision)
        monkeypatch.setattr(staging, "read_hub", self.read)

    def read(
        self, dataset: DatasetSection, split: str, revision: str | None, home: Path
    ) -> HubSplit:
        self.loads += 1
        batch = pa.RecordBatch.from_pydict({"text": [dataset.name, str(dataset.subset), split]})
        return HubSplit(
            revision=revision, table=Table(schema=batch.schema, batches=lambda: iter([batch]))
        )


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
    with pytest.raises(UnfitEnvironmentError) as caught:
        stage_hub(workspace, name="org/does-not-exist")
    assert str(caught.value).startswith("Hub out of reach: dataset.name='org/does-not-exist'; ")
    assert "\n" not in str(caught.value)


def test_stage_hub_name_of_a_local_folder_is_refused(tmp_path: Path, workspace: Path) -> None:
    with pytest.raises(SpecError, match=r"For local files write source: parquet .* `chatspace"):
        stage_hub(workspace, name=str(tmp_path))
    assert not workspace.exists()


def test_stage_hub_name_that_the_hub_has_not_is_refused(workspace: Path) -> None:
    with pytest.raises(InputError, match=r"Not a name on the hub: .*; names are org/name\. "):
        stage_hub(workspace, name="data/no such folder/x")


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
        "from chatspace.errors import UnfitEnvironmentError\n"
        "from chatspace.spec.dataset import DatasetSection\n"
        f"dataset = DatasetSection(source='huggingface', name='org/x', revision={revision!r})\n"
        "try:\n"
        f"    stage_split(dataset, 'train', Path({str(workspace)!r}), 'x')\n"
        "except UnfitEnvironmentError as error:\n"
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
