import ast
import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import OutputError, SpecError, UnfitEnvironmentError
from chatspace.jobs.overview import next_commands, reading_steps, setup_lines
from chatspace.jobs.setup import (
    ask_max_array_size,
    estimated_bytes,
    input_folders,
    plan_notes,
    set_up,
    set_up_again,
)
from chatspace.layout import Layout
from chatspace.plan.store import load_plan
from chatspace.spec.base import RunSpec
from chatspace.spec.loading import load_spec, spec_from_mapping
from tests.conftest import texts, write_parquet
from tests.plans import plan_of, split_plan
from tests.test_plan_build import model_folder

Maker = Callable[..., RunSpec]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Returns a maker of specs over 300 rows, in a folder of the user that is the current one."""
    write_parquet(tmp_path / "data" / "docs.parquet", {"text": texts(300)})
    model_folder(tmp_path / "tiny")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def make(**sections: Any) -> RunSpec:
        values: dict[str, Any] = {
            "kind": "embed",
            "name": "test",
            "workspace": str(tmp_path / "ws"),
            "dataset": {"source": "parquet", "path": str(tmp_path / "data" / "docs.parquet")},
            "model": {"name": str(tmp_path / "tiny")},
            "output": {"rows_per_shard": 32},
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        return spec_from_mapping(values, "test")

    return make


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_set_up_writes_the_scripts_here_and_into_the_run(spec: Maker, tmp_path: Path) -> None:
    done = set_up(spec(), out=Path.cwd(), spec_text="kind: embed\n")
    run = Layout(tmp_path / "ws").run(done.plan.run_id)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "embed.slurm", "events", "gather.slurm", "plan.json", "spec.yaml",
    ]  # fmt: skip
    assert run.spec.read_text() == "kind: embed\n"
    assert load_plan(run.plan).plan_sha256 == done.plan.plan_sha256
    assert done.scripts == (Path.cwd() / "embed.slurm",)
    assert done.gather == Path.cwd() / "gather.slurm"
    for name in ("embed.slurm", "gather.slurm"):
        assert (Path.cwd() / name).read_bytes() == (run.folder / name).read_bytes()
        assert os.access(Path.cwd() / name, os.X_OK)
    assert (Path.cwd() / "logs").is_dir()


def test_set_up_without_a_folder_writes_into_the_run_alone(spec: Maker, tmp_path: Path) -> None:
    done = set_up(spec(slurm={"log_dir": str(tmp_path / "ws" / "logs")}))
    assert list(Path.cwd().iterdir()) == []
    assert done.scripts[0].parent == Layout(tmp_path / "ws").run(done.plan.run_id).folder
    written = load_spec(done.scripts[0].with_name("spec.yaml"))
    assert set_up(written).plan.run_id == done.plan.run_id


def test_set_up_again_gives_the_same_scripts_and_leaves_the_plan(
    spec: Maker, tmp_path: Path
) -> None:
    done = set_up(spec(), out=Path.cwd())
    run = Layout(tmp_path / "ws").run(done.plan.run_id)
    plan, script = run.plan.read_bytes(), done.scripts[0].read_bytes()
    done.scripts[0].unlink()
    again = set_up_again(load_plan(run.plan), Path.cwd())
    assert again.scripts == done.scripts
    assert done.scripts[0].read_bytes() == script
    assert run.plan.read_bytes() == plan


@pytest.mark.parametrize(
    "sections",
    [
        {"slurm": {"extra": {"array": "0-3"}}},
        {"slurm": {"partition": "a\nb"}},
        {"slurm": {"log_dir": "a\x01b"}},
        {"dataset": {"split": "tr\nain", "path": "{data}/*.parquet"}},
        {"container": {"image": "{data}/image.sif", "binds": ["/a\n/b"]}},
        {"workspace": "{data}/a:b", "container": {"image": "{data}/image.sif"}},
    ],
    ids=str,
)
def test_set_up_value_unfit_for_a_script_writes_nothing(
    spec: Maker, tmp_path: Path, sections: dict[str, Any]
) -> None:
    (tmp_path / "data" / "image.sif").write_bytes(b"image")
    before = everything(tmp_path)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return value.replace("{data}", f"{tmp_path}/data") if isinstance(value, str) else value

    with pytest.raises(SpecError) as caught:
        set_up(spec(**filled(sections)), out=Path.cwd())
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("place", ["logs", "embed.slurm"])
def test_set_up_place_that_is_taken_is_named_and_plans_nothing(
    spec: Maker, tmp_path: Path, place: str
) -> None:
    blocked = Path.cwd() / place
    (blocked.touch if place == "logs" else blocked.mkdir)()
    with pytest.raises(OutputError, match=place):
        set_up(spec(), out=Path.cwd())
    assert not list((tmp_path / "ws").rglob("plan.json"))


def test_set_up_relative_paths_become_absolute(spec: Maker) -> None:
    (Path.cwd() / "image.sif").write_bytes(b"image")
    done = set_up(spec(container={"image": "image.sif", "venv": "env"}), out=Path.cwd())
    cluster = done.plan.cluster
    assert cluster["image"] == str(Path.cwd() / "image.sif")
    assert cluster["venv"] == str(Path.cwd() / "env")
    assert cluster["log_dir"] == str(Path.cwd() / "logs")


def test_set_up_image_is_read_once_until_it_changes(spec: Maker, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    image.write_bytes(b"image")
    notes: list[str] = []
    sections = spec(container={"image": str(image)})
    first = set_up(sections, note=notes.append).plan.cluster["image_sha256"]
    assert first == hashlib.sha256(b"image").hexdigest()
    assert set_up(sections, note=notes.append).plan.cluster["image_sha256"] == first
    assert len(notes) == 1
    image.write_bytes(b"IMAGE")
    os.utime(image, (1, 1))
    second = set_up(sections, note=notes.append).plan.cluster["image_sha256"]
    assert second == hashlib.sha256(b"IMAGE").hexdigest()
    assert len(notes) == 2
    (tmp_path / "ws" / "cache" / "image_sha256.json").write_text("{torn")
    assert set_up(sections).plan.cluster["image_sha256"] == second


def test_plan_notes_too_many_shards_names_a_better_size(spec: Maker) -> None:
    plan = plan_of(splits=(split_plan(rows=100_000_000, rows_per_shard=1000, count=8),))
    (note,) = plan_notes(plan, spec())
    assert "100,000 shard files" in note
    assert "output.rows_per_shard=32768 would give 3,052" in note
    assert plan_notes(plan_of(splits=(split_plan(rows=20_000, rows_per_shard=1),)), spec()) == []


def test_plan_notes_more_slices_than_shards(spec: Maker) -> None:
    done = set_up(spec(slices={"count": 64}))
    (note,) = done.notes
    assert "slices.count=64 but split train has 10 shards: it gets 10 tasks" in note
    assert f"  note     {note}" in setup_lines(done)


def test_estimated_bytes_from_vectors_and_text() -> None:
    plan = plan_of()
    assert estimated_bytes(plan) is None
    plan = replace(plan, model={**plan.model, "embedding_dim": 64})
    assert estimated_bytes(plan) == 1000 * (64 * 4 + 64) + 80_000 // 3
    plan.spec["output"].update(dtype="float16", keep_text=False)
    assert estimated_bytes(plan) == 1000 * (64 * 2 + 64)


def test_estimated_bytes_count_the_chunks_of_long_rows() -> None:
    chunks = {"long_text": "chunk", "chunk_tokens": 25, "overlap_tokens": 5}
    plan = replace(plan_of(model=chunks), model={"embedding_dim": 64})
    n_vectors = 1000 + 80_000 // (4 * 20)
    assert estimated_bytes(plan) == n_vectors * (64 * 4 + 64) + 80_000 // 3


def test_input_folders_behind_links_are_named_too(spec: Maker, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "blobs" / "abc")
    (tmp_path / "tiny" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    plan = set_up(spec()).plan
    assert input_folders(plan) == [
        str(tmp_path / "data"), str(tmp_path / "tiny"), str(tmp_path / "blobs"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo 'MaxArraySize            = 4001'", 4001),
        ("echo nothing", None),
        ("echo down >&2; exit 1", None),
    ],
)
def test_ask_max_array_size_from_scontrol(
    spec: Maker, tmp_path: Path, script: str, answer: int | None
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/bash\n{script}\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    assert ask_max_array_size() == answer
    assert set_up(spec()).plan.cluster["max_array_size"] == answer


def test_ask_max_array_size_without_slurm_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_max_array_size() is None


def test_setup_lines_end_with_the_exact_next_command(spec: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "my scripts"
    done = set_up(spec(slices={"count": 4}, slurm={"array_parallelism": 2}), out=folder)
    lines = setup_lines(done)
    assert lines[0] == f"run {done.plan.run_id}"
    assert lines[-1].strip() == "sbatch 'my scripts/embed.slurm'"
    text = "\n".join(lines)
    assert "300 rows" in text
    assert "10 shards, 4 slices" in text
    assert "4 array tasks, 4 GPUs, at most 2 at a time" in text


def test_next_commands_many_arrays_are_one_submit_with_the_run_s_folder(
    spec: Maker, tmp_path: Path
) -> None:
    splits = [f"s{i}" for i in range(5)]
    for name in splits:
        write_parquet(tmp_path / "many" / f"{name}.parquet", {"text": ["a"]})
    dataset = {"path": str(tmp_path / "many"), "splits": splits}
    done = set_up(spec(dataset=dataset), out=Path.cwd())
    (command,) = next_commands(done)
    run = Layout(tmp_path / "ws").run(done.plan.run_id).folder
    assert command == f"chatspace submit {run}   # 5 arrays, in order"


def test_reading_steps_hold_whatever_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "my" $HOME'
    run = str(Layout(folder).run("docs-01234567").folder)
    python, shell = reading_steps(plan_of(folder, (split_plan('a"b'), split_plan())))
    call = ast.parse(python.removeprefix("python: "), mode="eval")
    assert [n.value for n in ast.walk(call) if isinstance(n, ast.Constant)] == ['a"b', run]
    program, *words = shlex.split(shell)
    assert Path(program).name == "chatspace"
    assert words == ["verify", run]


def test_set_up_with_overrides_writes_a_spec_that_gives_the_run_again(
    spec: Maker, tmp_path: Path
) -> None:
    changed = spec(name="other", dataset={"max_rows": 7})
    done = set_up(changed, spec_text="kind: embed", overrides=["name=other", "dataset.max_rows=7"])
    path = Layout(tmp_path / "ws").run(done.plan.run_id).spec
    assert "# --set 'name=other'" in path.read_text()
    assert set_up(load_spec(path)).plan.run_id == done.plan.run_id


def test_set_up_removes_array_scripts_of_an_earlier_setup_and_nothing_else(
    spec: Maker, tmp_path: Path
) -> None:
    set_up(spec(), out=tmp_path)
    assert (tmp_path / "embed.slurm").exists()
    (tmp_path / "embed-mine.slurm").write_text("#!/bin/bash\n# my own script\n")
    profile = tmp_path / "windows.yaml"
    profile.write_text("name: windows\nmax_array_size: 1\n")
    done = set_up(
        spec(name="other", slurm={"profile": str(profile)}, slices={"count": 2}), out=tmp_path
    )
    assert len(done.scripts) == 2
    names = {path.name for path in tmp_path.glob("*.slurm")}
    assert names == {
        "embed-window1.slurm",
        "embed-window2.slurm",
        "embed-mine.slurm",
        "gather.slurm",
    }


def test_set_up_refused_by_its_check_writes_nothing(spec: Maker, tmp_path: Path) -> None:
    def refuse(plan: object, scripts: object) -> None:
        raise UnfitEnvironmentError("no")

    with pytest.raises(UnfitEnvironmentError):
        set_up(spec(), out=tmp_path, check=refuse)
    assert not list(tmp_path.rglob("plan.json"))
    assert not list(tmp_path.rglob("*.slurm"))
