"""Cluster profiles: what is true of a cluster and not of the science, one YAML file each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from chatspace.errors import SpecError
from chatspace.resources import resource_dir
from chatspace.spec.document import read_document, shown
from chatspace.spec.loading import validate
from chatspace.spec.problems import nearest
from chatspace.spec.section import NAME_PATTERN, Section, Strings
from chatspace.spec.slurm import TIME_PATTERN, ContainerSection

DEFAULT_PROFILE = "generic"
PROFILES_VARIABLE = "CHATSPACE_PROFILES"

GpuDirective = Literal["gres", "gpus-per-task", "none"]
SchedulerName = Literal["slurm", "none"]


class ClusterProfile(Section):
    """What is true of one cluster; a run spec's own values go before these."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the profile: letters, digits, `.`, `_` and `-`."""
    description: str | None = None
    """One line for the people who choose among profiles."""
    scheduler: SchedulerName = "slurm"
    """`none` is a machine of your own: what setup says next is `chatspace run`, not sbatch."""
    partition: str | None = None
    """Partition that jobs go to [the cluster's own default]."""
    account: str | None = None
    """Account that jobs are charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features that jobs need, such as `h200`."""
    time: str | None = Field(None, pattern=TIME_PATTERN)
    """Walltime of one array task ["02:00:00"]."""
    mem_gb: int | None = Field(None, gt=0)
    """Host memory of one array task, GiB [32]."""
    cpus_per_task: int | None = Field(None, gt=0)
    """CPU cores of one array task [8]."""
    gpus_per_task: int | None = Field(None, ge=0)
    """GPUs of one array task [1]."""
    gpu_type: str | None = None
    """GPU type in the GPU directive, as the cluster spells it."""
    gpu_directive: GpuDirective = "gres"
    """`gres` gives `--gres=gpu:h200:1`, `gpus-per-task` gives `--gpus-per-task=h200:1`."""
    max_array_size: int | None = Field(None, gt=0)
    """MaxArraySize of the cluster [asked of `scontrol show config`]."""
    modules: Strings = ()
    """Environment modules that are loaded before the task."""
    setup: Strings = ()
    """Shell lines that run on the host before the task, such as a conda activation."""
    scratch: str | None = None
    """Fast folder for temporary files."""
    workspace: str | None = None
    """Root of everything that is written, where neither spec nor environment names one."""
    hf_home: str | None = None
    """Cache of the Hugging Face libraries (HF_HOME)."""
    offline: bool = False
    """Compute nodes have no internet: models and datasets must be staged before."""
    container: ContainerSection = ContainerSection()
    """The image that tasks run in on this cluster."""
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other sbatch directive; `true` gives a flag without a value."""


def load_profile(name_or_path: str) -> ClusterProfile:
    """Reads a profile by its name or from a YAML file.

    A name is looked up in the folders of `$CHATSPACE_PROFILES`, in `~/.config/chatspace/profiles`,
    then among those that come with chatspace.

    Raises:
        SpecError: there is no such profile, or a key or value in it is wrong.
    """
    path = _profile_path(name_or_path)
    return validate(ClusterProfile, read_document(path))


def known_profiles() -> dict[str, Path]:
    """Returns every profile that a name reaches, by name."""
    found: dict[str, Path] = {}
    for folder in _profile_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def _profile_path(name_or_path: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path).expanduser()
    known = known_profiles()
    if name_or_path not in known:
        listed = ", ".join(sorted(known)) or "none"
        guess = nearest(name_or_path, known) or (
            f" Choose one, or put {shown(name_or_path)[1:-1]}.yaml into a folder of "
            f"${PROFILES_VARIABLE}."
        )
        raise SpecError(
            f"Unknown profile: slurm.profile={shown(name_or_path)}; known: {listed}.{guess}"
        )
    return known[name_or_path]


def _profile_folders() -> Iterator[Path]:
    for folder in os.environ.get(PROFILES_VARIABLE, "").split(os.pathsep):
        if folder:
            yield Path(folder).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    # Where the home folder is unknown, as in some containers, the packaged profiles still work.
    if config.startswith("/") or "HOME" in os.environ:
        yield Path(config).expanduser() / "chatspace" / "profiles"
    yield resource_dir("profiles")
