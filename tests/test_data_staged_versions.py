"""What was staged once is there for the plans that name it, whatever is staged after."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chatspace.data.download import download
from chatspace.data.inputs import InputFile
from chatspace.data.sources import find_files
from chatspace.data.staged_split import StagedSplit
from chatspace.data.staging import stage_split
from chatspace.errors import InputError, UnfitEnvironmentError
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.plan.build import build_plan
from chatspace.plan.model import Plan
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.dataset import DatasetSection
from tests.test_data_staging_together import served

Write = Callable[[Path, list[dict[str, Any]]], None]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def stage(source: str, path: object, workspace: Path, **dataset: Any) -> StagedSplit:
    values = {"source": source, "path": str(path), **dataset}
    return stage_split(DatasetSection.model_validate(values), "train", workspace, "x")


def texts(staged: StagedSplit) -> list[str]:
    return [text for file in staged.files for text in pq.read_table(file)["text"].to_pylist()]


def marks(staged: StagedSplit) -> list[tuple[int, int]]:
    """What changes when somebody writes a file anew."""
    return [(file.stat().st_ino, file.stat().st_mtime_ns) for file in staged.files]


def planned(folder: Path, model: Path, **dataset: Any) -> Plan:
    spec = EmbedSpec.model_validate(
        {
            "kind": "embed",
            "name": "x",
            "workspace": str(folder / "ws"),
            "dataset": {"path": str(folder / "in"), **dataset},
            "model": {"name": str(model)},
        }
    )
    return build_plan(spec, resolve_cluster(spec), spec_path=None, note=lambda _: None)


def is_there(file: InputFile) -> bool:
    """Whether a task would take the file for the one that was planned."""
    stat = Path(file.path).stat()
    return (stat.st_size, stat.st_mtime_ns) == (file.bytes, file.mtime_ns)


@pytest.mark.parametrize("change", ["unit", "source"])
def test_build_plan_of_changed_content_leaves_the_input_of_a_queued_run(
    tmp_path: Path, tiny_model: Path, change: str
) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "train.txt"
    source.write_text("one\ntwo\n\nthree\n")
    queued = planned(tmp_path, tiny_model, source="text")
    assert queued.splits[0].rows == 4
    if change == "source":
        source.write_text("one\ntwo\nthree\nfour\nfive\n")
    unit = "paragraph" if change == "unit" else "line"
    later = planned(tmp_path, tiny_model, source="text", text_unit=unit)
    assert later.splits[0].rows == (2 if change == "unit" else 5)
    assert later.run_id != queued.run_id
    assert all(is_there(file) for plan in (queued, later) for file in plan.splits[0].files)
    again = planned(tmp_path, tiny_model, source="text", text_unit=unit)
    assert again.plan_sha256 == later.plan_sha256
    assert again.splits[0].files == later.splits[0].files


def test_stage_unit_of_before_is_found_where_it_was_staged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n")
    units = ("line", "paragraph", "file")
    first = {unit: stage("text", path, tmp_path / "ws", text_unit=unit) for unit in units}
    before = {unit: marks(staged) for unit, staged in first.items()}
    assert [len(texts(staged)) for staged in first.values()] == [4, 2, 1]
    for unit in (*units, *reversed(units)):
        staged = stage("text", path, tmp_path / "ws", text_unit=unit)
        assert (staged, marks(staged)) == (first[unit], before[unit])
    assert len(list((tmp_path / "ws/datasets/processed/x").iterdir())) == len(units)


@pytest.mark.parametrize(("source", "write"), [("parquet", write_parquet), ("jsonl", write_jsonl)])
def test_stage_url_changed_and_changed_back_keeps_both(
    tmp_path: Path, source: str, write: Write
) -> None:
    (tmp_path / "www").mkdir()
    file = tmp_path / "www" / f"a.{source}"
    with served(tmp_path / "www") as url:
        contents = [[{"text": "one"}], [{"text": "two"}, {"text": "three"}]]
        staged, before = [], []
        for second, rows in enumerate(contents):
            write(file, rows)
            os.utime(file, (second, second))  # all that the server tells of a version
            staged.append(stage(source, f"{url}/{file.name}", tmp_path / "ws"))
            before.append(marks(staged[-1]))
        write(file, contents[0])
        os.utime(file, (9, 9))
        assert stage(source, f"{url}/{file.name}", tmp_path / "ws") == staged[0]
    assert [texts(item) for item in staged] == [["one"], ["two", "three"]]
    assert [marks(item) for item in staged] == before
    # Out of reach, what was used last is what there is.
    assert stage(source, f"{url}/{file.name}", tmp_path / "ws") == staged[0]
    with pytest.raises(UnfitEnvironmentError):
        stage(source, f"{url}/other.{source}", tmp_path / "ws")
    assert not list((tmp_path / "ws").rglob("*.partial"))


def test_stage_same_content_from_a_server_without_versions_is_not_written_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "www").mkdir()
    file = tmp_path / "www" / "a.parquet"
    write_parquet(file, [{"text": "one"}])
    with served(tmp_path / "www") as url:
        first = stage("parquet", f"{url}/a.parquet", tmp_path / "ws")
        before = marks(first)
        os.utime(file, (1, 1))  # another time, and so another version, of the same bytes
        assert stage("parquet", f"{url}/a.parquet", tmp_path / "ws") == first
    assert marks(first) == before


def test_download_of_changed_content_names_a_path_that_a_spec_reads(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    file = tmp_path / "www" / "a.parquet"
    with served(tmp_path / "www") as url:
        section = DatasetSection(source="parquet", path=f"{url}/a.parquet", name="x")
        for second, rows in enumerate(([{"text": "one"}], [{"text": "two"}])):
            write_parquet(file, rows)
            os.utime(file, (second, second))
            done = download(section, tmp_path / "ws", lambda _: None)
            assert done.is_new
            found = find_files(DatasetSection(source="parquet", path=done.path), "train")
            assert [pq.read_table(path).to_pylist() for path in found] == [rows]
    assert done.path.rpartition("/")[2].startswith("{split}@")


@pytest.mark.parametrize("picks", [{"sample": {"n": 4}}, {"skip_rows": 1}, {"where": "n > 0"}])
def test_build_plan_duplicate_id_among_picked_rows_names_the_user_s_line(
    tmp_path: Path, tiny_model: Path, picks: dict[str, Any]
) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"id": i, "n": i, "text": "t"} for i in (0, 1, 2, 1, 4)]
    write_jsonl(tmp_path / "in" / "train.jsonl", rows)
    if "sample" in picks:  # all but one, and it is one that stands once
        picks = {"sample": {"n": 4, "seed": seed_without(0, tmp_path, tiny_model)}}
    with pytest.raises(InputError) as caught:
        planned(tmp_path, tiny_model, source="jsonl", id_field="id", **picks)
    place = tmp_path / "in" / "train.jsonl"
    assert f"in {place}:2 and in {place}:4." in str(caught.value)
    assert "part-00000" not in str(caught.value)


def seed_without(row: int, folder: Path, model: Path) -> int:
    """Returns a seed with which a sample of four of the five rows leaves one out."""
    for seed in range(100):
        plan = planned(folder, model, source="jsonl", sample={"n": 4, "seed": seed})
        selected = plan.splits[0].selected
        assert selected is not None
        assert selected.path is not None
        drawn = pq.read_table(folder / "ws" / selected.path).column(0).to_pylist()
        if row not in drawn:
            return seed
    raise AssertionError
