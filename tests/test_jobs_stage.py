"""Staging a model from a hub on this machine, with the command that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatspace.data.fetch import HubFile
from chatspace.errors import ExitCode, UnfitEnvironmentError
from chatspace.hf_embed.stage import code_repositories, needed_files
from chatspace.jobs import stage
from tests.conftest import SpecMaker, texts, write_parquet
from tests.hub import Hub, serving
from tests.test_data_staging_hub import FakeHub

COMMIT, NEXT = "a" * 40, "b" * 40
NOWHERE = "http://127.0.0.1:9"
UNUSED = {"model.onnx": b"o" * 1000, "pytorch_model.bin": b"p" * 2000, "onnx/model.json": b"{}"}


@dataclass
class User:
    """A user's folder with a spec of a hub model, and a hub that the commands reach."""

    folder: Path
    hub: Hub
    env: dict[str, str] = field(default_factory=dict)

    def write_spec(self, **sections: Any) -> None:
        values: dict[str, Any] = {
            "kind": "embed",
            "name": "docs",
            "workspace": "ws",
            "dataset": {"source": "parquet", "path": "data"},
            "model": {"name": "org/tiny", "dtype": "float32", "device": "cpu"},
            "slurm": {"profile": "local"},
        }
        for key, value in sections.items():
            values[key] = {**values[key], **value}
        (self.folder / "spec.yaml").write_text(yaml.safe_dump(values))

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CHATSPACE_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "chatspace", *words],
            cwd=self.folder,
            env={
                **kept,
                "HF_ENDPOINT": self.hub.url,
                "HF_HOME": str(self.folder / "home"),
                "NO_PROXY": "127.0.0.1",
                "COLUMNS": "80",
                **self.env,
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=100)
        assert process.returncode == code, out + err
        return out if code == 0 else err

    @property
    def repository(self) -> Path:
        return self.folder / "ws" / "models" / "hub" / "models--org--tiny"

    @property
    def weights(self) -> Path:
        return self.repository / "snapshots" / COMMIT / "model.safetensors"


@pytest.fixture
def user(tmp_path: Path, tiny_model: Path) -> Iterator[User]:
    hub = Hub()
    hub.add("org/tiny", tiny_model, COMMIT, **UNUSED)
    write_parquet(tmp_path / "data" / "train.parquet", {"text": texts(60)})
    with serving(hub):
        made = User(tmp_path, hub)
        made.write_spec()
        yield made


def run_id(text: str) -> str:
    return next(word for word in text.split() if word.startswith("docs-")).rstrip(":")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stage_fetches_what_is_needed_once_and_records_checksums(user: User) -> None:
    said = user.run("stage", "spec.yaml")
    assert "org/tiny at aaaaaaaaaaaa" in said
    assert "fetched now" in said
    assert not set(UNUSED) & set(user.hub.fetched)
    assert len(user.hub.fetched) == len(set(user.hub.fetched))
    record = json.loads((user.repository / "staged" / f"{COMMIT}-weights.json").read_text())
    assert {f["name"] for f in record["files"]} == set(user.hub.fetched)
    assert all(len(f["sha256"]) == 64 for f in record["files"])
    asked = len(user.hub.asked)
    assert "there already" in user.run("stage", "spec.yaml")
    assert len(user.hub.asked) == asked


def test_stage_gives_the_run_that_was_planned_before_and_needs_no_network_after(
    user: User,
) -> None:
    before = run_id(user.run("setup", "spec.yaml"))
    assert "HF_HUB_OFFLINE" not in (user.folder / "embed.slurm").read_text()
    assert f"{before}: its tasks need no network" in user.run("stage", "spec.yaml")
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE, "HF_HOME": "/nonexistent"}
    assert run_id(user.run("setup", "spec.yaml", **offline)) == before
    script = (user.folder / "embed.slurm").read_text()
    assert "export HF_HUB_OFFLINE=1\n" in script
    assert f"export HF_HUB_CACHE={user.folder}/ws/models/hub\n" in script
    assert "there already" in user.run("stage", "spec.yaml", **offline)
    user.hub.refs["org/tiny"]["main"] = NEXT  # main moved: the run stays the one that was staged
    assert run_id(user.run("setup", "spec.yaml")) == before


@pytest.mark.slow
def test_stage_then_a_run_offline_embeds(user: User) -> None:
    user.run("stage", "spec.yaml")
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE, "HF_HOME": "/nonexistent"}
    assert "60 rows, every one accounted for" in user.run("run", "spec.yaml", **offline)


def test_stage_killed_in_the_middle_fetches_only_what_is_missing(user: User) -> None:
    user.hub.held = {"model.safetensors"}
    user.hub.hold.clear()
    first = user.start("stage", "spec.yaml")
    wait_until(lambda: len(user.hub.fetched) == 9)
    wait_until(lambda: len(list((user.repository / "snapshots" / COMMIT).rglob("*.json"))) == 8)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert not (user.repository / "staged").exists()
    assert list((user.repository / "blobs").glob("*.incomplete"))
    user.hub.hold.set()
    user.hub.fetched.clear()
    said = user.run("stage", "spec.yaml")  # the lock of the dead process holds nobody up
    assert "1 fetched now (" in said
    assert user.hub.fetched == ["model.safetensors"]


def test_stage_removes_leftovers_of_a_day_ago_and_no_download_that_may_be_somebodys(
    user: User,
) -> None:
    blobs = user.repository / "blobs"
    blobs.mkdir(parents=True)
    hours = {"now": 0, "today": 23, "yesterday": 25, "ahead": -5}
    for name, age_h in hours.items():
        path = blobs / f"{name}.incomplete"
        path.write_bytes(b"half")
        written_s = path.stat().st_mtime - 3600 * age_h
        os.utime(path, (written_s, written_s))
    user.run("stage", "spec.yaml")
    left = {path.stem for path in blobs.glob("*.incomplete")}
    assert left == {"now", "today", "ahead"}


def test_stage_damaged_file_is_found_by_its_checksum_and_fetched_again(user: User) -> None:
    user.run("stage", "spec.yaml")
    content = bytearray(user.weights.read_bytes())
    content[1000] ^= 1
    blob = user.weights.resolve()
    blob.write_bytes(content)
    pointer = user.repository / "snapshots" / COMMIT / "modules.json"
    pointer.resolve().unlink()
    user.hub.fetched.clear()
    said = user.run("stage", "spec.yaml")
    assert "was damaged, fetched again: model.safetensors" in said
    assert sorted(user.hub.fetched) == ["model.safetensors", "modules.json"]
    content[1000] ^= 1
    assert user.weights.read_bytes() == bytes(content)


def test_stage_damaged_file_without_network_says_so_and_plans_no_damaged_model(
    user: User,
) -> None:
    user.run("stage", "spec.yaml")
    user.weights.resolve().write_bytes(b"short")
    error = user.run("stage", "spec.yaml", code=ExitCode.ENVIRONMENT, HF_HUB_OFFLINE="1")
    assert "Hub out of reach: model org/tiny; HF_HUB_OFFLINE is set" in error
    assert "HF_HUB_OFFLINE" not in user.run("setup", "spec.yaml")


def test_stage_content_damaged_on_the_way_is_refused_and_removed(user: User) -> None:
    user.hub.broken = {"model.safetensors"}
    error = user.run("stage", "spec.yaml", code=ExitCode.USER_INPUT)
    assert "Damaged on the way: model org/tiny, model.safetensors" in error
    assert len(error.splitlines()) == 1
    assert not user.weights.exists()
    user.hub.broken = set()
    assert "1 fetched now" in user.run("stage", "spec.yaml")


def test_stage_two_at_once_fetch_once(user: User) -> None:
    user.hub.held = {"model.safetensors"}
    user.hub.hold.clear()
    first = user.start("stage", "spec.yaml")
    wait_until(lambda: "model.safetensors" in user.hub.fetched)
    second = user.start("stage", "spec.yaml")
    assert second.stdout is not None
    assert second.stdout.readline().startswith(f"Waiting for process {first.pid} on ")
    user.hub.hold.set()
    one, _ = first.communicate(timeout=60)
    two, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "fetched now" in one
    assert "fetched now" not in two
    assert user.hub.fetched.count("model.safetensors") == 1


def test_stage_waits_no_longer_than_it_was_told(user: User) -> None:
    user.hub.held = {"model.safetensors"}
    user.hub.hold.clear()
    first = user.start("stage", "spec.yaml")
    wait_until(lambda: "model.safetensors" in user.hub.fetched)
    error = user.run("stage", "spec.yaml", "--wait-min", "0.02", code=ExitCode.ENVIRONMENT)
    assert f"Somebody else is staging: process {first.pid} on " in error
    user.hub.hold.set()
    first.communicate(timeout=60)


def test_only_one_takes_over_from_an_owner_that_beats_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LEASE_S", 4.0)
    holder = (
        "import sys, time; from filelock import SoftFileLease\n"
        "import socket; socket.gethostname = lambda: 'elsewhere'\n"
        "import platform; platform.node = lambda: 'elsewhere'\n"
        "lease = SoftFileLease(sys.argv[1], lease_duration=4.0); lease.acquire()\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "stage.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refused = pytest.raises(UnfitEnvironmentError, match="Somebody else is staging")
    with refused, stage._only_one(path, lambda _: None, 8 / 60):
        pass
    process.send_signal(signal.SIGSTOP)  # as of a node that hangs: alive, and no beat
    said: list[str] = []
    with stage._only_one(path, said.append, 1):
        assert said[0].startswith("Waiting for process ")
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("sections", "env", "code", "words"),
    [
        ({"model": {"name": "org/nothing"}}, {}, 2, "No such model: model.name=org/nothing"),
        ({"model": {"revision": "gone"}}, {}, 2, "model.revision=gone; the hub has no such"),
        ({"model": {"revision": "c" * 40}}, {}, 2, "model.revision=" + "c" * 40),
        ({"model": {"name": "./absent"}}, {}, 2, "Unknown model folder"),
        ({}, {"HF_ENDPOINT": NOWHERE}, 4, "it was not staged before"),
        ({}, {"HF_HUB_OFFLINE": "1"}, 4, "Hub out of reach: model.name=org/tiny"),
        ({"model": {"revision": COMMIT}}, {"HF_ENDPOINT": NOWHERE}, 4, "Hub out of reach: model"),
        ({"dataset": {"path": "absent"}}, {}, 2, "No such file or folder: dataset.path="),
        ({"slurm": {"profile": "nowhere"}}, {}, 2, "Unknown profile: slurm.profile="),
    ],
)
def test_stage_that_cannot_work_says_why_in_one_line(
    sections: dict[str, Any], env: dict[str, str], code: int, words: str, user: User
) -> None:
    user.write_spec(**sections)
    error = user.run("stage", "spec.yaml", code=code, **env)
    assert words in error
    assert len(error.splitlines()) == 1


def test_stage_finds_a_limit_that_the_model_cannot_have(user: User) -> None:
    user.write_spec(model={"long_text": "chunk", "chunk_tokens": 2})
    for command in ("stage", "setup"):  # then the model is here, and planning sees it
        error = user.run(command, "spec.yaml", code=2)
        assert "No room for text: the limit is 2 tokens" in error
    assert len(error.splitlines()) == 1


def test_stage_too_little_space_is_said_before_anything_is_fetched(
    user: User, make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from chatspace.data import fetch
    from chatspace.errors import OutputError

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", user.hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    spec = make_spec(model={"name": "org/tiny"})
    with pytest.raises(OutputError, match=r"Too little space: .*; model org/tiny needs"):
        stage.stage_run(spec, note=lambda _: None)
    assert user.hub.fetched == []


def test_stage_into_the_hub_cache_of_the_profile(user: User) -> None:
    profile = user.folder / "offline.yaml"
    profile.write_text(f"name: offline\nhf_home: {user.folder}/shared home\noffline: true\n")
    user.write_spec(slurm={"profile": str(profile)})
    assert "chatspace stage " in user.run("setup", "spec.yaml")  # the note of what to do first
    said = user.run("stage", "spec.yaml")
    assert f"in {user.folder}/shared home/hub/models--org--tiny/" in said
    assert "chatspace stage " not in user.run("setup", "spec.yaml", HF_HUB_OFFLINE="1")
    script = (user.folder / "embed.slurm").read_text()
    assert f"export HF_HOME='{user.folder}/shared home'\n" in script
    assert "HF_HUB_CACHE" not in script


def test_stage_a_local_model_and_other_formats_says_what_it_did(
    user: User, tiny_model: Path
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(30))
    (user.folder / "data" / "train.jsonl").write_text(lines)
    user.write_spec(model={"name": str(tiny_model)}, dataset={"source": "jsonl"})
    said = user.run("stage", "spec.yaml")
    assert "a local folder, used where it lies" in said
    assert "30 rows" in said
    assert "staged as Parquet now" in said
    assert "staged as Parquet before" in user.run("stage", "spec.yaml")
    user.write_spec(model={"name": str(tiny_model)})
    assert "60 rows" in (again := user.run("stage", "spec.yaml"))
    assert "Parquet, used where it lies" in again
    assert user.hub.asked == []


def test_stage_hub_dataset_once_at_its_commit(
    make_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(monkeypatch)
    spec = make_spec(dataset={"source": "huggingface", "name": "org/x", "path": None})
    first = stage.stage_run(spec, note=lambda _: None)
    again = stage.stage_run(spec, note=lambda _: None)
    assert [(s.is_new, s.split.revision) for s in first.splits] == [(True, "a" * 40)]
    assert [(s.is_new, s.split.revision) for s in again.splits] == [(False, "a" * 40)]
    assert again.plan.run_id == first.plan.run_id
    assert fake.loads == 1


def test_stage_fetches_code_and_base_models_that_the_model_names(user: User) -> None:
    hub, folder = user.hub, user.folder / "parts"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "modeling.py").write_text("class Model: pass\n")
    (folder / "code" / "config.json").write_text("{}")
    (folder / "code" / "weights.safetensors").write_bytes(b"many bytes")
    hub.add("org/code", folder / "code", NEXT)
    config = {"auto_map": {"AutoModel": "org/code--modeling.Model", "AutoConfig": "own.Config"}}
    adapter = json.dumps({"base_model_name_or_path": "org/base"}).encode()
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    hub.add("org/base", folder / "base", NEXT)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"hidden_size": 64, **config}))
    hub.add("org/adapted", folder / "model", COMMIT, **{"adapter_config.json": adapter})
    user.write_spec(model={"name": "org/adapted", "trust_remote_code": True})
    said = user.run("stage", "spec.yaml")
    assert "org/base at bbbbbbbbbbbb" in said
    assert "org/code at bbbbbbbbbbbb" in said
    assert "weights.safetensors" not in hub.fetched
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE}
    assert user.run("stage", "spec.yaml", **offline).count("there already") == 3
    user.write_spec(model={"name": "org/code"})  # of which only the code is there
    user.run("stage", "spec.yaml")
    assert "weights.safetensors" in hub.fetched


def test_stage_repository_without_anything_to_load_is_refused(user: User) -> None:
    (user.folder / "gguf").mkdir()
    (user.folder / "gguf" / "model.gguf").write_bytes(b"g")
    user.hub.add("org/gguf", user.folder / "gguf", COMMIT)
    user.write_spec(model={"name": "org/gguf"})
    error = user.run("stage", "spec.yaml", code=ExitCode.USER_INPUT)
    assert "Nothing to load: the repository has 1 file, among them no adapter_config.json" in error


def test_needed_files_leave_out_what_no_encoder_is_loaded_from() -> None:
    kept = [
        "config.json", "tokenizer.json", "merges.txt", "spiece.model", "modeling_x.py",
        "model-00001-of-00002.safetensors", "2_Dense/pytorch_model.bin", "chat_template.jinja",
        "1_Pooling/config.json", "README.md", "vocab.tiktoken",
    ]  # fmt: skip
    left = [
        "pytorch_model.bin", "onnx/config.json", "openvino/model.bin", "tf_model.h5", "a.GGUF",
        "flax_model.msgpack", ".gitattributes", "consolidated.00.pth", "picture.png",
        "original/params.json", "training_args.bin",
    ]  # fmt: skip
    files = [HubFile(name=name, bytes=1, sha256=None) for name in [*kept, *left]]
    assert [file.name for file in needed_files(files)] == kept
    without = [HubFile(name="pytorch_model.bin", bytes=1, sha256=None)]
    assert needed_files(without) == without


def test_code_repositories_are_those_before_two_dashes(tmp_path: Path) -> None:
    auto_map = {"AutoTokenizer": ["org/tok--tok.Tok", None], "AutoModel": "own.Model"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "broken.json").write_text("{")
    assert code_repositories(tmp_path) == ["org/tok"]
