"""The very scripts that a user submits, on a real SLURM and in a real container."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from chatspace.api import open_run
from chatspace.jobs.gather import verify_run
from chatspace.jobs.setup import ask_max_array_size
from tests.slurm.cluster import NEWER_SLURM, sbatch, wait_for_jobs
from tests.slurm.conftest import Project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(420)]
JOBS_TIMEOUT_S = 300
REPOSITORY = Path(__file__).resolve().parents[2]

MakeProject = Callable[..., Project]


def the_run(project: Project) -> Any:
    (plan,) = (project.folder / "ws" / "runs").glob("*/plan.json")
    return open_run(plan)


def final_states(job: str, env: dict[str, str]) -> set[str]:
    """Returns how the elements of a job ended; sacct may call a quick one by the job's bare id."""
    return set(wait_for_jobs([job], JOBS_TIMEOUT_S, env).values())


def attempts(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for attempt in manifest["tasks"] if attempt["state"] == "finished"]


def test_sbatch_embed_alone_does_the_whole_job_throttled(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=400)
    user.write_spec(slices={"count": 8}, slurm={"array_parallelism": 3})
    setup = subprocess.run(
        [sys.executable, str(REPOSITORY / "setup_embed.py"), "--config", "spec.yaml"],
        cwd=user.folder, env=user.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert setup.returncode == 0, setup.stderr
    assert setup.stdout.rstrip().endswith("sbatch embed.slurm")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    states = wait_for_jobs([job], JOBS_TIMEOUT_S, slurm)
    assert states == {f"{job}_{i}": "COMPLETED" for i in range(8)}, user.logs()
    run = the_run(user)
    manifest = run.manifest()  # published by the last task: nobody called gather
    assert manifest["rows_embedded"] == 400
    assert {a["slurm"]["array_job_id"] for a in attempts(manifest)} == {job}
    assert verify_run(run.plan) == {"train": 10}
    assert most_at_once(job, slurm) <= 3


def most_at_once(job: str, env: dict[str, str]) -> int:
    """Returns how many elements ran at the same time, by their start and end in accounting."""
    command = ["sacct", "-nPX", "-o", "Start,End", "-j", job]
    text = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30).stdout
    spans = [[datetime.fromisoformat(t) for t in line.split("|")] for line in text.splitlines()]
    # Times are whole seconds: an element that ends in the second another starts ended before it.
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


def test_submit_two_splits_gathers_behind_both_arrays(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(splits=("train", "test"), rows=100)
    user.write_spec(dataset={"splits": ["train", "test"]}, slices={"count": 2})
    said = user.chatspace("submit", "spec.yaml")
    jobs = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]
    assert len(jobs) == 3
    states = wait_for_jobs(jobs, JOBS_TIMEOUT_S, slurm)
    assert set(states.values()) == {"COMPLETED"}, (states, user.logs())
    run = the_run(user)
    assert run.manifest("train")["rows_total"] == run.manifest("test")["rows_total"] == 100
    assert run.status().state == "complete"
    assert "gathered" in user.chatspace("status", str(run.folder))
    assert f"{jobs[0]}_0" in {a["attempt"].split(".")[0] for a in run.manifest("train")["tasks"]}


def test_gather_job_behind_a_cancelled_task_fails_and_says_what_is_missing(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=120)
    user.write_spec(slices={"count": 3}, slurm={"array_parallelism": 1})
    said = user.chatspace("submit", "spec.yaml", "--no-doctor")
    array, gather = (line.split()[1].rstrip(":") for line in said.splitlines() if "job " in line)
    subprocess.run(["scancel", f"{array}_2"], env=slurm, check=True, timeout=30)
    states = wait_for_jobs([array, gather], JOBS_TIMEOUT_S, slurm)
    assert states[gather] == "FAILED", (states, user.logs())
    log = next(user.folder.glob(f"logs/*-{gather}.out")).read_text()
    assert "1 of 3 shards missing" in log
    run = the_run(user)
    command = f"sbatch --array=2 {run.folder}/embed.slurm"
    assert command in log
    repair = sbatch(run.folder / "embed.slurm", user.folder, "--array=2", env=slurm)
    assert wait_for_jobs([repair], JOBS_TIMEOUT_S, slurm) == {f"{repair}_2": "COMPLETED"}, (
        user.logs()
    )
    assert run.manifest()["rows_embedded"] == 120


def test_task_signalled_before_its_walltime_is_requeued_alone_and_finishes(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=6000)
    user.write_spec(slices={"count": 2}, output={"rows_per_shard": 100})
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    run = the_run(user)
    wait_until(lambda: run.status().splits[0].shards_done >= 2, user)
    signal = ["scancel", "--batch", "--signal=USR1", f"{job}_1"]
    subprocess.run(signal, env=slurm, check=True, timeout=30)
    states = wait_for_jobs([job], JOBS_TIMEOUT_S, slurm)
    assert states == {f"{job}_0": "COMPLETED", f"{job}_1": "COMPLETED"}, user.logs()
    by_name = {a["attempt"]: a["state"] for a in run.manifest()["tasks"]}
    assert by_name[f"{job}_1.r0"] == "interrupted"
    assert by_name[f"{job}_1.r1"] == "finished"
    assert f"{job}_0.r1" not in by_name
    assert verify_run(run.plan) == {"train": 60}


def wait_until(condition: Callable[[], bool], user: Project) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, user.logs()
        time.sleep(0.2)


@pytest.mark.container
def test_task_really_runs_inside_the_container_image(
    project: MakeProject, slurm: dict[str, str], sif: Path
) -> None:
    user = project(rows=80)
    venv = Path(sys.prefix)
    user.write_spec(
        slices={"count": 2},
        container={
            "image": str(sif),
            "venv": str(venv),
            # The tests' own environment: it and its base interpreter are bound where they lie.
            "binds": [str(venv), sys.base_prefix, str(REPOSITORY)],
            "env": {"CHATSPACE_TEST_MARK": "two words"},
        },
    )
    user.env.update(slurm)
    user.chatspace("setup", "spec.yaml")
    script = (user.folder / "embed.slurm").read_text()
    assert "--nv" not in script
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    states = wait_for_jobs([job], JOBS_TIMEOUT_S, slurm)
    assert set(states.values()) == {"COMPLETED"}, user.logs()
    manifest = the_run(user).manifest()
    assert {a["container"] for a in attempts(manifest)} == {str(sif)}
    assert manifest["container"]["image"] == str(sif)
    assert len(manifest["container"]["sha256"]) == 64


@pytest.mark.container
def test_task_without_the_image_fails_with_a_clear_line(
    project: MakeProject, slurm: dict[str, str], sif: Path
) -> None:
    user = project(rows=40)
    user.write_spec(container={"image": str(user.folder / "absent.sif")})
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    assert final_states(job, slurm) == {"FAILED"}
    assert "image cannot be read" in user.logs()


def test_submit_through_submitit_runs_each_slice_as_an_array_element(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=120)
    user.write_spec(slices={"count": 3})
    notebook = (
        "import json, chatspace\n"
        "run = chatspace.submit('spec.yaml', executor='submitit', cluster='slurm')\n"
        "run.wait(timeout_min=5)\n"
        "jobs = [job.job_id for job in run.jobs]\n"
        "print(json.dumps([jobs, run.vectors().shape, run.status().state]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", notebook],
        cwd=user.folder, env=user.env, capture_output=True, text=True, timeout=JOBS_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + user.logs()
    jobs, shape, state = json.loads(done.stdout.splitlines()[-1])
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    assert shape[0] == 120
    assert state == "complete"
    wait_for_jobs([jobs[0].split("_")[0]], JOBS_TIMEOUT_S, slurm)


@pytest.mark.one_slurm
@pytest.mark.parametrize("name", ["two words", "it's $HOME", 'a "quoted" #1 %j', "naïve-日本語"])
def test_hostile_folder_names_work_from_setup_to_manifest(
    name: str, project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(name, rows=40)
    user.write_spec(workspace="ws", dataset={"path": "data"})
    user.chatspace("setup", "spec.yaml")
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    assert final_states(job, slurm) == {"COMPLETED"}, user.logs()
    assert the_run(user).manifest()["rows_embedded"] == 40
    assert [p.name for p in (user.folder / "logs").iterdir()] == [
        f"{the_run(user).run_id}-{job}_0.out"
    ]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "two words"}, ["name", "two words"]),
        ({"name": "a\nb"}, ["name"]),
        ({"slurm": {"account": "a\nb"}}, ["slurm.account"]),
        ({"slurm": {"log_dir": "a\nb"}}, ["slurm.log_dir"]),
        ({"slurm": {"extra": {"array": "1-9"}}}, ["slurm.extra.array"]),
        ({"container": {"image": "/x\ny.sif"}}, ["container.image"]),
    ],
)
def test_hostile_values_that_no_script_can_hold_are_refused_in_one_line(
    section: dict[str, Any], words: list[str], project: MakeProject
) -> None:
    user = project(rows=10)
    user.write_spec(**section)
    said = user.chatspace("setup", "spec.yaml", code=2)
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not list(user.folder.glob("*.slurm"))


@pytest.mark.parametrize("key", ["account", "partition"])
def test_submit_values_that_slurm_refuses_end_with_its_own_words_and_write_nothing(
    key: str, project: MakeProject
) -> None:
    user = project(rows=10)
    user.write_spec(slurm={key: 'no "such" $thing'})
    said = user.chatspace("submit", "spec.yaml", code=4)
    assert len(said.splitlines()) == 1
    assert "sbatch refused" in said
    assert key in said
    assert not list((user.folder).glob("*.slurm"))
    assert not list((user.folder / "ws").rglob("plan.json"))


def test_wait_ends_soon_after_all_tasks_were_cancelled(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=10)
    user.write_spec(slurm={"extra": {"begin": "now+1hour"}})
    notebook = (
        "import subprocess, chatspace\n"
        "run = chatspace.submit('spec.yaml', executor='sbatch')\n"
        "for name in (run.run_id, f'{run.run_id}-gather'):\n"
        "    subprocess.run(['scancel', '--me', '--name', name], check=True)\n"
        "try: run.wait(timeout_min=5)\n"
        "except chatspace.errors.IncompleteError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import chatspace.errors\n" + notebook],
        cwd=user.folder, env=user.env, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "Nothing is running any more" in done.stdout, done.stderr


def test_submit_twice_while_jobs_are_active_is_refused(
    project: MakeProject, slurm: dict[str, str]
) -> None:
    user = project(rows=10)
    user.write_spec(slurm={"extra": {"begin": "now+1hour"}})
    said = user.chatspace("submit", "spec.yaml", "--no-doctor")
    jobs = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]
    try:
        assert f"scancel {' '.join(jobs)}" in user.chatspace("submit", "spec.yaml", code=4)
    finally:
        subprocess.run(["scancel", *jobs], env=slurm, check=True, timeout=30)


def test_array_above_the_limit_is_submitted_in_windows_of_one_run(
    project: MakeProject, slurm: dict[str, str], tmp_path: Path
) -> None:
    user = project(rows=120)
    profile = tmp_path / "small.yaml"
    profile.write_text("name: small\nmax_array_size: 2\ngpus_per_task: 0\ngpu_directive: none\n")
    user.write_spec(slices={"count": 3}, slurm={"profile": str(profile)})
    said = user.chatspace("submit", "spec.yaml", "--no-doctor")
    jobs = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]
    states = wait_for_jobs(jobs, JOBS_TIMEOUT_S, slurm)
    first, second, gather = jobs
    assert states == dict.fromkeys([f"{first}_0", f"{first}_1", f"{second}_0", gather], "COMPLETED")
    assert the_run(user).manifest()["rows_embedded"] == 120


def test_gpu_task_gets_one_of_the_cluster_s_gpus(
    project: MakeProject, slurm: dict[str, str], tmp_path: Path
) -> None:
    user = project(rows=40)
    profile = tmp_path / "gpus.yaml"
    profile.write_text(
        "name: gpus\npartition: gpu\ngpu_type: h200\ngpus_per_task: 1\nconstraint: h200\n"
    )
    slurm_section = {"profile": str(profile), "partition": None}
    user.write_spec(slurm=slurm_section, model={"device": "cpu"})
    user.chatspace("setup", "spec.yaml")
    assert "#SBATCH --gres=gpu:h200:1" in (user.folder / "embed.slurm").read_text()
    job = sbatch(user.folder / "embed.slurm", user.folder, env=slurm)
    assert final_states(job, slurm) == {"COMPLETED"}, user.logs()
    (attempt,) = the_run(user).manifest()["tasks"]
    assert attempt["cuda_visible_devices"] in {"0", "1", "2", "3"}
    assert attempt["slurm"]["node"] in {"n1", "n2"}


def test_slurm_that_tests_call_newer_is_24_11_or_later(slurm: dict[str, str]) -> None:
    command = ["scontrol", "show", "config"]
    said = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=30).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("SLURM_VERSION")]
    version = tuple(map(int, line.split("=")[1].strip().split(".")[:2]))
    is_newer = slurm.get("SLURM_PREFIX") == str(NEWER_SLURM)
    assert version >= ((24, 11) if is_newer else (21, 8))


def test_max_array_size_is_asked_of_the_cluster(
    slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", slurm["PATH"])
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    assert ask_max_array_size() == 1001
