"""The doctor without a cluster: each check on what it may meet."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from chatspace.checks import cluster, container, inputs, inside, machine, storage
from chatspace.checks.doctor import examine_run, refuse_unfit, render_findings
from chatspace.checks.findings import Finding, failed, outcome, passed, warned
from chatspace.checks.secrets import no_secret_in
from chatspace.errors import UnfitEnvironmentError
from chatspace.jobs.render import render_doctor
from chatspace.jobs.setup import plan_run, render_all
from chatspace.plan.model import Plan
from tests.conftest import SpecMaker
from tests.plans import plan_of

Planner = Callable[..., Plan]


@pytest.fixture
def planned(make_spec: SpecMaker) -> Planner:
    """Returns a maker of plans of real data and a real model."""
    return lambda **sections: plan_run(make_spec(**sections))


def bare_path(tmp_path: Path) -> Path:
    """Returns a folder with what a batch script calls: no SLURM, no container runtime."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "dirname", "hostname", "sleep", "touch", "env"):
        (folder / name).symlink_to(shutil.which(name) or "")
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Returns a maker of programs on the PATH, which has nothing else but what the shell needs."""
    folder = bare_path(tmp_path)
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, lines: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)

    return make


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def only(findings: Any) -> Finding:
    (finding,) = list(findings)
    return finding


# Scheduler


def test_scheduler_absent_is_a_warning_with_the_way_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = only(cluster.scheduler_answers())
    assert (finding.state, "chatspace run" in finding.next_step) == ("warn", True)
    assert cluster.other_nodes() == 0


def test_scheduler_that_does_not_answer_fails_with_its_words(
    programs: Callable[[str, str], None],
) -> None:
    programs("sbatch", "exit 1")
    programs("scontrol", "echo 'Slurmctld(primary) at x is DOWN'; exit 1")
    programs(
        "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    finding = only(cluster.scheduler_answers())
    assert finding.state == "fail"
    assert "Unable to contact slurm controller" in finding.seen


def test_scripts_that_sbatch_refuses_fail_with_its_words_and_the_next_step(
    programs: Callable[[str, str], None],
) -> None:
    programs("sbatch", "exit 1")

    class Refusing:
        def check(self, script: str) -> None:
            raise UnfitEnvironmentError(
                "sbatch refused: Invalid account. Correct the slurm section of the spec."
            )

    scripts = {"embed.slurm": "a", "gather.slurm": "g"}
    refusing: Any = Refusing()
    finding = only(cluster.scripts_are_taken(plan_of(), scripts, "gather.slurm", refusing))
    assert (finding.state, finding.seen) == ("fail", "embed.slurm: sbatch refused: Invalid account")
    assert finding.next_step == "Correct the slurm section of the spec."


def test_other_nodes_are_those_with_another_address(
    programs: Callable[[str, str], None],
) -> None:
    programs("sinfo", "printf 'n1 127.0.0.1\\nn2 10.0.0.2\\nn2 10.0.0.2\\nn3 n3.cluster\\n'")
    assert cluster.other_nodes() == 2


# Storage


def test_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = storage.folder_is_fit("logs", tmp_path / "file" / "logs", 0)
    assert (finding.state, finding.check) == ("fail", "logs")
    assert "Not a directory" in finding.seen


def test_folder_on_a_local_file_system_warns_where_there_are_other_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(storage, "MOUNTS", mounts)
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path}/shared\\040one nfs4 rw 0 0\n")
    (tmp_path / "shared one").mkdir()
    local, shared = tmp_path / "a" / "b", tmp_path / "shared one" / "b"
    assert storage.folder_is_fit("x", local, 0).state == "pass"
    warning = storage.folder_is_fit("x", local, 7)
    assert (warning.state, "ext4" in warning.seen, "7 others" in warning.seen) == (
        "warn",
        True,
        True,
    )
    assert storage.folder_is_fit("x", shared, 7).state == "pass"
    assert "(nfs4)" in storage.folder_is_fit("x", shared, 7).seen
    assert not local.exists()
    mounts.unlink()
    assert storage.folder_is_fit("x", local, 7).state == "pass"


@pytest.mark.parametrize(
    ("free", "files", "expected"),
    [
        (10**12, 10**6, {"space": "pass", "files": "pass"}),
        (500_000, 10**6, {"space": "warn", "files": "pass"}),
        (1000, 3, {"space": "fail", "files": "fail"}),
    ],
)
def test_room_is_compared_with_what_will_be_written(
    free: int, files: int, expected: dict[str, str], planned: Planner, monkeypatch: Any
) -> None:
    plan = planned(output={"dtype": "float32"})
    size = storage.estimated_bytes(plan)
    assert size is not None
    free = size if free == 500_000 else free

    class Stat:
        f_bavail, f_frsize, f_favail, f_files = free, 1, files, 10**7

    monkeypatch.setattr(storage.os, "statvfs", lambda path: Stat)
    assert states(list(storage.room_for(plan))) == expected


def test_room_of_a_run_whose_shards_are_there_is_none(planned: Planner, monkeypatch: Any) -> None:
    plan = planned()
    monkeypatch.setattr(storage, "count_shards", lambda folder, n: n)
    space, files = storage.room_for(plan)
    assert "about 0 B to be written" in space.seen
    assert files.state == "pass"


# Inputs


def test_model_and_dataset_on_disk_pass(planned: Planner) -> None:
    plan = planned()
    assert only(inputs.model_is_there(plan, 0)).state == "pass"
    assert only(inputs.dataset_is_there(plan, 0)).seen.startswith("1 file, ")


@pytest.mark.parametrize(
    ("offline", "model", "state"),
    [
        (True, {}, "fail"),
        (True, {"cached": True}, "warn"),
        (False, {"cached": True}, "warn"),
        (True, {"path": "/nowhere"}, "fail"),
    ],
)
def test_model_that_is_not_staged_says_the_command_that_stages_it(
    offline: bool, model: dict[str, Any], state: str
) -> None:
    plan = plan_of()
    plan = replace(
        plan,
        model={"name": "org/x", "path": None, **model},
        cluster={**plan.cluster, "offline": offline},
    )
    finding = only(inputs.model_is_there(plan, 0))
    assert (finding.state, finding.next_step) == (
        state,
        "Run `chatspace stage setups/docs.yaml`.",
    )


def test_dataset_file_that_is_gone_or_shorter_fails(planned: Planner, tmp_path: Path) -> None:
    plan = planned()
    path = Path(plan.splits[0].files[0].path)
    path.write_bytes(path.read_bytes()[:-1])
    finding = only(inputs.dataset_is_there(plan, 0))
    assert (finding.state, str(path) in finding.seen) == ("fail", True)


# Secrets


@pytest.mark.parametrize("key", ["HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "MY_SECRET"])
def test_secret_in_a_script_fails_with_key_and_file_and_never_the_value(key: str) -> None:
    value = "very-secret-value"
    texts = {"embed.slurm": f"export X={value}", "plan.json": "{}", "gather.slurm": value}
    finding = only(no_secret_in(texts, {key: value, "PATH": "/bin"}))
    assert finding.state == "fail"
    assert f"the value of {key} in embed.slurm, gather.slurm" in finding.seen
    assert value not in finding.line()


def test_secret_that_needs_quoting_is_found_as_scripts_and_json_write_it() -> None:
    value = """it's a "secret" value"""
    texts = {"a.slurm": f"export X={shlex.quote(value)}", "plan.json": json.dumps({"X": value})}
    finding = only(no_secret_in(texts, {"MY_TOKEN": value}))
    assert "the value of MY_TOKEN in a.slurm, plan.json" in finding.seen


def test_secret_by_its_look_fails_and_short_values_or_other_names_do_not() -> None:
    token = "hf_" + "a1B2" * 9
    assert only(no_secret_in({"spec.yaml": token}, {})).state == "fail"
    harmless = {"HF_TOKEN": "1", "HOME": "/home/ada", "HF_TOKEN_PATH": "/home/ada/token"}
    finding = only(no_secret_in({"embed.slurm": "1 /home/ada /home/ada/token"}, harmless))
    assert finding.state == "pass"


# Container and environment


def test_image_and_binds_that_are_absent_fail(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path / "ws", container={"image": str(tmp_path / "x.sif"), "binds": ["/nope:/y"]}
    )
    assert "No such file" in only(container.image_is_there(plan)).seen
    assert "/nope" in only(container.binds_exist(plan)).seen
    (tmp_path / "x.sif").write_bytes(b"image")
    assert "5 B" in only(container.image_is_there(plan)).seen
    remote = plan_of(tmp_path, container={"image": "docker://debian"})
    assert only(container.image_is_there(remote)).state == "warn"


@pytest.mark.slow
def test_environment_is_looked_at_by_the_lines_of_the_batch_script(
    planned: Planner, tmp_path: Path
) -> None:
    plan = planned()
    found = list(container.environment_works(plan))
    assert states(found) == {"python": "pass", "imports": "pass"}
    assert "torch " in found[1].seen
    assert not (tmp_path / "ws").exists()


def test_environment_without_a_venv_or_chatspace_fails_with_the_next_step(
    planned: Planner, tmp_path: Path
) -> None:
    plan = planned(container={"venv": str(tmp_path / "venv")})
    finding = only(container.environment_works(plan))
    assert (finding.check, finding.state) == ("environment", "fail")
    assert "no virtual environment on" in finding.seen
    assert "container.venv" in finding.next_step
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text(f"export PATH={tmp_path}/venv/bin:$PATH\n")
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/bash\necho "/x/python: No module named chatspace" >&2\nexit 1\n')
    python.chmod(0o755)
    finding = only(container.environment_works(plan))
    assert "No module named chatspace (exit code 1)" in finding.seen
    assert finding.next_step.startswith("Install chatspace")


def test_environment_that_takes_too_long_is_a_warning_and_leaves_no_process(
    planned: Planner, tmp_path: Path
) -> None:
    marker = tmp_path / "still"
    profile = tmp_path / "slow.yaml"
    profile.write_text(f"name: slow\nsetup: ['sleep 3; touch {marker}']\n")
    plan = planned(slurm={"profile": str(profile)})
    finding = only(container.environment_works(plan, timeout_s=0.5))
    assert (finding.state, "--node" in finding.next_step) == ("warn", True)
    time.sleep(3.5)
    assert not marker.exists()


def test_environment_without_a_runtime_here_is_a_warning(
    planned: Planner, tmp_path: Path, programs: Callable[[str, str], None]
) -> None:
    (tmp_path / "x.sif").write_bytes(b"image")
    plan = planned(container={"image": str(tmp_path / "x.sif"), "venv": "/venv"})
    finding = only(container.environment_works(plan))
    assert (finding.state, "neither apptainer" in finding.seen) == ("warn", True)
    programs("apptainer", "echo 'FATAL: broken' >&2; exit 255")
    finding = only(container.environment_works(plan))
    assert finding.state == "fail"
    assert "does not start inside the image: FATAL: broken (exit code 255)" in finding.seen


def test_doctor_script_has_the_run_s_directives_and_few_minutes(tmp_path: Path) -> None:
    plan = plan_of(
        slurm={"profile": "nyu_torch", "account": "a b", "time": "08:00:00"},
        container={"image": "/i.sif", "venv": "/v", "binds": ["/scratch"], "env": {"A": "1"}},
    ) if "USER" in os.environ else plan_of(slurm={"account": "a b"})  # fmt: skip
    folder = tmp_path / "it's %j"
    text = render_doctor(plan, folder)
    (tmp_path / "s").write_text(text)
    assert subprocess.run(["bash", "-n", str(tmp_path / "s")]).returncode == 0
    assert "#SBATCH --account='a b'\n" in text
    assert "#SBATCH --time=5\n" in text
    assert "%%j/job.out" in text
    assert "#SBATCH --array" not in text
    assert text.rstrip().splitlines()[-1].split(" doctor --inside ")[0].endswith("-m chatspace")


# Inside


def test_findings_survive_other_output_and_a_torn_line() -> None:
    lines = ["noise", inside.MARK + json.dumps(passed("a", "b").to_json()), inside.MARK + '{"che']
    assert inside.read_findings("\n".join(lines)) == [passed("a", "b")]
    assert not inside.is_done("\n".join(lines))
    assert inside.is_done(inside.MARK + json.dumps(inside.DONE))


def test_python_of_another_version_is_a_warning() -> None:
    plan = replace(plan_of(), provenance={"tool_version": "0.0.1"})
    assert "planned by 0.0.1" in only(inside.python_is_right(plan)).seen


def test_imports_that_are_missing_fail_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def slice_work(self) -> None:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    plan, broken = plan_of(), cast("Any", Broken())
    monkeypatch.setitem(inside.KINDS, "embed", broken)
    finding = only(inside.imports_work(plan))
    assert finding.state == "fail"
    assert finding.next_step.endswith("-m pip install torch")


def test_key_that_is_missing_fails_and_kinds_without_one_have_no_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs this
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert list(inside.kind_is_ready(plan_of())) == []
    url = {"base_url": "https://api.openai.com/v1", "provider": "openai"}
    model = {**url, "api_version": None, "timeout_s": 1.0}
    spec = {"model": {"name": "tiny"}, "requests": {}}
    plan = replace(plan_of(), kind="embed_openai", model=model, spec=spec)
    finding = only(inside.kind_is_ready(plan))
    assert (finding.state, finding.check) == ("fail", "key")
    assert finding.seen == (
        "No key: OPENAI_API_KEY is not set, and https://api.openai.com/v1 needs one"
    )
    assert finding.next_step.startswith("`export OPENAI_API_KEY=...`")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    assert only(inside.kind_is_ready(plan)).state == "pass"


@pytest.mark.parametrize(
    ("asked", "answered", "seen", "state", "words"),
    [
        (100.0, 100.5, 101.0, "pass", "to 0.5 s"),
        (100.0, 160.0, 101.0, "warn", "at least 59 s behind"),
        (100.0, 40.0, 101.0, "warn", "at least 60 s ahead of"),
        (100.0, 100.0, 119.0, "pass", "to 19.0 s"),
    ],
)
def test_clock_is_judged_by_what_the_answer_proves(
    asked: float, answered: float, seen: float, state: str, words: str
) -> None:
    finding = inside.clock_finding(asked, answered, seen)
    assert (finding.state, words in finding.seen) == (state, True)


def test_clock_without_an_answer_is_a_warning(tmp_path: Path) -> None:
    assert only(inside.clocks_agree(tmp_path, timeout_s=0.2)).state == "warn"


def test_network_is_looked_for_only_where_tasks_ask_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    plan = plan_of()
    assert only(inside.network_is_not_needed(plan)).state == "pass"
    hub = replace(plan, model={"name": "org/x", "path": None})
    finding = only(inside.network_is_not_needed(hub))
    assert (finding.state, "chatspace stage" in finding.next_step) == ("fail", True)


@pytest.mark.parametrize(
    ("count", "directive", "state"),
    [(2, "gres", "pass"), (1, "gres", "fail"), (1, "gpus-per-task", "pass")],
)
def test_gpus_that_torch_sees_are_compared_with_those_asked_for(
    count: int, directive: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: count, get_device_name=lambda i: "H200"
    )
    torch = SimpleNamespace(cuda=cuda, __version__="2", version=SimpleNamespace(cuda="13.0"))
    monkeypatch.setitem(sys.modules, "torch", cast("Any", torch))
    plan = plan_of()
    cluster_facts = {**plan.cluster, "gpus_per_task": 2, "gpu_directive": directive}
    finding = only(inside.gpu_is_seen(replace(plan, cluster=cluster_facts)))
    assert finding.state == state
    assert ("H200" in finding.seen) is (state == "pass")


# Machine


def test_gpu_driver_that_fails_is_a_warning(programs: Callable[[str, str], None]) -> None:
    programs("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert only(machine.gpu_is_here()).state == "warn"
    programs("nvidia-smi", "echo 'NVIDIA H200, 143771 MiB'")
    assert only(machine.gpu_is_here()).seen == "1: NVIDIA H200, 143771 MiB"


# All together


def test_check_that_breaks_is_a_warning_with_its_error() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("two\nlines")

    finding = only(outcome("x", broken))
    assert (finding.state, finding.seen) == (
        "warn",
        "the check itself broke: RuntimeError: two lines",
    )


def test_table_fits_eighty_columns() -> None:
    found = [passed("a", "word " * 40), failed("b", "x" * 300, "Do it."), warned("c", "d", "e")]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_findings(found))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("-> Do it." in line for line in lines)


def test_refuse_unfit_tells_warnings_and_raises_with_every_failure_and_writes_nothing(
    planned: Planner, tmp_path: Path
) -> None:
    plan = planned(container={"image": "/absent.sif", "binds": ["/nope"]})
    told: list[str] = []
    with pytest.raises(UnfitEnvironmentError) as caught:
        refuse_unfit(plan, render_all(plan), told.append)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["fail  image", "fail  binds"]
    assert "--no-doctor" in lines[0]
    assert not (tmp_path / "ws").exists()


@pytest.mark.slow
def test_examine_run_of_a_fit_run_passes_and_leaves_nothing(
    planned: Planner, tmp_path: Path
) -> None:
    plan = planned()
    found = examine_run(plan, render_all(plan))
    assert set(states(found).values()) == {"pass"}, found
    assert not (tmp_path / "ws").exists()
