from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace import __version__
from chatspace.errors import ExitCode
from tests.conftest import texts, write_parquet

COMMANDS = [
    "doctor", "stage", "probe", "report",
    "setup", "submit", "resubmit", "cancel", "run", "task", "gather", "verify", "status", "logs",
    "env", "embed-hf", "schema", "demo", "version",
]  # fmt: skip
Command = Callable[..., subprocess.CompletedProcess[str]]

SPEC = """\
kind: embed
name: cli
workspace: ws
dataset: {{source: parquet, path: data}}
model: {{name: {model}, dtype: float32, device: cpu}}
output: {{rows_per_shard: 25}}
slices: {{count: 2}}
slurm: {{profile: local}}
"""


@pytest.fixture
def chatspace(tmp_path: Path, tiny_model: Path) -> Command:
    """Runs a command in a folder with 100 rows and a spec, without SLURM on the PATH."""
    write_parquet(tmp_path / "data" / "train.parquet", {"text": texts(100)})
    (tmp_path / "spec.yaml").write_text(SPEC.format(model=tiny_model))
    env = {**os.environ, "PATH": "/nonexistent", "COLUMNS": "100"}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "chatspace", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=120
        )

    return run


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "ws" / "runs").iterdir()
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_answers(name: str, chatspace: Command) -> None:
    done = chatspace(name, "--help")
    assert done.returncode == 0
    assert name in done.stdout


@pytest.mark.parametrize("command", ["embed-hf", "embed-dataset"])
def test_help_gives_each_flag_one_meaning(command: str, chatspace: Command) -> None:
    """At the beginning of a line, an option is explained and not mentioned."""
    lines = chatspace(command, "--help").stdout.splitlines()
    begins = [match[1] for line in lines if (match := re.match(r"  (-[^<A-Z]+)", line))]
    named = [name for begin in begins for name in re.split(r"[,/ ]+", begin.strip())]
    assert "--workers" in named
    assert sorted(named) == sorted(set(named))


def test_help_of_the_commands_is_whole_at_80_columns(chatspace: Command) -> None:
    done = chatspace("--help", COLUMNS="80")
    listed = done.stdout.partition("Commands:")[2]
    assert "..." not in listed


def test_help_lists_every_command(chatspace: Command) -> None:
    assert all(name in chatspace("--help").stdout for name in COMMANDS)


def test_version_prints_the_version_of_the_changelog(chatspace: Command) -> None:
    assert chatspace("version").stdout == f"chatspace {__version__}\n"
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert f"## {__version__}" in changelog


def test_schema_is_json_with_every_section(chatspace: Command) -> None:
    schema = json.loads(chatspace("schema").stdout)
    sections = {"dataset", "model", "encode", "output", "slices", "slurm", "container"}
    assert sections <= set(schema["properties"])


def test_setup_writes_scripts_here_and_in_the_run_folder_and_says_the_next_command(
    chatspace: Command, tmp_path: Path
) -> None:
    done = chatspace("setup", "--config", "spec.yaml")
    assert done.returncode == 0, done.stderr
    folder = shlex.quote(str(run_folder(tmp_path).relative_to(tmp_path)))
    assert done.stdout.splitlines()[-1].strip().endswith(f"chatspace run {folder}")
    assert "100 rows" in done.stdout
    assert "4 shards" in done.stdout
    assert "2 slices" in done.stdout
    for name in ("embed.slurm", "gather.slurm"):
        assert (tmp_path / name).read_text() == (run_folder(tmp_path) / name).read_text()
    assert (tmp_path / "logs").is_dir()
    assert (run_folder(tmp_path) / "spec.yaml").read_text() == (tmp_path / "spec.yaml").read_text()


def test_setup_says_what_is_one_in_the_singular_and_its_advice_runs(
    chatspace: Command, tmp_path: Path
) -> None:
    one = ("--set", "output.rows_per_shard=500", "--set", "slices.count=1")
    done = chatspace("setup", "spec.yaml", *one)
    assert "of text, 1 shard, 1 slice\n" in done.stdout
    assert "1 array task, no GPU" in done.stdout
    advised = shlex.split(done.stdout.splitlines()[-1])
    assert Path(advised[0]).name == "chatspace"
    ran = chatspace(*advised[1:])
    assert ran.returncode == 0, ran.stderr
    assert "100 rows, 1 shard, 1 slice\n" in ran.stdout


def test_setup_with_a_profile_of_slurm_says_sbatch(chatspace: Command) -> None:
    done = chatspace("setup", "spec.yaml", "--set", "slurm.profile=generic")
    assert done.stdout.splitlines()[-1].strip() == "sbatch embed.slurm"


def test_setup_twice_is_the_same_run_with_other_slices_too(
    chatspace: Command, tmp_path: Path
) -> None:
    chatspace("setup", "spec.yaml")
    again = chatspace(
        "setup", "spec.yaml", "--set", "slices.count=4", "--set", "slurm.time=12:00:00"
    )
    assert again.returncode == 0, again.stderr
    script = (run_folder(tmp_path) / "embed.slurm").read_text()
    assert "#SBATCH --array=0-3\n" in script
    assert "#SBATCH --time=12:00:00\n" in script


def test_submit_without_slurm_exits_4_in_one_line(chatspace: Command) -> None:
    done = chatspace("submit", "spec.yaml")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert len(done.stderr.splitlines()) == 1
    assert "sbatch is not on the PATH" in done.stderr


def test_gather_before_any_task_exits_3_and_says_what_is_missing(
    chatspace: Command, tmp_path: Path
) -> None:
    chatspace("setup", "spec.yaml")
    done = chatspace("gather", str(run_folder(tmp_path)))
    assert done.returncode == ExitCode.INCOMPLETE
    assert "4 of 4 shards missing" in done.stderr
    assert done.stderr.rstrip().endswith(f"Run just those: chatspace run {run_folder(tmp_path)}")
    chatspace("setup", "spec.yaml", "--set", "slurm.profile=generic")
    done = chatspace("gather", str(run_folder(tmp_path)))
    assert f"sbatch --array=0-1 {run_folder(tmp_path)}/embed.slurm" in done.stderr


def test_status_of_an_unknown_run_lists_the_known_ones(chatspace: Command, tmp_path: Path) -> None:
    chatspace("setup", "spec.yaml")
    done = chatspace("status", "nope", "--workspace", "ws")
    assert done.returncode == ExitCode.USER_INPUT
    assert run_folder(tmp_path).name in done.stderr


def test_task_of_another_division_is_refused(chatspace: Command, tmp_path: Path) -> None:
    chatspace("setup", "spec.yaml")
    plan = str(run_folder(tmp_path) / "plan.json")
    done = chatspace("task", "--plan", plan, "--split", "train", "--slice", "0", "--of", "7")
    assert done.returncode == ExitCode.USER_INPUT
    assert "7 slices" in done.stderr


@pytest.mark.slow
def test_run_then_everything_else_works_on_the_result(chatspace: Command, tmp_path: Path) -> None:
    done = chatspace("run", "spec.yaml", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "100 rows, every one accounted for" in done.stdout
    folder = str(run_folder(tmp_path))
    status = json.loads(chatspace("status", folder, "--json").stdout)
    assert status["state"] == "complete"
    assert status["splits"][0]["rows_done"] == 100
    assert "4 shards verified" in chatspace("verify", folder).stdout
    assert "100 rows accounted for" in chatspace("gather", folder).stdout
    again = chatspace("run", folder)
    assert "nothing to embed" in again.stdout
    assert "nothing submitted" in chatspace("submit", folder).stdout
    next((tmp_path / "ws").rglob("shard-00001.parquet")).unlink()
    assert "shards are gone" in chatspace("status", folder).stdout


@pytest.mark.slow
def test_embed_hf_with_a_run_spec_says_which_command_takes_it(chatspace: Command) -> None:
    for words in (["spec.yaml"], ["--workers", "2", "spec.yaml"]):
        done = chatspace("embed-hf", *words)
        assert done.returncode == 2
        assert "Use `chatspace run spec.yaml`" in done.stderr


def test_embed_hf_with_a_run_spec_that_is_not_there_says_so(chatspace: Command) -> None:
    done = chatspace("embed-hf", "nope.yaml")
    assert done.returncode == ExitCode.USER_INPUT
    assert done.stderr.startswith("chatspace: No such file: nope.yaml; looked from /")


@pytest.mark.parametrize("words", [(), ("--path", "data")])
def test_embed_hf_without_what_every_spec_has_names_the_flags(
    words: tuple[str, ...], chatspace: Command
) -> None:
    done = chatspace("embed-hf", *words)
    assert done.returncode == ExitCode.USER_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith("chatspace: Missing flag: chatspace embed-hf --source; expected one of")
    assert "--path" in line
    assert "--dataset-name" in line


def test_embed_hf_from_flags_embeds(chatspace: Command, tmp_path: Path, tiny_model: Path) -> None:
    done = chatspace(
        "embed-hf", "--source", "parquet", "--path", "data", "--workspace", "ws",
        "--model-name", str(tiny_model), "--model-dtype", "float32", "--profile", "local",
        "--rows-per-shard", "50", "--no-keep-text",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100 rows, every one accounted for" in done.stdout
    plan = json.loads((run_folder(tmp_path) / "plan.json").read_text())
    assert plan["spec"]["output"]["keep_text"] is False
    assert plan["spec"]["output"]["rows_per_shard"] == 50


def test_run_failing_slice_says_why_and_where_its_log_is(
    chatspace: Command, tmp_path: Path
) -> None:
    chatspace("setup", "spec.yaml")
    (tmp_path / "data" / "train.parquet").write_bytes(b"overwritten")
    done = chatspace("run", str(run_folder(tmp_path)))
    assert done.returncode == ExitCode.USER_INPUT
    assert "Input changed: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["status", "verify", "gather", "logs", "report", "cancel"])
def test_run_spec_where_a_run_is_wanted_is_one_line(
    chatspace: Command, tmp_path: Path, command: str
) -> None:
    chatspace("setup", "spec.yaml")
    done = chatspace(command, "spec.yaml")
    assert done.returncode == ExitCode.USER_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith("chatspace: A run spec, not a run: spec.yaml; ")
    assert str(run_folder(tmp_path)) in line


@pytest.mark.parametrize("command", ["run", "submit"])
def test_data_where_a_run_spec_is_wanted_is_one_line(chatspace: Command, command: str) -> None:
    done = chatspace(command, "data/train.parquet")
    assert done.returncode == ExitCode.USER_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith("chatspace: No run spec and no run: data/train.parquet; ")


@pytest.mark.parametrize(
    "words", [("nope",), ("setup", "--nope"), ("run", "x.yaml", "--workers", "none"), ("gather",)]
)
def test_usage_errors_are_one_line_with_exit_code_2(
    words: tuple[str, ...], chatspace: Command
) -> None:
    done = chatspace(*words)
    assert done.returncode == ExitCode.USER_INPUT
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("chatspace: ")
    assert "--help`." in done.stderr


def test_interrupted_while_planning_exits_75_in_one_line(
    chatspace: Command, tmp_path: Path
) -> None:
    program = """
import sys
from chatspace.jobs import setup
def interrupted(*_, **__):
    raise KeyboardInterrupt
setup.set_up = interrupted
sys.argv[1:] = ["run", "spec.yaml"]
from chatspace.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr == "chatspace: Interrupted. Run it again.\n"


@pytest.mark.slow
@pytest.mark.parametrize("n_more", [0, 200])
@pytest.mark.parametrize("wait_s", [0.0, 0.6])
def test_run_interrupted_in_its_first_second_exits_75_however_often(
    chatspace: Command, tmp_path: Path, n_more: int, wait_s: float
) -> None:
    command = [sys.executable, "-u", "-m", "chatspace", "run", "spec.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("run cli-")
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        for _ in range(n_more):
            time.sleep(0.02)
            process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == ExitCode.INTERRUPTED, errors
    assert errors.splitlines()[-1].startswith("chatspace: Interrupted")
    assert "Traceback" not in errors
