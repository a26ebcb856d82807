"""The doctor and what it refuses, on a real SLURM and in a real container."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).resolve().parents[2]

MakeProject = Callable[..., Project]


def doctor(user: Project, *words: str, code: int = 0) -> dict[str, dict[str, str]]:
    """Returns what `chatspace doctor --json` found, by check."""
    done = subprocess.run(
        [sys.executable, "-m", "chatspace", "doctor", "spec.yaml", "--json", *words],
        cwd=user.folder, env=user.env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == code, done.stderr + done.stdout
    content = json.loads(done.stdout)
    assert content["fit"] is (code == 0)
    return {item["check"]: item for item in content["checks"]}


def in_the_queue(name: str, env: dict[str, str]) -> str:
    command = ["squeue", "--me", "-h", "-o", "%j"]
    text = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30).stdout
    return "\n".join(line for line in text.splitlines() if name in line)


def container_section(sif: Path) -> dict[str, Any]:
    # The tests' own environment: it and its base interpreter are bound where they lie.
    venv = Path(sys.prefix)
    binds = [str(venv), sys.base_prefix, str(REPOSITORY)]
    return {"image": str(sif), "venv": str(venv), "binds": binds}


def test_doctor_node_looks_at_a_compute_node_and_leaves_nothing(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project("it's a project", rows=40)
    user.write_spec()
    found = doctor(user, "--node")
    assert {item["state"] for item in found.values()} == {"pass"}, found
    on_node = {"python", "imports", "gpu", "workspace", "model", "dataset", "network", "clock"}
    assert {f"node {check}" for check in on_node} <= set(found)
    assert "partition cpu" in found["job"]["seen"]
    assert not (user.folder / "ws").exists()
    assert not (user.folder / "logs").exists()


@pytest.mark.container
def test_doctor_node_looks_inside_the_image(
    project: MakeProject, slurm: dict[str, str], sif: Path
) -> None:
    user = project(rows=40)
    user.env.update(slurm)
    user.write_spec(container=container_section(sif))
    found = doctor(user, "--node")
    assert {item["state"] for item in found.values()} == {"pass"}, found
    assert "sha256 " in found["image"]["seen"]
    assert found["imports"]["state"] == found["node imports"]["state"] == "pass"


@pytest.mark.container
@pytest.mark.one_slurm
@pytest.mark.parametrize(
    ("section", "check", "words"),
    [
        ({"image": "/absent.sif"}, "image", "No such file"),
        ({"binds": ["/absent"]}, "binds", "/absent does not exist"),
        ({"venv": "/absent"}, "environment", "no virtual environment in the container: /absent"),
        ({"venv": None}, "environment", "No module named chatspace"),
    ],
)
def test_submit_with_a_container_that_cannot_work_is_refused_and_writes_nothing(
    section: dict[str, Any],
    check: str,
    words: str,
    project: MakeProject,
    slurm: dict[str, str],
    sif: Path,
) -> None:
    user = project(rows=40)
    user.env.update(slurm)
    user.write_spec(container={**container_section(sif), **section})
    said = user.chatspace("submit", "spec.yaml", code=4)
    (line,) = (line for line in said.splitlines() if line.startswith("fail  "))
    assert line.startswith(f"fail  {check}: ")
    assert words in line
    assert not list(user.folder.rglob("*.slurm"))
    assert not (user.folder / "ws").exists()


def test_doctor_node_sees_that_the_gpu_has_no_driver(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=40)
    user.write_spec(
        slurm={"profile": "generic", "partition": "gpu", "gpu_type": "h200", "gpus_per_task": 2}
    )
    found = doctor(user, "--node", code=4)
    assert found["node gpu"]["state"] == "fail"
    assert "2 asked for, torch sees 0" in found["node gpu"]["seen"]
    assert found["node workspace"]["state"] == "pass"


@pytest.mark.parametrize(
    ("slurm_section", "words"),
    [
        ({"account": "nobody"}, "Invalid account"),
        ({"partition": "nowhere"}, "invalid partition"),
        ({"qos": "none"}, "Invalid qos"),
        ({"constraint": "h900"}, "Invalid feature"),
        ({"partition": "gpu", "time": "9-00:00:00"}, "time limit"),
    ],
)
def test_doctor_of_values_that_slurm_refuses_fails_with_its_words(
    slurm_section: dict[str, str], words: str, project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=10)
    user.write_spec(slurm=slurm_section)
    found = doctor(user, code=4)
    assert found["job"]["state"] == "fail"
    assert words in found["job"]["seen"]
    assert found["job"]["next_step"]


def test_doctor_node_waits_no_longer_than_it_was_told_and_cancels(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=10)
    user.write_spec(name="waiting", slurm={"extra": {"begin": "now+1hour"}})
    found = doctor(user, "--node", "--timeout-min", "0.1")
    assert found["node"]["state"] == "warn"
    assert "was PENDING after 0.1 min, and was cancelled" in found["node"]["seen"]
    assert in_the_queue("waiting", slurm) == ""


def test_doctor_node_of_a_job_that_dies_says_what_it_said_last(
    project: MakeProject, slurm: dict[str, str], tmp_path: Path
) -> None:
    user = project(rows=10)
    profile = tmp_path / "broken.yaml"
    profile.write_text(
        "name: broken\ngpus_per_task: 0\ngpu_directive: none\n"
        "setup: ['[[ -z ${SLURM_JOB_ID:-} ]] || { echo \"no such module: cuda\" >&2; exit 9; }']\n"
    )
    user.write_spec(slurm={"profile": str(profile)}, container={"venv": sys.prefix})
    found = doctor(user, "--node", code=4)
    assert found["imports"]["state"] == "pass"
    assert found["node"]["state"] == "fail"
    assert "ended as FAILED: no such module: cuda" in found["node"]["seen"]


def test_submit_shows_warnings_and_no_doctor_leaves_the_looking_out(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=40)
    lines = {"extra": {"begin": "now+1hour"}}
    user.write_spec(slurm=lines, container={"venv": "/absent"})
    assert "fail  environment: " in user.chatspace("submit", "spec.yaml", code=4)
    said = user.chatspace("submit", "spec.yaml", "--no-doctor")
    jobs = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]
    assert len(jobs) == 2
    subprocess.run(["scancel", *jobs], env=slurm, check=True, timeout=30)
    (run,) = (user.folder / "ws" / "runs").iterdir()
    assert "fail  environment: " in user.chatspace("submit", str(run), "--again", code=4)


def test_api_submit_is_refused_like_the_command(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=40)
    user.write_spec(container={"venv": "/absent"})
    notebook = (
        "import chatspace, sys; from chatspace.errors import UnfitEnvironmentError\n"
        "try: chatspace.submit('spec.yaml', executor=sys.argv[1])\n"
        "except UnfitEnvironmentError as error: print(error)\n"
    )
    for executor in ("sbatch", "submitit"):
        done = subprocess.run(
            [sys.executable, "-c", notebook, executor],
            cwd=user.folder, env=user.env, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert "fail  environment: " in done.stdout, done.stderr
        assert not (user.folder / "ws").exists()
