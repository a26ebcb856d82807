"""The virtual environment that tasks run in: the scripts that make it and install into it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from chatspace import __version__
from chatspace.atomic import atomic_write_text
from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.jobs.directives import RENDERED_DIRECTIVES, directive_lines, quote
from chatspace.jobs.render import render_template
from chatspace.layout import find_workspace
from chatspace.resources import checkout, constraints_file
from chatspace.spec.cluster import ResolvedCluster, resolve_cluster
from chatspace.spec.loading import load_spec, spec_from_mapping

CREATE_SCRIPT = "env.slurm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Where chatspace itself is installed from.

    Attributes:
        checkout: folder of the source; None for the index.
        constraints: file with the versions that work together.
        extras: optional parts, such as `demo`.
    """

    checkout: Path | None
    constraints: Path
    extras: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """What pip is told to install."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        if self.checkout is not None:
            return f"{self.checkout}{extras}"
        return f"chatspace{extras}=={__version__}"


def this_package(extras: Sequence[str] = ()) -> Package:
    """Returns the chatspace that runs now: its checkout, else its version on the index.

    Raises:
        SpecError: it has no such extra.
    """
    known = metadata("chatspace").get_all("Provides-Extra") or []
    for extra in extras:
        if extra not in known:
            raise SpecError(
                f"Unknown extra: --extras {extra}; known: {', '.join(known)}. Choose one of them."
            )
    return Package(checkout=checkout(), constraints=constraints_file(), extras=tuple(extras))


def environment_cluster(
    spec_path: Path | None, overrides: Sequence[str] = (), profile: str | None = None
) -> ResolvedCluster:
    """Returns the cluster settings of a run spec, or of a profile alone, with absolute paths.

    Raises:
        SpecError: the spec, the profile or an override is wrong.
    """
    overrides = [*([f"slurm.profile={profile}"] if profile else []), *overrides]
    if spec_path is not None:
        spec = load_spec(spec_path, overrides)
    else:  # only its sections `slurm` and `container` are asked for
        dataset = {"source": "huggingface", "name": "none"}
        values = {"kind": "embed", "name": "env", "dataset": dataset}
        spec = spec_from_mapping(values, "chatspace env", overrides)
    cluster = resolve_cluster(spec)
    return replace(
        cluster,
        venv=_absolute(cluster.venv),
        scratch=_absolute(cluster.scratch),
        image=_absolute(cluster.image),
        workspace=str(find_workspace(cluster.workspace)),
    )


def render_create(
    cluster: ResolvedCluster,
    package: Package,
    *,
    python: str | None = None,
    recreate: bool = False,
    log_dir: Path,
) -> str:
    """Returns the script that makes the environment, for sbatch and for bash.

    Args:
        cluster: where; it must name an environment.
        package: what is installed.
        python: interpreter that the environment is made from [`python3`, inside the image].
        recreate: the environment that is there is replaced, also one that chatspace did not make.
        log_dir: folder of the log, when it is submitted.

    Raises:
        SpecError: no environment is named, or a value cannot stand in a script.
    """
    if cluster.venv is None:
        raise SpecError(
            f"No virtual environment is named: container.venv; profile {cluster.profile} has none. "
            "Add --set container.venv=/path/on/scratch/venvs/chatspace, and to the run spec."
        )
    folders = [str(package.checkout)] if package.checkout else []
    output = f"{log_dir}/%x-%j.out" if "%" not in str(log_dir) else "%x-%j.out"
    return render_template(
        "env.slurm.j2",
        **_common(cluster, "chatspace-env", output, folders),
        python=quote("--python", python) if python else None,
        recreate=recreate,
        package=quote("package", package.requirement),
        constraints=quote("package", str(package.constraints)),
    )


def render_install(cluster: ResolvedCluster) -> str:
    """Returns the script that installs further packages into the environment.

    Raises:
        SpecError: a value cannot stand in a script.
    """
    return render_template(
        "install_package.slurm.j2", **_common(cluster, "install_package", "%x-%j.out")
    )


def create_here(script: Path) -> None:
    """Runs the script that makes the environment on this machine.

    Raises:
        UnfitEnvironmentError: it failed; the reason stands in its own output.
    """
    code = subprocess.run(["bash", str(script)], check=False).returncode
    if code:
        raise UnfitEnvironmentError(
            f"The environment was not made: {script} ended with exit code {code}; the reason "
            "stands above. Run it again when that is mended; it goes on where it was."
        )


def write_script(text: str, folder: Path) -> Path:
    """Writes the script that makes the environment and returns its path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder.absolute() / CREATE_SCRIPT
    atomic_write_text(path, text)
    return path


def _common(
    cluster: ResolvedCluster, job_name: str, output: str, folders: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns what both templates need.

    No GPU and no constraint: installing needs neither, and a GPU node would be wasted on it.
    """
    directives = {
        "job-name": job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "ntasks": 1,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": f"{cluster.mem_gb}G",
        "output": output,
        **{k: v for k, v in cluster.extra.items() if k not in RENDERED_DIRECTIVES},
    }
    binds = [*_workspace_bind(cluster), *folders, *cluster.binds]
    return {
        "version": __version__,
        "source": f"profile {cluster.profile}",
        "directives": "\n".join(directive_lines(directives)),
        "modules": [quote("modules", module) for module in cluster.modules],
        "setup": list(cluster.setup),
        "exports": [(name, quote("container.env", text)) for name, text in cluster.env.items()],
        "scratch": quote("scratch", cluster.scratch) if cluster.scratch else None,
        "image": quote("container.image", cluster.image) if cluster.image else None,
        "runtime": cluster.runtime,
        "binds": [quote("container.binds", bind) for bind in dict.fromkeys(binds)],
        "venv": quote("container.venv", cluster.venv) if cluster.venv else None,
    }


def _workspace_bind(cluster: ResolvedCluster) -> list[str]:
    """Returns the workspace, which tasks have bound, where the environment lies below it."""
    inside = cluster.venv and cluster.workspace and cluster.image
    if inside and Path(cluster.venv or "").is_relative_to(cluster.workspace or ""):
        return [str(cluster.workspace)]
    return []


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path and "://" not in path else path
