"""Datasets at URLs, against stores on this machine."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from chatspace.data.sources import dataset_label
from chatspace.data.staged_split import StagedSplit
from chatspace.data.staging import stage_split
from chatspace.errors import ChatspaceError, OutputError, SpecError
from chatspace.spec.dataset import DatasetSection
from tests.stores import (
    arrow_bytes,
    environment,
    gcs_store,
    gzip_bytes,
    jsonl_bytes,
    parquet_bytes,
    s3_store,
    zstd_bytes,
)

ROWS = [{"text": f"row {i}", "n": i} for i in range(7)]
CSV = "text,n\n" + "".join(f"{row['text']},{row['n']}\n" for row in ROWS)


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with s3_store() as system:
        yield system


@pytest.fixture(scope="module")
def google() -> Iterator[Any]:
    with gcs_store() as system:
        yield system


@pytest.fixture
def s3(store: Any) -> Iterator[Any]:
    yield store
    store.rm(store.find("bucket"))


def section(path: str, source: str = "parquet", **dataset: Any) -> DatasetSection:
    return DatasetSection(source=source, path=path, **dataset)


def stage(path: str, workspace: Path, source: str = "parquet", **dataset: Any) -> StagedSplit:
    made = section(path, source, **dataset)
    return stage_split(made, made.split_names[0], workspace, dataset_label(made))


def texts(staged: StagedSplit) -> list[str]:
    return [text for file in staged.files for text in pq.read_table(file)["text"].to_pylist()]


def refused(path: str, workspace: Path, source: str = "parquet", **dataset: Any) -> str:
    with pytest.raises(ChatspaceError) as caught:
        stage(path, workspace, source, **dataset)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (2, 4)
    return f"{caught.value.exit_code.value} {caught.value}"


def test_stage_s3_parquet_folder_is_fetched_once_with_checksums(s3: Any, tmp_path: Path) -> None:
    for i in (10, 9):
        s3.pipe(f"bucket/docs/train-{i}.parquet", parquet_bytes(ROWS[i % 9 :]))
    s3.pipe("bucket/docs/test.parquet", parquet_bytes(ROWS[:1]))
    first = stage("s3://bucket/docs", tmp_path)
    folder = tmp_path / "datasets/raw/s3/docs/train"
    assert first.files == [folder / "train-9.parquet", folder / "train-10.parquet"]
    assert texts(first) == [f"row {i}" for i in (*range(7), *range(1, 7))]
    assert [set(entry) for entry in first.identity] == [{"name", "bytes", "sha256"}] * 2
    record = json.loads((folder / "dataset.json").read_text())
    assert record["features"] == {"text": "string", "n": "int64"}
    assert (record["rows"], record["bytes"]) == (13, sum(f.stat().st_size for f in first.files))
    assert [part["sha256"] for part in record["parts"]] == [e["sha256"] for e in first.identity]
    before = first.files[0].stat()
    assert stage("s3://bucket/docs", tmp_path) == first
    assert first.files[0].stat() == before
    assert stage("s3://bucket/docs", tmp_path / "other").identity == first.identity


@pytest.mark.parametrize(
    ("name", "source", "content"),
    [
        ("a.jsonl", "jsonl", jsonl_bytes(ROWS)),
        ("a.jsonl.gz", "jsonl", gzip_bytes(jsonl_bytes(ROWS))),
        ("a.jsonl.zst", "jsonl", zstd_bytes(jsonl_bytes(ROWS))),
        ("a.csv.zst", "csv", zstd_bytes(CSV.encode())),
        ("a.arrow", "arrow", arrow_bytes(ROWS)),
        ("a.txt", "text", "".join(f"{row['text']}\n" for row in ROWS).encode()),
    ],
)
def test_stage_s3_every_format_is_converted_as_the_local_file_is(
    s3: Any, tmp_path: Path, name: str, source: str, content: bytes
) -> None:
    s3.pipe(f"bucket/x/{name}", content)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_bytes(content)
    staged = stage(f"s3://bucket/x/{name}", tmp_path / "ws", source)
    assert texts(staged) == [row["text"] for row in ROWS]
    assert staged.files == [tmp_path / "ws/datasets/processed/a/train/part-00000.parquet"]
    assert staged.identity == stage(str(tmp_path / "x" / name), tmp_path / "w2", source).identity
    assert stage(f"s3://bucket/x/{name}", tmp_path / "ws", source) == staged
    left = {path.name for path in (tmp_path / "ws/datasets/processed/a").iterdir()}
    assert left == {"train"}


def test_stage_s3_glob_and_split_placeholder(s3: Any, tmp_path: Path) -> None:
    for name in ("a/train/2", "a/train/10", "a/dev/1"):
        s3.pipe(f"bucket/{name}.parquet", parquet_bytes([{"text": name}]))
    pattern = "s3://bucket/a/{split}/*.parquet"
    both = {"splits": ("train", "dev")}
    assert texts(stage(pattern, tmp_path, **both)) == ["a/train/2", "a/train/10"]
    assert texts(stage("s3://bucket/a", tmp_path / "b", split="dev")) == ["a/dev/1"]
    assert "Same files for several splits" in refused("s3://bucket/a/*/*", tmp_path / "c", **both)
    deep = stage("s3://bucket/a/*/*.parquet", tmp_path / "d")
    assert [str(f.relative_to(tmp_path / "d/datasets/raw/s3/a/train")) for f in deep.files] == [
        "dev/1.parquet",
        "train/2.parquet",
        "train/10.parquet",
    ]


def test_stage_s3_folder_saved_by_datasets_keeps_its_order(s3: Any, tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict({"text": [str(i) for i in range(25)]})
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "both", num_shards={"train": 12})
    s3.put(str(tmp_path / "both"), "bucket/both", recursive=True)
    assert texts(stage("s3://bucket/both", tmp_path / "ws", "arrow")) == saved["text"][:]


def test_stage_s3_changed_object_is_fetched_again_and_gives_another_identity(
    s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3.pipe("bucket/a.parquet", parquet_bytes(ROWS))
    first = stage("s3://bucket/a.parquet", tmp_path)
    s3.pipe("bucket/a.parquet", parquet_bytes(ROWS[:2]))
    with caplog.at_level(logging.INFO):
        second = stage("s3://bucket/a.parquet", tmp_path)
    assert len(texts(second)) == 2
    assert second.identity != first.identity
    assert "reason=changed" in caplog.text


def test_stage_s3_one_changed_object_leaves_the_others_where_they_are(
    s3: Any, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        s3.pipe(f"bucket/x/{name}.parquet", parquet_bytes(ROWS))
    first = [file.stat().st_ino for file in stage("s3://bucket/x", tmp_path).files]
    s3.pipe("bucket/x/b.parquet", parquet_bytes(ROWS[:2]))
    s3.pipe("bucket/x/c.parquet", parquet_bytes(ROWS[:1]))
    staged = stage("s3://bucket/x", tmp_path)
    assert [len(pq.read_table(file)) for file in staged.files] == [7, 2, 1]
    assert [
        file.stat().st_ino == inode for file, inode in zip(staged.files, first, strict=False)
    ] == [True, False]
    assert {path.name for path in staged.files[0].parent.iterdir()} == {
        "a.parquet", "b.parquet", "c.parquet", "dataset.json",
    }  # fmt: skip
    assert len(pq.read_table(tmp_path / "datasets/raw/s3/x/train/b.parquet")) == 7
    s3.rm("bucket/x/a.parquet")
    assert [file.name for file in stage("s3://bucket/x", tmp_path).files] == [
        "b.parquet",
        "c.parquet",
    ]


def test_stage_s3_out_of_reach_uses_what_was_staged(s3: Any, tmp_path: Path) -> None:
    s3.pipe("bucket/a.jsonl", jsonl_bytes(ROWS))
    first = stage("s3://bucket/a.jsonl", tmp_path, "jsonl")
    with environment(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1"):
        s3.clear_instance_cache()
        assert stage("s3://bucket/a.jsonl", tmp_path, "jsonl") == first
        assert refused("s3://bucket/b.jsonl", tmp_path, "jsonl").startswith("4 Out of reach: ")
        s3.clear_instance_cache()


def test_stage_s3_another_url_of_the_same_label_is_refused(s3: Any, tmp_path: Path) -> None:
    for name in ("x", "y"):
        s3.pipe(f"bucket/{name}/a.parquet", parquet_bytes(ROWS))
    stage("s3://bucket/x/a.parquet", tmp_path)
    with pytest.raises(OutputError, match="Another dataset of that name"):
        stage("s3://bucket/y/a.parquet", tmp_path)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("s3://no-such-bucket/a", "parquet", "2 No such file or folder: dataset.path='s3://no-su"),
        ("s3://bucket/gone.parquet", "parquet", "2 No such file or folder: "),
        ("s3://bucket/d/*.pq", "parquet", "2 No such file or folder: "),
        ("s3://bucket/dd", "csv", "; bucket has d. Did you mean d?"),
        (
            "s3://bucket/d/x.jsonl.zst",
            "parquet",
            "2 Not a Parquet file: 's3://bucket/d/x.jsonl.zst",
        ),
        ("s3://bucket/d", "csv", "the folder has short.parquet, x.jsonl.gz, x.jsonl.zst, y.json"),
        ("s3://bucket/d", "arrow", "Did you mean source: parquet?"),
        ("s3://bucket/d/short.parquet", "parquet", "2 Truncated or damaged Parquet: 's3://bucket"),
        ("s3://bucket/d/x.jsonl.gz", "jsonl", "2 Damaged gzip: "),
        ("s3://bucket/d/x.jsonl.gz", "jsonl", "It was fetched from 's3://bucket/d/x.jsonl.gz'."),
        ("s3://bucket/d/x.jsonl.zst", "jsonl", "2 Damaged Zstandard: "),
        ("s3://bucket/d/y.jsonl", "jsonl", "2 Compressed: "),
        ("s3://bucket/d/z.parquet", "parquet", "2 Missing column: dataset.text_field='text'; "),
        ("nope://bucket/d", "parquet", "2 Unknown protocol: dataset.path='nope://bucket/d'; known"),
        ("s3://$NOT_SET_X/d", "parquet", "2 Undefined variable: "),
    ],
)
def test_stage_s3_wrong_input_is_one_line(
    s3: Any, tmp_path: Path, path: str, source: str, expected: str
) -> None:
    s3.pipe("bucket/d/short.parquet", parquet_bytes(ROWS)[:-20])
    s3.pipe("bucket/d/x.jsonl.gz", zstd_bytes(jsonl_bytes(ROWS)))
    s3.pipe("bucket/d/x.jsonl.zst", zstd_bytes(jsonl_bytes(ROWS * 50))[:-9])
    s3.pipe("bucket/d/y.jsonl", gzip_bytes(jsonl_bytes(ROWS)))
    s3.pipe("bucket/d/z.parquet", parquet_bytes([{"body": "x"}]))
    assert expected in refused(path, tmp_path, source)
    assert not list(tmp_path.rglob("dataset.json"))


def test_stage_s3_without_permission_says_which_variables_to_set(s3: Any, tmp_path: Path) -> None:
    from moto.core import set_initial_no_auth_action_count

    s3.pipe("bucket/a.parquet", parquet_bytes(ROWS))

    @set_initial_no_auth_action_count(0)
    def look() -> str:
        return refused("s3://bucket/a.parquet", tmp_path)

    message = look()
    assert message.startswith("2 No permission: dataset.path='s3://bucket/a.parquet'; ")
    assert "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID" in message
    with environment(
        AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, HOME=str(tmp_path), AWS_PROFILE=None
    ):
        s3.clear_instance_cache()
        assert "2 No permission: " in refused("s3://bucket/a.parquet", tmp_path)
        s3.clear_instance_cache()


@pytest.mark.parametrize(
    "path",
    [
        "s3://key:hunter2@bucket/a",
        "https://host/a.parquet?X-Amz-Signature=hunter2",
        "https://host/a.parquet?sv=1&sig=hunter2",
        "ftp://me:hunter2@host/a.csv",
    ],
)
def test_dataset_section_url_with_a_secret_is_refused_and_not_shown(path: str) -> None:
    from chatspace.spec.loading import spec_from_mapping

    with pytest.raises(SpecError) as caught:
        spec_from_mapping(
            {
                "kind": "embed",
                "name": "x",
                "dataset": {"source": "parquet", "path": path},
                "model": {"name": "x"},
            },
            "test",
        )
    assert "path holds a password, a signature or a token" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_stage_url_without_its_library_names_the_package(tmp_path: Path) -> None:
    assert refused("abfs://box@account/a", tmp_path).startswith("4 Missing library: ")
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from chatspace.data.remote import find_remote\n"
        "from chatspace.spec.dataset import DatasetSection\n"
        "try: find_remote(DatasetSection(source='parquet', path='s3://bucket/a'), 'train')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == (
        "UnfitEnvironmentError Missing library: dataset.path='s3://bucket/a'; s3:// needs one more "
        "package. Install it: pip install 'chatspace[remote]'.\n"
    )


def test_stage_gs_folder_glob_and_what_is_missing(google: Any, tmp_path: Path) -> None:
    for i in range(3):
        google.pipe(f"bucket/docs/train-{i}.jsonl", jsonl_bytes(ROWS[i : i + 1]))
    staged = stage("gs://bucket/docs", tmp_path, "jsonl")
    assert texts(staged) == ["row 0", "row 1", "row 2"]
    assert stage("gs://bucket/docs", tmp_path, "jsonl") == staged
    google.pipe("bucket/pq/a.parquet", parquet_bytes(ROWS))
    raw = stage("gs://bucket/pq/*.parquet", tmp_path)
    assert raw.files == [tmp_path / "datasets/raw/gs/pq/train/a.parquet"]
    assert refused("gs://nobody/docs", tmp_path).startswith("2 No such file or folder: ")
    assert refused("gs://bucket/nothing", tmp_path).startswith("2 No such file or folder: ")


def test_stage_plan_of_a_url_is_the_same_twice_and_in_every_workspace(
    s3: Any, tmp_path: Path
) -> None:
    from chatspace.plan.build import build_plan
    from chatspace.spec.cluster import resolve_cluster
    from chatspace.spec.loading import spec_from_mapping
    from tests.test_plan_build import model_folder

    s3.pipe("bucket/docs/train.parquet", parquet_bytes(ROWS))
    model_folder(tmp_path / "tiny")

    def plan(workspace: str) -> Any:
        values = {
            "kind": "embed",
            "name": "x",
            "workspace": str(tmp_path / workspace),
            "dataset": {"source": "parquet", "path": "s3://bucket/docs", "id_field": "n"},
            "model": {"name": str(tmp_path / "tiny")},
        }
        spec = spec_from_mapping(values, "test")
        return build_plan(spec, resolve_cluster(spec), spec_path=None, note=lambda _: None)

    first = plan("a")
    assert plan("a").plan_sha256 == plan("b").plan_sha256 == first.plan_sha256
    assert first.splits[0].rows == len(ROWS)
    assert "not-a-real-secret" not in json.dumps(first.spec) + json.dumps(first.cluster)
