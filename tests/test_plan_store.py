import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from chatspace.errors import InputError, OutputError
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan, save_plan
from tests.plans import plan_of


def saved(workspace: Path) -> tuple[Plan, Path]:
    plan = plan_of(workspace)
    inside = replace(plan.splits[0].files[0], path=f"{workspace}/datasets/processed/a.parquet")
    split = replace(plan.splits[0], files=(*plan.splits[0].files, inside))
    cluster = {
        **plan.cluster,
        "log_dir": f"{workspace}/logs",
        "input_folders": ["/data/docs", f"{workspace}/datasets/processed"],
        "binds": [f"{workspace}:/mnt", f"{workspace}-other:/mnt2"],
    }
    model = {**plan.model, "name": f"{workspace}/models/tiny", "path": f"{workspace}/models/tiny"}
    cluster = json.loads(json.dumps(cluster))  # lists for tuples
    plan = replace(plan, splits=(split,), cluster=cluster, model=model)
    path = Layout(workspace).run(plan.run_id).plan
    save_plan(plan, path)
    return plan, path


def test_load_plan_where_it_was_planned_changes_nothing(tmp_path: Path) -> None:
    plan, path = saved(tmp_path / "ws")
    assert load_plan(path) == plan
    assert load_plan(tmp_path / "ws" / ".." / path.relative_to(tmp_path)) == plan


def test_load_plan_in_a_moved_workspace_has_its_paths(tmp_path: Path) -> None:
    plan, path = saved(tmp_path / "old")
    new = tmp_path / "new place"
    shutil.move(tmp_path / "old", new)
    moved = load_plan(new / path.relative_to(tmp_path / "old"))
    assert moved.workspace == str(new)
    assert [file.path for file in moved.splits[0].files] == [
        "/data/docs/train.parquet",
        f"{new}/datasets/processed/a.parquet",
    ]
    assert moved.model["path"] == f"{new}/models/tiny"
    assert moved.cluster["log_dir"] == f"{new}/logs"
    assert moved.cluster["input_folders"] == ["/data/docs", f"{new}/datasets/processed"]
    assert moved.cluster["binds"] == [f"{new}:/mnt", f"{tmp_path}/old-other:/mnt2"]
    unchanged = ("plan_sha256", "run_id", "spec", "created_at", "provenance")
    assert [getattr(moved, name) for name in unchanged] == [getattr(plan, n) for n in unchanged]
    assert moved.model["name"] == plan.model["name"]  # stands in every row


def test_load_plan_through_a_link_keeps_the_recorded_workspace(tmp_path: Path) -> None:
    plan, path = saved(tmp_path / "ws")
    (tmp_path / "link").symlink_to(tmp_path / "ws")
    assert load_plan(tmp_path / "link" / path.relative_to(tmp_path / "ws")) == plan


def test_load_plan_copy_outside_a_workspace_keeps_its_own(tmp_path: Path) -> None:
    plan, path = saved(tmp_path / "ws")
    shutil.copy(path, tmp_path / "copy.json")
    assert load_plan(tmp_path / "copy.json") == plan


def test_load_plan_absent_or_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none.json", tmp_path / "file" / "plan.json"):
        with pytest.raises(InputError, match="does not exist"):
            load_plan(path)
    with pytest.raises(InputError, match="Is a directory"):
        load_plan(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "embed"}', "\x00"])
def test_load_plan_damaged_says_what_to_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match="chatspace setup") as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)


def test_load_plan_of_a_run_spec_names_the_runs_of_its_name(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "ws")
    (path.parent.parent / "docs-other").mkdir()
    spec = tmp_path / "u.yaml"
    spec.write_text(f"name: docs\nworkspace: {tmp_path}/ws\n")
    with pytest.raises(InputError) as caught:
        load_plan(spec)
    assert str(caught.value) == (
        f"A run spec, not a run: {spec}; its run is {path.parent}. Name the run instead."
    )
    second = path.parent.with_name("docs-00000000")
    shutil.copytree(path.parent, second)
    os.utime(second / "plan.json", (1, 1))
    with pytest.raises(InputError, match=rf"; its runs: {second}, {path.parent}\. "):
        load_plan(spec)


@pytest.mark.parametrize("text", ["name: other\n", "name: [", "", "- a\n", "workspace: 7\nname: x"])
def test_load_plan_of_a_run_spec_without_runs_says_where_to_look(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATSPACE_WORKSPACE", str(tmp_path))
    (tmp_path / "u.yml").write_text(text)
    with pytest.raises(InputError, match=r"^A run spec, not a run: .*`chatspace status` lists"):
        load_plan(tmp_path / "u.yml")


@pytest.mark.parametrize(("name", "content"), [("docs.parquet", b"PAR1"), ("a.json", b"{}")])
def test_load_plan_of_another_file_says_that_it_is_none(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^No plan: .*{name} is another sort of file\. "):
        load_plan(tmp_path / name)


def test_load_plan_wrong_type_names_the_key(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "ws")
    content = json.loads(path.read_text())
    content["splits"][0]["rows"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"splits\.0\.rows"):
        load_plan(path)


def test_save_plan_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "ws").touch()
    with pytest.raises(OutputError, match=r"Cannot write: .*plan.json"):
        saved(tmp_path / "ws")
