from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chatspace.errors import SpecError
from chatspace.jobs.causes import cause_of_exit
from chatspace.jobs.directives import directive_lines, lanes_of
from chatspace.jobs.events import read_events
from chatspace.jobs.render import (
    ArrayJob,
    array_jobs,
    missing_command,
    ranges_text,
    render_array,
    render_gather,
)
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from tests.plans import plan_of, split_plan

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    "two words",
    "it's",
    'say "hi"',
    "$HOME",
    "`id`",
    "a;b&c|d",
    "naïve-日本語",
    "back\\slash",
    "#x",
]


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")


def container_plan(**more: object) -> Plan:
    slurm = {"profile": "nyu_torch", "account": "pr_1_general", "array_parallelism": 4}
    return plan_of(slurm=slurm, container={"image": "/scratch/ada/cuda.sif"}, **more)


def scripts() -> dict[str, str]:
    plain, inside = plan_of(), container_plan()
    conda = plan_of(slurm={"profile": "princeton"})
    several = plan_of(splits=(split_plan("train"), split_plan("test", rows=300)))
    lanes = plan_of(slurm={"gpus_per_task": 4, "nodes": 2, "gpu_type": "h200"})
    repair = ArrayJob(
        split="test", rows=200, count=2, script="embed.slurm", repair=3, exclude=("n1", "n2")
    )
    return {
        "embed-generic.slurm": render_array(plain, array_jobs(plain)[0]),
        "embed-container.slurm": render_array(inside, array_jobs(inside)[0]),
        "embed-modules.slurm": render_array(conda, array_jobs(conda)[0]),
        "embed-split.slurm": render_array(several, array_jobs(several)[1]),
        "embed-lanes.slurm": render_array(lanes, array_jobs(lanes)[0]),
        "embed-repair.slurm": render_array(several, repair),
        "gather-container.slurm": render_gather(inside),
    }


def check_shell(text: str, folder: Path, *options: str) -> None:
    path = folder / "script.sh"
    path.write_text(text, encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)
    shellcheck = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
    done = subprocess.run(
        [shellcheck, *options, str(path)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout


def test_render_every_case_equals_its_golden_file() -> None:
    rendered = scripts()
    assert {path.name for path in GOLDEN.glob("*.slurm")} == set(rendered)
    for name, text in rendered.items():
        assert text == (GOLDEN / name).read_text(encoding="utf-8"), name


def test_render_every_script_passes_bash_and_shellcheck(tmp_path: Path) -> None:
    for text in scripts().values():
        check_shell(text, tmp_path)


@pytest.mark.parametrize("value", HOSTILE)
def test_render_hostile_values_stay_one_word(value: str, tmp_path: Path) -> None:
    folder = tmp_path / "ws" / value
    (folder / "runs" / "docs-01234567").mkdir(parents=True)
    image = tmp_path / f"{value}.sif"
    image.touch()
    runtime = tmp_path / "bin" / "apptainer"
    runtime.parent.mkdir()
    runtime.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    runtime.chmod(0o755)
    plan = replace(plan_of(), workspace=str(folder))
    plan = replace_cluster(
        plan,
        account=value,
        log_dir=f"/tmp/logs {value}",
        image=str(image),
        runtime="auto",
        venv=f"/venv/{value}",
        env={"X": value},
    )
    # SC2016 asks whether `$` in single quotes was meant to expand: here it must not.
    check_shell(render_array(plan, array_jobs(plan)[0]), tmp_path, "--exclude=SC2016")
    text = render_gather(plan)
    check_shell(text, tmp_path, "--exclude=SC2016")
    path = f"{runtime.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, timeout=20, env={"PATH": path}
    )
    head, tail = done.stdout.split("if [[ ! -r $0/bin/activate ]]; then")
    bound = ["--bind", str(folder), "--bind", "/data/docs", "--bind", "/models/tiny"]
    assert head.split("\n  ")[0].splitlines() == ["exec", *bound, str(image), "bash", "-c"]
    assert 'source "$0/bin/activate"' in tail
    words = tail.splitlines()[-5:]
    plan_path = f"{folder}/runs/docs-01234567/plan.json"
    assert words == ["python", "-m", "chatspace", "gather", plan_path]
    assert tail.splitlines()[-6] == f"/venv/{value}"


def test_render_multi_line_variable_reaches_the_task(tmp_path: Path) -> None:
    (tmp_path / "runs" / "docs-01234567").mkdir(parents=True)
    plan = replace_cluster(plan_of(tmp_path), env={"X": "one\ntwo"})
    text = render_gather(plan).split("# Exit code 3")[0] + 'printf "%s" "$X"\n'
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=20)
    assert done.stdout == "one\ntwo"


def test_render_line_break_in_a_path_is_refused() -> None:
    plan = replace(plan_of(), workspace="/tmp/two\nlines")
    with pytest.raises(SpecError, match="line breaks are not allowed"):
        render_array(plan, array_jobs(plan)[0])


def test_render_path_that_cannot_be_bound_is_refused() -> None:
    plan = plan_of("/tmp/a:b", container={"image": "/x.sif"})
    with pytest.raises(SpecError, match="cannot be bound"):
        render_array(plan, array_jobs(plan)[0])


def test_render_gather_asks_for_no_gpus_and_no_whole_node() -> None:
    extra = {"exclusive": True, "gpus": 4, "gres": "gpu:4", "comment": "a b", "exclude": "n7"}
    plan = plan_of(slurm={"extra": extra})
    array = render_array(plan, array_jobs(plan)[0])
    assert all(f"#SBATCH --{key}" in array for key in extra)
    gather = render_gather(plan)
    assert [key for key in extra if f"#SBATCH --{key}" in gather] == ["comment", "exclude"]


def test_render_directive_of_chatspace_in_extra_is_refused() -> None:
    plan = plan_of(slurm={"extra": {"array": "0-3"}})
    with pytest.raises(SpecError, match=r"slurm\.extra\.array"):
        render_array(plan, array_jobs(plan)[0])


@pytest.mark.parametrize(
    ("exit_code", "noted"), [(0, False), (75, False), (1, True), (137, True), (4, True)]
)
def test_render_task_that_ends_badly_is_noted_in_its_event_log(
    exit_code: int, noted: bool, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path / "it's 100%")
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    run.events.mkdir(parents=True)
    plan = replace_cluster(plan, venv=None, setup=[f"python() {{ return {exit_code}; }}"])
    env = {
        "PATH": os.environ["PATH"],
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_RESTART_COUNT": "1",
        "SLURMD_NODENAME": "n7",
    }
    text = render_array(plan, array_jobs(plan)[0]).replace("scontrol requeue", "true")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=20, env=env)
    assert done.returncode == exit_code, done.stderr
    events, _ = read_events(run.event_log("train", 2))
    expected = {"event": "ended", "attempt": "12_2.r1", "host": "n7", "exit_code": exit_code}
    assert [expected] * noted == [
        {key: event[key] for key in event if key not in ("time", "oom_kills")} for event in events
    ]


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group with 64 MiB of memory, in whichever version this machine has."""
    groups = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    version1 = [path for _, names, path in groups if "memory" in names.split(",")]
    version2 = [path for _, names, path in groups if not names]
    root = Path("/sys/fs/cgroup/memory") if version1 else Path("/sys/fs/cgroup")
    group = root / (version1 or version2)[0].lstrip("/") / f"chatspace-test-{os.getpid()}"
    if os.getuid() != 0:
        pytest.skip("only root makes control groups")
    group.mkdir()
    limit = "memory.limit_in_bytes" if version1 else "memory.max"
    (group / limit).write_text(str(64 << 20))
    yield group
    group.rmdir()


def test_render_task_that_the_kernel_killed_for_memory_is_told_from_a_kill(
    tmp_path: Path, small_memory: Path
) -> None:
    plan = plan_of(tmp_path)
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    run.events.mkdir(parents=True)
    greedy = f"{sys.executable} -c 'b = bytearray(200 << 20)'"
    plan = replace_cluster(plan, venv=None, setup=[f"python() {{ {greedy}; }}"])
    script = tmp_path / "embed.slurm"
    script.write_text(render_array(plan, array_jobs(plan)[0]))
    env = {
        "PATH": os.environ["PATH"],
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "0",
    }
    inside = f'echo $$ >"{small_memory}/cgroup.procs" && exec bash "{script}"'
    done = subprocess.run(["bash", "-c", inside], env=env, capture_output=True, timeout=60)
    assert done.returncode == 137, done.stderr
    (event,) = read_events(run.event_log("train", 0))[0]
    assert event["oom_kills"] >= 1
    assert cause_of_exit(event["exit_code"], event["oom_kills"]) == "host_memory"


def test_lanes_are_one_for_each_gpu_of_each_node() -> None:
    plan = plan_of(slurm={"gpus_per_task": 4, "nodes": 2, "gpu_type": "h200"})
    assert lanes_of(plan.cluster) == 8
    text = render_array(plan, array_jobs(plan)[0])
    assert "#SBATCH --ntasks-per-node=4\n" in text and "#SBATCH --gres=gpu:h200:4\n" in text
    by_process = replace_cluster(plan, gpu_directive="gpus-per-task")
    text = render_array(by_process, array_jobs(plan)[0])
    assert "#SBATCH --gpus-per-task=h200:1\n" in text
    assert lanes_of(plan_of(slurm={"gpus_per_task": 0}).cluster) == 1


def test_directive_lines_zero_stays_and_false_goes() -> None:
    lines = directive_lines({"nice": 0, "requeue": True, "exclusive": False, "qos": None})
    assert lines == ["#SBATCH --nice=0", "#SBATCH --requeue"]


def test_array_jobs_one_split_is_one_script() -> None:
    assert [job.script for job in array_jobs(plan_of())] == ["embed.slurm"]


def test_array_jobs_above_the_array_limit_are_windows_without_gap() -> None:
    plan = plan_of(splits=(split_plan(rows=2500, count=25),))
    plan = replace_cluster(plan, max_array_size=10)
    jobs = array_jobs(plan)
    assert [(job.offset, job.count) for job in jobs] == [(0, 10), (10, 10), (20, 5)]
    assert jobs[1].script == "embed-window2.slurm"
    text = render_array(plan, jobs[1])
    assert "#SBATCH --array=0-9" in text
    assert "index=$((SLURM_ARRAY_TASK_ID + 10))" in text


def test_missing_command_names_array_indexes_of_the_right_window() -> None:
    plan = replace_cluster(plan_of(splits=(split_plan(rows=2500, count=25),)), max_array_size=10)
    command = missing_command(plan, plan.splits[0], [3, 11, 12, 24])
    folder = "/workspace/runs/docs-01234567"
    assert command == (
        f"sbatch --array=3 {folder}/embed-window1.slurm && "
        f"sbatch --array=1-2 {folder}/embed-window2.slurm && "
        f"sbatch --array=4 {folder}/embed-window3.slurm"
    )


def test_ranges_text_joins_neighbours() -> None:
    assert ranges_text([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10"


def replace_cluster(plan: Plan, **changes: object) -> Plan:
    return replace(plan, cluster={**plan.cluster, **changes})
