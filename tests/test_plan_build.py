import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.data.inputs import InputFile
from chatspace.data.sources import dataset_label
from chatspace.errors import ChatspaceError, InputError, OutputError, SpecError, UserError
from chatspace.layout import Layout
from chatspace.plan.build import build_plan
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan, save_plan
from chatspace.shards.records import Owner
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.loading import spec_from_mapping
from tests.conftest import texts, write_parquet
from tests.shards import STRANGER, commit, store_at

Planner = Callable[..., Plan]


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    """Returns a planner of 300 rows; sections given as keywords are merged over the defaults."""
    write_parquet(tmp_path / "docs" / "train.parquet", {"text": texts(300)})
    model_folder(tmp_path / "tiny")

    def make(**sections: Any) -> Plan:
        values: dict[str, Any] = {
            "kind": "embed",
            "name": "test",
            "workspace": str(tmp_path / "ws"),
            "dataset": {"source": "parquet", "path": str(tmp_path / "docs")},
            "model": {"name": str(tmp_path / "tiny")},
            "output": {"rows_per_shard": 32},
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        spec = spec_from_mapping(values, "test")
        return build_plan(spec, resolve_cluster(spec), spec_path=None, note=lambda _: None)

    return make


def test_build_plan_says_what_is_there(plan: Planner, tmp_path: Path) -> None:
    made = plan(slices={"count": 3})
    (split,) = made.splits
    assert (split.name, split.dataset, split.rows, split.n_shards) == ("train", "docs", 300, 10)
    assert split.output_dir == "embeddings/tiny/docs/train"
    assert split.manifest == "indexes/tiny/docs/train/manifest.json"
    assert [s.index for s in split.slices] == [0, 1, 2]
    assert split.text_bytes == sum(s.text_bytes for s in split.slices)
    assert split.files[0].path == str(tmp_path / "docs" / "train.parquet")
    assert made.run_id == f"test-{made.plan_sha256[:8]}"
    assert made.model["embedding_dim"] == 64
    assert not (tmp_path / "ws").exists()


def test_build_plan_survives_its_file(plan: Planner, tmp_path: Path) -> None:
    made = plan()
    path = Layout(tmp_path / "ws").run(made.run_id).plan
    save_plan(made, path)
    assert json.dumps(asdict(load_plan(path))) == json.dumps(asdict(made))
    assert load_plan(path).splits == made.splits


@pytest.mark.parametrize(
    "sections",
    [
        {"slices": {"count": 4}},
        {"slices": {"rows_per_slice": 50, "balance": "rows"}},
        {"slurm": {"time": "3-00:00:00", "account": "physics", "max_requeues": 3}},
        {"slurm": {"profile": "local"}},
        {"container": {"env": {"A": "b"}}},
        {"encode": {"prefetch_shards": 9}},
    ],
    ids=str,
)
def test_build_plan_other_execution_is_the_same_run(
    plan: Planner, sections: dict[str, Any]
) -> None:
    assert plan(**sections).plan_sha256 == plan().plan_sha256


def test_build_plan_unhashed_value_still_stands_in_the_plan(plan: Planner) -> None:
    assert plan(encode={"prefetch_shards": 9}).spec["encode"]["prefetch_shards"] == 9


def test_build_plan_other_workspace_is_the_same_run(plan: Planner, tmp_path: Path) -> None:
    other = plan(workspace=str(tmp_path / "elsewhere"))
    assert other.plan_sha256 == plan().plan_sha256
    assert other.workspace == str(tmp_path / "elsewhere")


def test_build_plan_same_data_in_another_folder_is_the_same_run(
    plan: Planner, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "docs", tmp_path / "other place" / "docs")  # keeps the times
    moved = plan(dataset={"path": str(tmp_path / "other place" / "docs")})
    assert moved.plan_sha256 == plan().plan_sha256
    assert moved.splits[0].files[0].path != plan().splits[0].files[0].path


@pytest.mark.parametrize(
    "sections",
    [
        {"name": "other"},
        {"seed": 1},
        {"dataset": {"max_rows": 100}},
        {"dataset": {"name": "other"}},
        {"dataset": {"split": "test"}},
        {"model": {"dtype": "float32"}},
        {"model": {"max_tokens": 64}},
        {"model": {"prompt": "query: "}},
        {"encode": {"tokens_per_batch": 512}},
        {"output": {"rows_per_shard": 64}},
        {"output": {"dtype": "float16"}},
        {"output": {"keep_text": False}},
    ],
    ids=str,
)
def test_build_plan_other_science_is_another_run(
    plan: Planner, tmp_path: Path, sections: dict[str, Any]
) -> None:
    shutil.copy2(tmp_path / "docs" / "train.parquet", tmp_path / "docs" / "test.parquet")
    assert plan(**sections).plan_sha256 != plan().plan_sha256


def test_build_plan_changed_data_or_model_is_another_run(plan: Planner, tmp_path: Path) -> None:
    digests = [plan().plan_sha256]
    path = tmp_path / "docs" / "train.parquet"
    os.utime(path, (1_700_000_000, 1_700_000_000))
    digests.append(plan().plan_sha256)
    write_parquet(path, {"text": texts(300, seed=9)})
    os.utime(path, (1_700_000_000, 1_700_000_000))
    digests.append(plan().plan_sha256)
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"Weights")
    digests.append(plan().plan_sha256)
    assert len(set(digests)) == 4


def test_build_plan_jsonl_is_known_by_its_bytes_not_its_time(plan: Planner, tmp_path: Path) -> None:
    path = tmp_path / "lines" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    dataset = {"source": "jsonl", "path": str(path)}
    first = plan(dataset=dataset)
    os.utime(path, (1, 1))
    assert plan(dataset=dataset).plan_sha256 == first.plan_sha256
    path.write_text('{"text": "a"}\n{"text": "c"}\n')
    assert plan(dataset=dataset).plan_sha256 != first.plan_sha256


def test_build_plan_again_keeps_the_time_of_creation(
    plan: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = plan()
    assert first.created_at == "2023-11-14T22:13:20+00:00"
    save_plan(first, Layout(tmp_path / "ws").run(first.run_id).plan)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert plan(slices={"count": 2}).created_at == first.created_at
    assert plan(seed=1).created_at == "2027-01-15T08:00:00+00:00"


@pytest.mark.parametrize("epoch", ["yesterday", "1e9", "9" * 30])
def test_build_plan_wrong_source_date_epoch_is_refused(
    plan: Planner, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(SpecError, match="SOURCE_DATE_EPOCH"):
        plan()


def test_build_plan_shards_of_another_run_are_refused_by_name(
    plan: Planner, tmp_path: Path
) -> None:
    folder = tmp_path / "ws" / "embeddings" / "tiny" / "docs" / "train"
    commit(store_at(folder, STRANGER), 0)
    with pytest.raises(OutputError) as caught:
        plan()
    for name in (f"{folder}/shard-00000.parquet", STRANGER.run_id, "test-", "move"):
        assert name in str(caught.value)
    shutil.rmtree(folder)
    plan()


def test_build_plan_of_a_touched_file_says_how_to_give_its_time_back(
    plan: Planner, tmp_path: Path
) -> None:
    before = plan()
    save_plan(before, Layout(Path(before.workspace)).run(before.run_id).plan)
    owner = Owner(plan_sha256=before.plan_sha256, run_id=before.run_id, split="train")
    commit(store_at(tmp_path / "ws" / before.splits[0].output_dir, owner), 0)
    file = Path(before.splits[0].files[0].path)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    with pytest.raises(OutputError, match=r"Only a file's time differs; .* makes it") as caught:
        plan()
    (command,) = re.findall(r"touch -d \S+ \S+", str(caught.value))
    subprocess.run(shlex.split(command), check=True, timeout=10)
    assert plan().run_id == before.run_id
    write_parquet(file, {"text": texts(301)})
    with pytest.raises(OutputError, match=r"Choose another workspace or dataset\.name"):
        plan()


def test_build_plan_manifest_of_another_run_is_refused_by_name(
    plan: Planner, tmp_path: Path
) -> None:
    path = tmp_path / "ws" / plan().splits[0].manifest
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"plan_sha256": "b" * 64, "run_id": "docs-bbbbbbbb"}))
    with pytest.raises(OutputError, match=r"manifest.json belongs to run docs-bbbbbbbb"):
        plan()
    path.write_text(json.dumps({"plan_sha256": plan_sha256_of(plan, tmp_path)}))
    plan()


def plan_sha256_of(plan: Planner, tmp_path: Path) -> str:
    return plan(workspace=str(tmp_path / "elsewhere")).plan_sha256


def test_build_plan_duplicate_ids_are_refused_with_nothing_written(
    plan: Planner, tmp_path: Path
) -> None:
    columns = {"text": ["a", "b", "c"], "key": ["x", "y", "x"]}
    data = write_parquet(tmp_path / "ids.parquet", columns)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="Duplicate id"):
        plan(dataset={"path": str(data), "id_field": "key"})
    assert sorted(tmp_path.rglob("*")) == before
    assert plan(dataset={"path": str(data), "id_field": "key", "max_rows": 2}).splits[0].rows == 2


def test_build_plan_duplicate_ids_of_csv_are_refused_with_nothing_written(
    plan: Planner, tmp_path: Path
) -> None:
    data = tmp_path / "ids.csv"
    data.write_text("text,key\na,x\nb,y\nc,x\n")
    before = sorted(tmp_path.rglob("*"))
    dataset = {"source": "csv", "path": str(data), "id_field": "key"}
    with pytest.raises(InputError, match=r"'x' in .*/ids\.csv:2 and in .*/ids\.csv:4"):
        plan(dataset=dataset)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match=r"output\.keep_columns='body'; .*/ids\.csv has text, key"):
        plan(dataset={**dataset, "id_field": None}, output={"keep_columns": ["body"]})
    assert sorted(tmp_path.rglob("*")) == before
    assert plan(dataset={**dataset, "max_rows": 2}).splits[0].rows == 2


def test_build_plan_ids_of_a_planned_run_are_not_read_again(
    plan: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_parquet(tmp_path / "ids.parquet", {"text": ["a", "b"], "key": [1, 2]})
    made = plan(dataset={"path": str(data), "id_field": "key"})
    save_plan(made, Layout(tmp_path / "ws").run(made.run_id).plan)
    monkeypatch.delattr("chatspace.plan.build.check_unique_ids")
    plan(dataset={"path": str(data), "id_field": "key"})


def test_build_plan_two_splits_are_two_arrays(plan: Planner, tmp_path: Path) -> None:
    write_parquet(tmp_path / "docs" / "test.parquet", {"text": texts(50)})
    made = plan(dataset={"splits": ["train", "test"]}, slices={"count": 2})
    assert [(s.name, s.rows, len(s.slices)) for s in made.splits] == [
        ("train", 300, 2),
        ("test", 50, 2),
    ]
    assert len({s.output_dir for s in made.splits}) == 2
    assert made.split("test").files[0].path.endswith("docs/test.parquet")


@pytest.mark.parametrize(
    "dataset",
    [
        {"splits": ["a/b", "a__b"]},
        {"splits": ["train", "train"]},
        {"split": ".."},
        {"split": ""},
        {"name": ".."},
        {"path": ""},
    ],
    ids=str,
)
def test_build_plan_names_that_are_no_folders_of_their_own_are_refused(
    plan: Planner, dataset: dict[str, Any]
) -> None:
    with pytest.raises(SpecError):
        plan(dataset=dataset)


def test_build_plan_max_rows_lists_only_the_files_needed(plan: Planner, tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "docs" / f"train-{number}.parquet"
        write_parquet(path, {"text": texts(100)})
    (tmp_path / "docs" / "train.parquet").unlink()
    (split,) = plan(dataset={"max_rows": 150}).splits
    assert [Path(f.path).name for f in split.files] == ["train-0.parquet", "train-1.parquet"]
    assert (split.rows, split.n_shards) == (150, 5)
    assert split.span(4).row_stop == 150


@pytest.mark.parametrize(
    ("section", "label"),
    [
        ({"source": "parquet", "path": "/data/docs"}, "docs"),
        ({"source": "parquet", "path": "/data/docs/"}, "docs"),
        ({"source": "parquet", "path": "/data/docs.parquet"}, "docs"),
        ({"source": "jsonl", "path": "/data/docs.jsonl.gz"}, "docs"),
        ({"source": "parquet", "path": "/data/docs.v2"}, "docs.v2"),
        ({"source": "parquet", "path": "/data/docs/*.parquet"}, "docs"),
        ({"source": "parquet", "path": "/data/docs/**/part-*.parquet"}, "docs"),
        ({"source": "parquet", "path": "/data/docs/{split}.parquet"}, "docs"),
        ({"source": "parquet", "path": "/data/docs/{split}/part.parquet"}, "part"),
        ({"source": "parquet", "path": "/data/docs-[0-9].parquet"}, "data"),
        ({"source": "parquet", "path": "$SCRATCH/docs"}, "docs"),
        ({"source": "parquet", "path": "~/docs"}, "docs"),
        ({"source": "parquet", "path": "$SCRATCH"}, "dataset"),
        ({"source": "parquet", "path": "../docs"}, "docs"),
        ({"source": "parquet", "path": ".."}, "dataset"),
        ({"source": "parquet", "path": "*.parquet"}, "dataset"),
        ({"source": "parquet", "path": "/a b/ü 'x'"}, "ü 'x'"),
        ({"source": "parquet", "path": "/data", "name": "org/docs"}, "org__docs"),
        ({"source": "huggingface", "name": "org/docs"}, "org__docs"),
        ({"source": "huggingface", "name": "org/docs", "subset": "en/x"}, "org__docs__en__x"),
    ],
    ids=str,
)
def test_dataset_label_is_one_folder_name(section: dict[str, Any], label: str) -> None:
    assert dataset_label(DatasetSection.model_validate(section)) == label


@pytest.mark.parametrize("place", ["a file", "/proc/chatspace", "/dev/null/x"])
def test_build_plan_workspace_not_writable_says_how_to_choose_another(
    plan: Planner, tmp_path: Path, place: str
) -> None:
    (tmp_path / "a file").touch()
    root = tmp_path / place if place == "a file" else Path(place)
    with pytest.raises(OutputError) as caught:
        plan(workspace=str(root))
    for advice in (str(root), "workspace:", "--set workspace=DIR", "CHATSPACE_WORKSPACE"):
        assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"dataset": {"path": "/no/such/folder"}},
        {"dataset": {"text_field": "body"}},
        {"dataset": {"split": "dev", "splits": None, "path": "{root}/nothing"}},
        {"model": {"name": "/no/such/model"}},
        {"output": {"keep_columns": ["body"]}},
    ],
    ids=str,
)
def test_build_plan_wrong_input_is_one_line_with_nothing_written(
    plan: Planner, tmp_path: Path, sections: dict[str, Any]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        plan(**sections)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def many_files(folder: Path, files: int, rows: int) -> Path:
    """Writes files whose footers tell of many rows, all of one text: a few bytes each."""
    folder.mkdir(parents=True)
    row_group = pa.table({"text": pa.repeat("the same text", rows)}).combine_chunks()
    first = folder / "train-00000.parquet"
    pq.write_table(row_group, first, row_group_size=rows)
    for number in range(1, files):
        os.link(first, folder / f"train-{number:05d}.parquet")
    return folder


def test_build_plan_thousand_files_of_hundred_million_rows(plan: Planner, tmp_path: Path) -> None:
    data = many_files(tmp_path / "many", files=1000, rows=100_000)
    (split,) = plan(
        dataset={"path": str(data)}, output={"rows_per_shard": 8192}, slices={"count": 512}
    ).splits
    assert (split.rows, split.n_shards, len(split.slices)) == (100_000_000, 12_208, 512)
    assert len(split.files) == 1000
    assert isinstance(split.files[0], InputFile)


def test_build_plan_errors_are_all_of_the_tree(plan: Planner) -> None:
    with pytest.raises(ChatspaceError):
        plan(slurm={"profile": "no-such-cluster"})
