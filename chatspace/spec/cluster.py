"""What a run's scripts are rendered from: the run spec over the cluster profile over defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chatspace.errors import SpecError
from chatspace.spec.base import RunSpec
from chatspace.spec.document import shown
from chatspace.spec.expand import expand
from chatspace.spec.profiles import (
    DEFAULT_PROFILE,
    ClusterProfile,
    GpuDirective,
    SchedulerName,
    load_profile,
)
from chatspace.spec.secrets import holds_token
from chatspace.spec.slurm import walltime_s

# Where neither spec nor profile says. A short walltime starts sooner and loses nothing: an
# interrupted task is requeued and goes on at its next shard.
_DEFAULTS: dict[str, Any] = {
    "time": "02:00:00",
    "mem_gb": 32,
    "cpus_per_task": 8,
    "gpus_per_task": 1,
}
_MERGED = (
    *("partition", "account", "qos", "constraint", "time"),
    *("mem_gb", "cpus_per_task", "gpu_type"),
)
SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY)$",
    re.IGNORECASE,
)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DIRECTIVE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, kw_only=True)
class ResolvedCluster:
    """How array tasks are run, with nothing left open; paths are expanded.

    Attributes:
        profile: name of the cluster profile.
        scheduler: who starts the tasks; "none" where nobody does but the user.
        time: walltime as sbatch takes it ["02:00:00"].
        mem_gb: host memory of a task, GiB [32].
        cpus_per_task: CPU cores of a task [8].
        gpus_per_task: GPUs of a task on each of its nodes; 0 for none [1].
        nodes: nodes of a task.
        extra: other directives; the spec's go before the profile's.
        log_dir: folder of job logs, relative to where the job is set up.
        max_array_size: MaxArraySize, None where the profile does not say.
        workspace: the spec's, else the profile's, else None.
        nv: whether the NVIDIA driver is passed in; "auto" is decided here, by `gpus_per_task`.
        binds: the profile's, then the spec's that are not among them.
        env: the profile's, with the spec's over them.
    """

    profile: str
    scheduler: SchedulerName
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time: str
    mem_gb: int
    cpus_per_task: int
    gpus_per_task: int
    nodes: int
    gpu_type: str | None
    gpu_directive: GpuDirective
    array_parallelism: int | None
    mail: str | None
    extra: dict[str, str | int | bool]
    log_dir: str
    grace_s: int
    max_requeues: int
    exclude_failed_nodes: bool
    max_array_size: int | None
    modules: tuple[str, ...]
    setup: tuple[str, ...]
    workspace: str | None
    scratch: str | None
    hf_home: str | None
    offline: bool
    image: str | None
    runtime: Literal["auto", "apptainer", "singularity"]
    nv: bool
    binds: tuple[str, ...]
    venv: str | None
    env: dict[str, str]


def resolve_cluster(spec: RunSpec) -> ResolvedCluster:
    """Merges the run spec over its cluster profile over the defaults.

    Raises:
        SpecError: the profile is unknown or wrong, a variable in a path is undefined, a value has a
            line break where none can stand, `env` holds a secret, or the grace is not shorter than
            the walltime.
    """
    profile = load_profile(spec.slurm.profile or DEFAULT_PROFILE)
    merged = _Merged(spec, profile)
    gpus = merged.value("gpus_per_task")
    nv = merged.container("nv", "auto")
    return ResolvedCluster(
        profile=profile.name,
        scheduler=profile.scheduler,
        **{name: merged.value(name) for name in _MERGED},
        gpus_per_task=gpus,
        nodes=spec.slurm.nodes,
        gpu_directive=profile.gpu_directive,
        array_parallelism=spec.slurm.array_parallelism,
        mail=_one_line(spec.slurm.mail, "slurm.mail"),
        extra=merged.extra(),
        log_dir=expand(_required_line(spec.slurm.log_dir, "slurm.log_dir"), "slurm.log_dir"),
        grace_s=merged.grace_s(),
        max_requeues=spec.slurm.max_requeues,
        exclude_failed_nodes=spec.slurm.exclude_failed_nodes,
        max_array_size=profile.max_array_size,
        modules=merged.modules(),
        setup=profile.setup,
        workspace=merged.workspace(),
        scratch=merged.profile_path("scratch"),
        hf_home=merged.profile_path("hf_home"),
        offline=profile.offline,
        image=merged.container_path("image"),
        runtime=merged.container("runtime", "auto"),
        nv=gpus > 0 if nv == "auto" else nv,
        binds=merged.binds(),
        venv=merged.container_path("venv"),
        env=merged.env(),
    )


class _Merged:
    """Values of the spec where it has them, else of the profile; knows how errors name either."""

    def __init__(self, spec: RunSpec, profile: ClusterProfile) -> None:
        self.spec = spec
        self.profile = profile
        self.in_profile = f"profile {profile.name}: "

    def value(self, name: str) -> Any:
        """Returns a directive's value."""
        given, where = getattr(self.spec.slurm, name), f"slurm.{name}"
        if given is None:
            given, where = getattr(self.profile, name), f"{self.in_profile}{name}"
        if given is None:
            given = _DEFAULTS.get(name)
        return _one_line(given, where) if isinstance(given, str) else given

    def grace_s(self) -> int:
        """Returns the grace, which must leave a task some of its walltime."""
        grace_s, time = self.spec.slurm.grace_s, self.value("time")
        limit = walltime_s(time)
        if limit and "grace_s" not in self.spec.slurm.model_fields_set:
            return min(grace_s, limit // 4)
        if limit and grace_s >= limit:
            raise SpecError(
                f"Grace too long: slurm.grace_s={grace_s}; the walltime {time} is {limit} s, so a "
                "task would be told to stop as it starts. Raise slurm.time or lower slurm.grace_s."
            )
        return grace_s

    def container(self, name: str, default: str) -> Any:
        """Returns a value of the container section."""
        for section in (self.spec.container, self.profile.container):
            if getattr(section, name) is not None:
                return getattr(section, name)
        return default

    def container_path(self, name: str) -> str | None:
        """Returns an expanded path of the container section."""
        given, where = getattr(self.spec.container, name), f"container.{name}"
        if given is None:
            given = getattr(self.profile.container, name)
            where = f"{self.in_profile}container.{name}"
        return _path(given, where)

    def profile_path(self, name: str) -> str | None:
        """Returns an expanded path that only the profile has."""
        return _path(getattr(self.profile, name), f"{self.in_profile}{name}")

    def workspace(self) -> str | None:
        """Returns the root folder that spec or profile names."""
        if self.spec.workspace is not None:
            return _path(self.spec.workspace, "workspace")
        return self.profile_path("workspace")

    def binds(self) -> tuple[str, ...]:
        """Returns the bind mounts of both, the profile's first."""
        where = "container.binds"
        ours = (
            _path(bind, f"{self.in_profile}{where}") for bind in self.profile.container.binds or ()
        )
        theirs = (_path(bind, where) for bind in self.spec.container.binds or ())
        return tuple(dict.fromkeys(bind for bind in (*ours, *theirs) if bind))

    def modules(self) -> tuple[str, ...]:
        """Returns the modules, each one line."""
        where = f"{self.in_profile}modules"
        return tuple(_required_line(module, where) for module in self.profile.modules)

    def extra(self) -> dict[str, str | int | bool]:
        """Returns the other directives."""
        _check_directives(self.profile.extra, f"{self.in_profile}extra")
        _check_directives(self.spec.slurm.extra, "slurm.extra")
        return {**self.profile.extra, **self.spec.slurm.extra}

    def env(self) -> dict[str, str]:
        """Returns the environment variables of the task."""
        where = "container.env"
        _check_env(self.profile.container.env, f"{self.in_profile}{where}")
        _check_env(self.spec.container.env, where)
        return {**self.profile.container.env, **self.spec.container.env}


def _path(text: str | None, where: str) -> str | None:
    return None if text is None else _one_line(expand(text, where), where)


def _one_line(text: str | None, where: str) -> str | None:
    return None if text is None else _required_line(text, where)


def _required_line(text: str, where: str) -> str:
    if _CONTROL.search(text):
        raise SpecError(
            f"Invalid value: {where}={shown(text)}; no line break or control character may stand "
            "in a directive or path of a batch script. Remove them."
        )
    return text


def _check_directives(extra: Mapping[str, str | int | bool], where: str) -> None:
    for name, value in extra.items():
        if not _DIRECTIVE_NAME.fullmatch(name):
            raise SpecError(
                f"Invalid key: {where} {shown(name)}; expected the long name of an sbatch option "
                "without dashes in front, such as mem-per-gpu. Correct it."
            )
        if isinstance(value, str):
            _required_line(value, f"{where}.{name}")


def _check_env(env: Mapping[str, str], where: str) -> None:
    for name, value in env.items():
        if not _VARIABLE_NAME.fullmatch(name):
            raise SpecError(
                f"Invalid key: {where} {shown(name)}; a variable's name has letters, digits and "
                "`_`, and begins with no digit. Correct it."
            )
        if SECRET_NAME.search(name) or holds_token(value):
            raise SpecError(
                f"Secret in a file: {where}.{name}; it would be written into scripts and plans. "
                f"Remove it, and `export {name}=...` before you submit."
            )
    _check_no_nul(env.items(), where)


def _check_no_nul(items: Iterable[tuple[str, str]], where: str) -> None:
    for name, value in items:
        if "\0" in value:
            raise SpecError(
                f"Invalid value: {where}.{name}; a variable cannot hold a NUL character. Remove it."
            )
