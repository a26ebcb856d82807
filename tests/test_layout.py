from pathlib import Path

import pytest

from chatspace.errors import ExitCode, OutputError
from chatspace.layout import (
    WORKSPACE_VARIABLE,
    Layout,
    find_workspace,
    path_component,
    resolve_workspace,
    slice_manifest_name,
    split_label,
)


def test_layout_paths_are_those_of_the_design_page() -> None:
    layout = Layout(Path("/ws"))
    run = layout.run("docs-01234567")
    paths = {
        layout.staged(): "/ws/datasets/processed",
        layout.cache(): "/ws/cache",
        layout.runs(): "/ws/runs",
        run.spec: "/ws/runs/docs-01234567/spec.yaml",
        run.plan: "/ws/runs/docs-01234567/plan.json",
        run.task_manifest(
            "train", slice_manifest_name(3, 12)
        ): "/ws/runs/docs-01234567/tasks/train-00003-00012.json",
        run.event_log("a/b", 7): "/ws/runs/docs-01234567/events/a__b-00007.jsonl",
        run.submissions: "/ws/runs/docs-01234567/submissions.jsonl",
        run.local_log: "/ws/runs/docs-01234567/local.log",
    }
    assert [str(path) for path in paths] == list(paths.values())


def test_path_component_is_one_folder() -> None:
    assert path_component("Qwen/Qwen3") == "Qwen__Qwen3"
    assert split_label("org/docs", "train") == "org__docs/train"


def test_find_workspace_spec_then_environment_then_profile_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    assert find_workspace(None) == Path("/workspace")
    assert find_workspace(None, "/profile") == Path("/profile")
    monkeypatch.setenv(WORKSPACE_VARIABLE, "/environment")
    assert find_workspace(None, "/profile") == Path("/environment")
    assert find_workspace("/spec", "/profile") == Path("/spec")
    monkeypatch.chdir(tmp_path)
    assert find_workspace("here") == tmp_path / "here"
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    assert find_workspace("$SCRATCH/ws") == Path("/scratch/ada/ws")
    assert find_workspace("~/ws") == Path.home() / "ws"


def test_resolve_workspace_makes_nothing(tmp_path: Path) -> None:
    assert resolve_workspace(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/ws", "/dev/null", "/dev/null/ws"])
def test_resolve_workspace_not_writable_is_refused(place: str) -> None:
    with pytest.raises(OutputError, match="Choose another") as caught:
        resolve_workspace(place)
    assert caught.value.exit_code == ExitCode.USER_INPUT


@pytest.mark.usefixtures("unprivileged")
def test_resolve_workspace_without_permission_is_refused() -> None:
    with pytest.raises(OutputError, match=r"may write to.*CHATSPACE_WORKSPACE"):
        resolve_workspace("/of_nobody_else/ws")
