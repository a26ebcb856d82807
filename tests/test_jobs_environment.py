"""The scripts that make the tasks' environment, run for real on small stand-ins of the packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chatspace import __version__
from chatspace.errors import ExitCode, SpecError, UnfitEnvironmentError
from chatspace.jobs.environment import (
    Package,
    create_here,
    environment_cluster,
    render_create,
    render_install,
    this_package,
    write_script,
)
from chatspace.jobs.render import render_template
from tests.test_jobs_render import HOSTILE, check_shell

ROOT = Path(__file__).parents[1]
KINDS = """\
class Kind:
    def slice_work(self): return print
KINDS = {"embed": Kind()}
"""
INDEX = Package(checkout=None, constraints=ROOT / "constraints.txt")
Run = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _no_profiles_of_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.setenv("USER", "ada")
    monkeypatch.delenv("MAX_JOBS", raising=False)


def write_wheel(
    folder: Path, name: str, version: str, requires: str = "", init: str = "", **files: str
) -> None:
    """Writes a wheel with a package of that name; `files` are further modules of it."""
    info = f"{name}-{version}.dist-info"
    content = {f"{name}/__init__.py": init}
    content |= {f"{name}/{module}.py": text for module, text in files.items()}
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires.split(";") if text)
    content[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    )
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    sizes = "".join(f"{path},,{len(text)}\n" for path, text in content.items())
    record = f"{sizes}{info}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


class Machine:
    """A host without a container whose index is a folder of small wheels."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / "two words" / "venv"
        self.home = folder / "home"
        self.wheels = folder / "wheels"
        self.constraints = folder / "constraints.txt"
        self.constraints.write_text("torch==2.13.0\ntransformers==2.13.0\n")
        self.folder = folder
        self.home.mkdir()
        for name in ("torch", "transformers", "sentence_transformers", "pyarrow"):
            write_wheel(self.wheels, name, "2.13.0")
        write_wheel(self.wheels, "torch", "2.14.0")
        names = "torch;transformers;sentence_transformers;pyarrow"
        write_wheel(self.wheels, "chatspace", __version__, names, kinds=KINDS)
        write_wheel(self.wheels, "extra_attn", "1.0", "torch")
        self.cluster = replace(
            environment_cluster(None, [f"container.venv={self.venv}"], "generic"),
            scratch=str(folder / "scratch"),
        )
        self.env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_REQUIRE_VIRTUALENV": "1",  # nothing is ever installed into the tests' own Python
        }

    def create(self, *, recreate: bool = False, **more: str) -> Run:
        package = Package(checkout=None, constraints=self.constraints)
        text = render_create(
            self.cluster, package, python=BASE_PYTHON, recreate=recreate, log_dir=self.folder
        )
        return self.bash(text, **more)

    def install(self, *words: str, **more: str) -> Run:
        return self.bash(render_install(self.cluster), *words, **more)

    def bash(self, text: str, *words: str, **more: str) -> Run:
        return subprocess.run(
            ["bash", "-c", text, "script", *words],
            env={**self.env, **more}, cwd=self.folder, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    def activate(self) -> Path:
        return self.venv / "bin" / "activate"


BASE_PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that was made, to be copied: its scripts name another path, all else works."""
    machine = Machine(tmp_path_factory.mktemp("pattern"))
    done = machine.create()
    assert done.returncode == 0, done.stderr
    return machine.venv


@pytest.fixture
def equipped(machine: Machine, pattern: Path) -> Machine:
    """A machine whose environment is made."""
    shutil.copytree(pattern, machine.venv, symlinks=True)
    return machine


def add_notebooks(venv: Path) -> None:
    (venv / "notebooks").mkdir()
    (venv / "notebooks" / "a.ipynb").write_text("work")


def make_foreign(venv: Path, python: str) -> None:
    """Makes an environment as others do, with work of theirs in it."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").touch()
    (venv / "bin" / "python").symlink_to(python)
    (venv / "share" / "man").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {Path(python).parent}\n")
    add_notebooks(venv)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_line(run: Run, code: ExitCode) -> str:
    assert run.returncode == code, run.stderr + run.stdout
    (line,) = [text for text in run.stderr.splitlines() if text.startswith("chatspace: ")]
    return line


def test_committed_install_script_is_the_rendering_for_the_generic_profile() -> None:
    committed = (ROOT / "hpc" / "install_package.slurm").read_text(encoding="utf-8")
    assert committed == render_install(environment_cluster(None, (), "generic"))


@pytest.mark.parametrize("profile", ["generic", "nyu_torch", "princeton"])
def test_scripts_of_every_profile_pass_bash_and_shellcheck(profile: str, tmp_path: Path) -> None:
    cluster = environment_cluster(None, [], profile)
    check_shell(render_install(cluster), tmp_path)
    cluster = replace(cluster, venv=cluster.venv or "/scratch/venv")
    for package, python in ((INDEX, None), (this_package(["demo"]), "/scratch/py/bin/python3")):
        check_shell(render_create(cluster, package, python=python, log_dir=tmp_path), tmp_path)


@pytest.mark.parametrize("value", HOSTILE)
def test_scripts_with_hostile_values_keep_them_one_word(value: str, tmp_path: Path) -> None:
    cluster = replace(
        environment_cluster(None, [], "generic"),
        image=f"/{value}.sif", venv=f"/{value}", scratch=f"/{value}", account=value,
        binds=(f"/{value}",), env={"X": value},
    )  # fmt: skip
    package = Package(checkout=tmp_path / value, constraints=tmp_path / value)
    for text in (
        render_install(cluster),
        render_create(cluster, package, python=f"/{value}", log_dir=tmp_path),
    ):
        check_shell(text, tmp_path, "--exclude=SC2016")


def test_scripts_install_the_checkout_with_its_extras_or_the_same_version() -> None:
    assert this_package().requirement == str(ROOT)
    assert this_package(["demo"]).requirement == f"{ROOT}[demo]"
    assert (
        replace(INDEX, extras=("demo", "dev")).requirement == f"chatspace[demo,dev]=={__version__}"
    )


def test_scripts_in_a_container_bind_the_checkout_and_the_workspace_of_the_environment() -> None:
    cluster = environment_cluster(
        None, ["container.image=/img.sif", "container.venv=/ws/venv", "workspace=/ws"], "generic"
    )
    text = render_create(cluster, this_package(), log_dir=Path("/logs"))
    assert f"binds=(--bind /ws --bind {ROOT})" in text
    elsewhere = replace(cluster, venv="/home/ada/venv", binds=("/a",))
    assert "binds=(--bind /a)" in render_install(elsewhere)


def test_environment_cluster_of_a_spec_takes_the_profile_that_is_asked_for(tmp_path: Path) -> None:
    spec = tmp_path / "x.yaml"
    spec.write_text(
        "kind: embed\nname: x\ndataset: {source: parquet, path: /d}\n"
        "slurm: {profile: generic, account: a1}\ncontainer: {venv: /v}\n"
    )
    cluster = environment_cluster(spec, ["container.venv=venvs/b"], "nyu_torch")
    assert (cluster.profile, cluster.account) == ("nyu_torch", "a1")
    assert cluster.venv == str(Path("venvs/b").absolute())


def test_create_without_a_named_environment_is_refused() -> None:
    cluster = environment_cluster(None, [], "princeton")
    with pytest.raises(SpecError, match=r"container\.venv; profile princeton has none"):
        render_create(cluster, INDEX, log_dir=Path("/logs"))


def test_unknown_extra_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"--extras demmo; known: .*demo"):
        this_package(["demmo"])


def test_create_makes_an_environment_that_activates_and_writes_nothing_to_the_home_folder(
    machine: Machine,
) -> None:
    done = machine.create()
    assert done.returncode == 0, done.stderr + done.stdout
    assert "torch 2.13.0" in done.stdout  # the constraint's, though 2.14.0 is there
    assert done.stdout.splitlines()[-1] == f"chatspace: ready: {machine.venv}"
    code = 'source "$0" && python -c "import chatspace, sys; print(sys.prefix)"'
    inside = subprocess.run(
        ["bash", "-c", code, str(machine.activate())], capture_output=True, text=True, timeout=30
    )
    assert inside.stdout.strip() == str(machine.venv)
    assert list(machine.home.iterdir()) == []
    (cache,) = (machine.folder / "scratch").iterdir()
    assert not list(cache.glob("tmp.*"))


def test_create_again_keeps_what_was_added_and_brings_back_what_is_missing(
    equipped: Machine,
) -> None:
    assert equipped.install("extra_attn").returncode == 0
    (site,) = equipped.venv.glob("lib/python3*/site-packages")
    # What a killed installer leaves, or a purge of scratch: packages that count as installed.
    (site / "transformers" / "__init__.py").unlink()
    (site / "pyarrow" / "__init__.py").write_text("half of a li")
    (site / "~orch").mkdir()
    again = equipped.create()
    assert again.returncode == 0, again.stderr
    assert "keeping" in again.stdout
    again_installed = {
        line.split()[-1] for line in again.stdout.splitlines() if "to be installed" in line
    }
    assert again_installed == {"transformers-2.13.0", "pyarrow-2.13.0"}
    assert (site / "extra_attn" / "__init__.py").exists()
    assert (site / "transformers" / "__init__.py").exists()
    assert (site / "pyarrow" / "__init__.py").read_text() == ""
    assert not (site / "~orch").exists()


def test_create_that_fails_leaves_nothing_that_looks_whole(equipped: Machine) -> None:
    failed = equipped.create(PIP_FIND_LINKS="/nonexistent", PIP_FORCE_REINSTALL="1")
    assert failed.returncode != 0
    assert not equipped.activate().exists()
    assert "Run again: chatspace env create" in one_line(
        equipped.install("extra_attn"), ExitCode.ENVIRONMENT
    )
    assert equipped.create().returncode == 0
    assert equipped.activate().exists()


def test_create_that_cannot_import_what_a_task_needs_leaves_nothing_that_looks_whole(
    machine: Machine,
) -> None:
    init = "raise ImportError('no libarrow.so')\n"
    write_wheel(machine.wheels, "pyarrow", "2.13.1", init=init)
    done = machine.create()
    assert "is not fit for tasks" in one_line(done, ExitCode.ENVIRONMENT)
    assert "pyarrow: ImportError: no libarrow.so" in done.stderr
    assert not machine.activate().exists()


def test_create_with_a_python_that_is_gone_makes_it_anew(equipped: Machine) -> None:
    for link in equipped.venv.glob("bin/python*"):
        link.unlink()
        link.symlink_to("/nonexistent/python3")
    add_notebooks(equipped.venv)
    done = equipped.create()
    assert done.returncode == 0, done.stderr
    assert "making" in done.stdout
    assert (equipped.venv / "notebooks" / "a.ipynb").read_text() == "work"


def test_create_without_its_pyvenv_cfg_makes_it_anew_and_leaves_the_base_python_alone(
    equipped: Machine,
) -> None:
    (equipped.venv / "pyvenv.cfg").unlink()
    done = equipped.create()
    assert done.returncode == 0, done.stderr
    assert "making" in done.stdout


@pytest.mark.parametrize("python", ["dangling", "working"])
def test_create_in_an_environment_of_somebody_else_is_refused_and_touches_nothing(
    machine: Machine, python: str
) -> None:
    target = "/nonexistent/python3" if python == "dangling" else BASE_PYTHON
    make_foreign(machine.venv, target)
    before = listing(machine.venv)
    line = one_line(machine.create(), ExitCode.ENVIRONMENT)
    assert "did not make" in line
    assert "bin, notebooks, pyvenv.cfg, share" in line
    assert "--recreate" in line
    assert listing(machine.venv) == before


def test_create_with_recreate_replaces_an_environment_and_nothing_else(machine: Machine) -> None:
    make_foreign(machine.venv, "/nonexistent/python3")
    other = machine.folder / "other"
    other.mkdir()
    (other / "kept").touch()
    (machine.venv / "lib64").symlink_to(other)
    done = machine.create(recreate=True)
    assert done.returncode == 0, done.stderr
    assert machine.activate().exists()
    assert (other / "kept").exists()
    assert (machine.venv / "notebooks" / "a.ipynb").read_text() == "work"
    assert not (machine.venv / "share").exists()
    assert "keeping" in machine.create().stdout


def test_create_with_recreate_replaces_an_environment_of_its_own_that_works(
    equipped: Machine,
) -> None:
    assert equipped.install("extra_attn").returncode == 0
    done = equipped.create(recreate=True)
    assert done.returncode == 0, done.stderr
    assert not list(equipped.venv.glob("lib/python3*/site-packages/extra_attn"))


@pytest.mark.parametrize("recreate", [False, True])
def test_create_in_a_folder_of_other_things_is_refused_and_touches_nothing(
    machine: Machine, recreate: bool
) -> None:
    (machine.venv / "bin").mkdir(parents=True)
    (machine.venv / "thesis.tex").touch()
    line = one_line(machine.create(recreate=recreate), ExitCode.ENVIRONMENT)
    assert "no virtual environment" in line
    assert "holds bin, thesis.tex;" in line
    assert listing(machine.venv) == ["bin", "thesis.tex"]


def test_create_while_another_one_works_is_refused(equipped: Machine) -> None:
    machine = equipped
    assert machine.install("extra_attn").returncode == 0
    (lock,) = (machine.folder / "scratch").glob("*/*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "somebody else is changing" in one_line(machine.create(), ExitCode.ENVIRONMENT)
    assert machine.activate().exists()


def test_install_without_a_package_exits_2_in_one_line(machine: Machine) -> None:
    assert "which package?" in one_line(machine.install(), ExitCode.USER_INPUT)


def test_install_says_what_changed_and_passes_arguments_on_as_they_are(equipped: Machine) -> None:
    folder = equipped.folder / "it's a $folder"
    write_wheel(folder, "local_thing", "3.0")
    done = equipped.install(str(folder / "local_thing-3.0-py3-none-any.whl"), "--no-deps")
    assert done.returncode == 0, done.stderr
    changed = done.stdout.split("chatspace: changed")[1].splitlines()
    assert changed[1].split() == ["+", "local_thing==3.0"] or "local-thing" in changed[1]
    assert "torch 2.13.0" in done.stdout


def test_install_holds_torch_even_in_an_environment_made_by_other_means(equipped: Machine) -> None:
    (equipped.venv / "constraints.txt").unlink()
    write_wheel(equipped.wheels, "greedy", "1.0", "torch>=2.14")
    done = equipped.install("greedy")
    assert done.returncode == 1
    assert "  nothing" in done.stdout
    assert "pip failed" in one_line(done, ExitCode.BUG)


def test_install_brings_pip_to_an_environment_without_it(equipped: Machine) -> None:
    (site,) = equipped.venv.glob("lib/python3*/site-packages")
    subprocess.run(["rm", "-r", *map(str, site.glob("pip*"))], check=True)
    done = equipped.install("extra_attn")
    assert done.returncode == 0, done.stderr
    assert "extra" in done.stdout


def test_install_that_breaks_an_import_exits_4_and_says_how_to_repair(equipped: Machine) -> None:
    write_wheel(equipped.wheels, "transformers", "9.0", init="import torch.absent\n")
    assert equipped.install("transformers==9.0").returncode == 1  # the constraints hold it
    done = equipped.install("transformers==9.0", CHATSPACE_CONSTRAINTS="/dev/null")
    assert "no longer fit for tasks" in one_line(done, ExitCode.ENVIRONMENT)
    assert "- transformers==2.13.0" in done.stdout
    assert "+ transformers==9.0" in done.stdout
    repaired = equipped.create()
    assert repaired.returncode == 0, repaired.stderr
    assert "transformers 2.13.0" in repaired.stdout


def test_install_by_the_committed_script_takes_the_environment_that_is_named(
    equipped: Machine,
) -> None:
    text = (ROOT / "hpc" / "install_package.slurm").read_text()
    scratch = {"SCRATCH": str(equipped.folder / "scratch")}
    assert "which virtual environment?" in one_line(
        equipped.bash(text, "extra_attn", **scratch), ExitCode.ENVIRONMENT
    )
    done = equipped.bash(text, "extra_attn", CHATSPACE_VENV=str(equipped.venv), **scratch)
    assert done.returncode == 0, done.stderr


def test_install_where_the_image_is_missing_exits_4(machine: Machine) -> None:
    bin_folder = machine.folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "apptainer").write_text("#!/bin/sh\n")
    (bin_folder / "apptainer").chmod(0o755)
    machine.cluster = replace(machine.cluster, image="/nonexistent.sif")
    run = machine.install("x", PATH=f"{bin_folder}:/usr/bin:/bin")
    assert "image cannot be read" in one_line(run, ExitCode.ENVIRONMENT)


def test_create_here_turns_a_failure_into_exit_4(tmp_path: Path) -> None:
    script = write_script("echo reason >&2; exit 7\n", tmp_path)
    assert script == tmp_path / "env.slurm"
    with pytest.raises(UnfitEnvironmentError, match="exit code 7"):
        create_here(script)


def test_prepare_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = f"import sys\nsys.version_info = (3, 9)\n{render_template('prepare_venv.py.j2')}"
    done = subprocess.run(
        [sys.executable, "-", str(tmp_path / "venv"), "any"],
        input=old, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "too old" in done.stderr
    assert os.listdir(tmp_path) == []
