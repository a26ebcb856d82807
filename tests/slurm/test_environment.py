"""The image of hpc/chatspace.def, the environment in it, and packages installed by a job."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import texts, write_parquet
from tests.slurm.cluster import CONTAINER, sbatch, wait_for_jobs

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.one_slurm,
    pytest.mark.container,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
BUILD_TIMEOUT_S = 600
JOB_TIMEOUT_S = 400


@dataclass(frozen=True)
class Site:
    """A user's folder on a cluster, with a profile; everything big goes below it."""

    folder: Path
    image: Path
    env: dict[str, str]

    @property
    def venv(self) -> Path:
        return self.folder / "venvs" / "chatspace"

    def profile(self) -> Path:
        path = self.folder / "site.yaml"
        container = {"image": str(self.image), "binds": [str(self.folder)], "venv": str(self.venv)}
        values = {
            "name": "site", "partition": "cpu", "account": "proj1", "mem_gb": 2, "time": "00:15:00",
            "cpus_per_task": 1, "gpus_per_task": 0, "gpu_directive": "none",
            "scratch": str(self.folder / "scratch"), "container": container,
        }  # fmt: skip
        path.write_text(yaml.safe_dump(values))
        return path

    def chatspace(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "chatspace", *words],
            cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True,
            timeout=JOB_TIMEOUT_S,
        )  # fmt: skip

    def install(self, *words: str) -> tuple[str, str]:
        """Submits install_package.slurm and returns how the job ended and its log."""
        script = self.folder / "install_package.slurm"
        rendered = self.chatspace("env", "script", "--profile", str(self.profile()))
        script.write_text(rendered.stdout)
        job = submit(script, self, *words)
        (state,) = wait_for_jobs([job], JOB_TIMEOUT_S, self.env).values()
        return state, (self.folder / f"install_package-{job}.out").read_text()


def submit(script: Path, site: Site, *words: str) -> str:
    command = ["sbatch", "--parsable", str(script), *words]
    done = subprocess.run(
        command, cwd=site.folder, env=site.env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(slurm: dict[str, str], sif: Path) -> Path:
    """The CPU variant of the definition; `sif` has put the runtime on the PATH."""
    done = subprocess.run(
        [str(CONTAINER.with_name("cpu-image"))],
        capture_output=True, text=True, timeout=BUILD_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def site(image: Path, slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder with the environment, which is made once: at the first try pip reaches no index."""
    site = Site(tmp_path_factory.mktemp("site"), image, {**os.environ, **slurm})
    create = ["env", "create", "--profile", str(site.profile())]
    failed = site.chatspace(*create, PIP_NO_INDEX="1", PIP_FIND_LINKS="/nonexistent")
    assert failed.returncode == 4, failed.stderr
    assert (site.venv / "pyvenv.cfg").exists()
    assert not (site.venv / "bin" / "activate").exists()
    made = site.chatspace(*create)
    assert made.returncode == 0, made.stderr
    assert "chatspace 0." in made.stdout
    assert (site.venv / "bin" / "activate").exists()
    return site


def test_image_of_the_definition_passes_its_own_test(image: Path, slurm: dict[str, str]) -> None:
    done = subprocess.run(
        ["apptainer", "test", str(image)], env={**os.environ, **slurm},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "image: Python 3." in done.stdout


def test_image_of_the_definition_runs_python_and_has_help_and_labels(
    image: Path, slurm: dict[str, str]
) -> None:
    def said(*words: str) -> str:
        done = subprocess.run(
            ["apptainer", "-q", *words], env={**os.environ, **slurm},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import os, sys; print(sys.version_info >= (3, 11), os.environ['LC_ALL'])"
    assert said("exec", str(image), "python3", "-c", code).strip() == "True C.UTF-8"
    assert "chatspace env create" in said("inspect", "--helpfile", str(image))
    assert "org.opencontainers.image.title: chatspace" in said("inspect", "--labels", str(image))


def test_install_by_job_adds_the_package_and_says_so(site: Site) -> None:
    state, log = site.install("iniconfig")
    assert state == "COMPLETED", log
    assert "  + iniconfig==" in log
    assert "  torch 2." in log


def test_install_by_job_without_a_package_fails_with_one_line(site: Site) -> None:
    state, log = site.install()
    assert state == "FAILED"
    assert log.startswith("chatspace: which package?")
    assert len(log.splitlines()) == 1


def test_install_by_job_of_another_torch_is_refused(site: Site) -> None:
    state, log = site.install("torch==2.12.0")
    assert state == "FAILED"
    assert "  nothing" in log
    assert "pip failed" in log


def test_create_by_job_brings_the_environment_up_to_date(site: Site) -> None:
    done = site.chatspace("env", "create", "--submit", "--profile", str(site.profile()))
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1].rstrip(":")
    (state,) = wait_for_jobs([job], JOB_TIMEOUT_S, site.env).values()
    log = Path(done.stdout.strip().rpartition("log ")[2]).read_text()
    assert state == "COMPLETED", log
    assert "chatspace: keeping" in log
    assert log.splitlines()[-1] == f"chatspace: ready: {site.venv}"


def test_task_runs_in_the_image_with_the_environment(site: Site, tiny_model: Path) -> None:
    write_parquet(site.folder / "data" / "train.parquet", {"text": texts(40)})
    spec = {
        "kind": "embed",
        "name": "env",
        "workspace": str(site.folder / "ws"),
        "dataset": {"source": "parquet", "path": str(site.folder / "data")},
        "model": {"name": str(tiny_model), "dtype": "float32"},
        "slurm": {"profile": str(site.profile())},
    }
    (site.folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = site.chatspace("setup", "spec.yaml")
    assert done.returncode == 0, done.stderr
    job = sbatch(site.folder / "embed.slurm", site.folder, env=site.env)
    states = set(wait_for_jobs([job], JOB_TIMEOUT_S, site.env).values())
    logs = "\n".join(path.read_text() for path in site.folder.glob("logs/*.out"))
    assert states == {"COMPLETED"}, logs
    assert list((site.folder / "ws" / "indexes").rglob("manifest.json"))
