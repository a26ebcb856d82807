"""`chatspace doctor` as it is typed, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace.errors import ExitCode
from tests.conftest import texts, write_parquet
from tests.test_checks_doctor import bare_path

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chatspace(tmp_path: Path, tiny_model: Path) -> Command:
    write_parquet(tmp_path / "data" / "train.parquet", {"text": texts(50)})
    (tmp_path / "spec.yaml").write_text(
        f"kind: embed\nname: cli\nworkspace: ws\ndataset: {{source: parquet, path: data}}\n"
        f"model: {{name: {tiny_model}}}\nslurm: {{profile: local}}\n"
    )

    path = str(bare_path(tmp_path))

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "chatspace", *words],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "COLUMNS": "80", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_doctor_without_a_spec_looks_at_the_machine(chatspace: Command, tmp_path: Path) -> None:
    done = chatspace("doctor", "--json", CHATSPACE_WORKSPACE=str(tmp_path / "w"))
    assert done.returncode == 0, done.stdout
    content = json.loads(done.stdout)
    assert content["fit"] is True
    checks = {item["check"] for item in content["checks"]}
    assert {"python", "packages", "scheduler", "container", "gpu", "workspace"} <= checks
    assert not (tmp_path / "w").exists()
    assert "0 fail" in chatspace("doctor").stdout


@pytest.mark.slow
def test_doctor_of_a_spec_and_of_its_run_looks_at_all(chatspace: Command, tmp_path: Path) -> None:
    done = chatspace("doctor", "spec.yaml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {item["check"] for item in json.loads(done.stdout)["checks"]}
    assert {"plan", "logs", "space", "files", "imports", "model", "dataset", "secrets"} <= checks
    assert not (tmp_path / "ws").exists()
    assert chatspace("setup", "spec.yaml").returncode == 0
    (run,) = (tmp_path / "ws" / "runs").iterdir()
    assert "0 fail" in chatspace("doctor", str(run)).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nope.yaml",), ExitCode.USER_INPUT, "No such file: nope.yaml"),
        (("norun", "--workspace", "ws"), ExitCode.USER_INPUT, "Unknown run: norun"),
        (("spec.yaml", "--set", "slrm.time=1"), ExitCode.USER_INPUT, "Did you mean slurm?"),
        (("--node",), ExitCode.USER_INPUT, "Which run spec?"),
        (("spec.yaml", "--node"), ExitCode.USER_INPUT, "No node to look at: --node; "),
        (("spec.yaml", "--set", "slurm.profile=x"), ExitCode.USER_INPUT, "Unknown profile"),
        (("spec.yaml", "--set", "dataset.path=x"), ExitCode.USER_INPUT, "No such file or folder"),
        (("spec.yaml", "--set", "model.name=./x"), ExitCode.USER_INPUT, "Unknown model folder"),
        (("spec.yaml", "--set", "workspace=/proc/x"), ExitCode.USER_INPUT, "cannot be written"),
        (("spec.yaml", "--set", "container.image=x.sif"), ExitCode.ENVIRONMENT, "No such file"),
    ],
)
def test_doctor_of_a_wrong_spec_says_what_is_wrong_and_never_a_traceback(
    words: tuple[str, ...], code: ExitCode, said: str, chatspace: Command
) -> None:
    done = chatspace("doctor", *words)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == code, text
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize("words", [(), ("--set", "dataset.path=x")])
def test_doctor_of_a_run_without_a_scheduler_asks_nothing_of_slurm(
    words: tuple[str, ...], chatspace: Command, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    for name in ("sbatch", "sinfo", "scontrol"):
        program = tmp_path / "programs" / name
        program.write_text(f"#!/bin/bash\necho {name} >> {asked}; exit 1\n")
        program.chmod(0o755)
    done = chatspace("doctor", "spec.yaml", "--json", *words)
    checks = {item["check"]: item["state"] for item in json.loads(done.stdout)["checks"]}
    assert not {"scheduler", "job"} & checks.keys()
    assert done.returncode == (ExitCode.USER_INPUT if words else ExitCode.DONE), done.stdout
    assert not asked.exists()


def test_doctor_of_a_spec_that_cannot_be_planned_says_what_setup_says(
    chatspace: Command,
) -> None:
    words = ("spec.yaml", "--set", "workspace=/proc/x")
    setup, doctor = chatspace("setup", *words), chatspace("doctor", *words, "--json")
    assert setup.returncode == doctor.returncode == ExitCode.USER_INPUT
    (plan,) = [c for c in json.loads(doctor.stdout)["checks"] if c["check"] == "plan"]
    assert setup.stderr.strip() == f"chatspace: {plan['seen']}"


def test_doctor_finds_a_secret_in_a_rendered_script(chatspace: Command) -> None:
    words = ("doctor", "spec.yaml", "--set", "container.env.X=hush-hush-hush")
    done = chatspace(*words, "--set", "container.image=x.sif", OPENAI_API_KEY="hush-hush-hush")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "the value of OPENAI_API_KEY in embed.slurm" in " ".join(done.stdout.split())
    assert "hush-hush" not in done.stdout


def test_doctor_of_a_run_from_before_profiles_said_their_scheduler_asks_it(
    chatspace: Command, tmp_path: Path
) -> None:
    assert chatspace("setup", "spec.yaml").returncode == ExitCode.DONE
    (path,) = (tmp_path / "ws" / "runs").glob("*/plan.json")
    plan = json.loads(path.read_text())
    assert plan["cluster"].pop("scheduler") == "none"
    path.write_text(json.dumps(plan))
    done = chatspace("doctor", str(path.parent), "--json")
    checks = {item["check"] for item in json.loads(done.stdout)["checks"]}
    assert "scheduler" in checks
    assert "Traceback" not in done.stderr
