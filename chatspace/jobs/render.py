"""From a Plan to the text of its batch scripts: a pure function; templates decide nothing."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatspace import __version__
from chatspace.errors import SpecError
from chatspace.jobs.directives import (
    LARGE_DIRECTIVES,
    directive_lines,
    extra_directives,
    gpu_directives,
    lanes_of,
    log_path,
    mail_directives,
    quote,
    resource_directives,
)
from chatspace.kinds import KINDS
from chatspace.layout import Layout, path_component
from chatspace.plan.model import Plan, SplitPlan
from chatspace.resources import resource_dir
from chatspace.spec.slurm import walltime_min
from chatspace.wording import counted

# SLURM's own default: https://slurm.schedmd.com/slurm.conf.html#OPT_MaxArraySize
DEFAULT_MAX_ARRAY_SIZE = 1001
GATHER_TIME_MIN = 60
# It takes a minute where libraries are read from a cold network file system.
DOCTOR_TIME_MIN = 5
# How the second line of every rendered script begins; setup knows its own scripts by it.
RENDERED_BY = "# chatspace "


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayJob:
    """One sbatch submission: a window of the slices of one split, or a repair of it.

    Attributes:
        rows: input rows that it is about.
        offset: slice of array index 0; windows exist because clusters limit the array index.
        count: array tasks.
        script: file name of the rendered script.
        repair: number of the repair, None for slices of the plan.
        exclude: nodes that it must not run on.
    """

    split: str
    rows: int
    offset: int = 0
    count: int
    script: str
    repair: int | None = None
    exclude: tuple[str, ...] = ()


def array_jobs(plan: Plan) -> list[ArrayJob]:
    """Returns the arrays of a run, in the order in which they are submitted.

    One array is `embed.slurm`; several are named after their split and, where a split has more
    slices than the cluster allows in one array, after their window.
    """
    stem = KINDS[plan.kind].script
    limit = plan.cluster.get("max_array_size") or DEFAULT_MAX_ARRAY_SIZE
    jobs = []
    for split in plan.splits:
        offsets = range(0, len(split.slices), limit)
        for window, offset in enumerate(offsets, start=1):
            parts = [stem]
            if len(plan.splits) > 1:
                parts.append(path_component(split.name))
            if len(offsets) > 1:
                parts.append(f"window{window}")
            count = min(limit, len(split.slices) - offset)
            script = "-".join(parts) + ".slurm"
            jobs.append(
                ArrayJob(
                    split=split.name, rows=split.rows, offset=offset, count=count, script=script
                )
            )
    return jobs


def render_array(plan: Plan, job: ArrayJob) -> str:
    """Returns the batch script of one array.

    Raises:
        SpecError: a value that no batch script can hold, such as a line break in a path.
    """
    cluster, split = plan.cluster, plan.split(job.split)
    width = f"%{cluster['array_parallelism']}" if cluster["array_parallelism"] else ""
    directives = {
        "job-name": job_names(plan)[0],
        "array": f"0-{job.count - 1}{width}",
        **resource_directives(cluster),
        **gpu_directives(cluster),
        "output": log_path(cluster, plan, "%A_%a"),
        "open-mode": "append",
        "requeue": True,
        **({"signal": f"B:USR1@{cluster['grace_s']}"} if cluster["grace_s"] else {}),
        **mail_directives(cluster),
        **extra_directives(cluster),
    }
    if job.exclude:
        given = [str(directives["exclude"])] if "exclude" in directives else []
        directives["exclude"] = ",".join([*given, *job.exclude])
    return render_template(
        KINDS[plan.kind].template,
        **_common(plan, directives),
        **_part(plan, split, job),
        rows=counted(job.rows, "row"),
        offset=job.offset,
        n_tasks=job.count,
        lanes=lanes_of(cluster),
        max_requeues=cluster["max_requeues"],
    )


def job_names(plan: Plan) -> tuple[str, str]:
    """Returns the names of a run's array jobs, and of its gather job."""
    return plan.run_id, f"{plan.run_id}-gather"


def repair_name(number: int) -> str:
    """Returns the name of a repair's folder, and of its tasks in logs and manifests."""
    return f"{number:03d}"


def _part(plan: Plan, split: SplitPlan, job: ArrayJob) -> dict[str, Any]:
    """Returns what an array script says of the part of the run that it does."""
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    name = path_component(split.name)
    arguments = f'--split {quote("split", split.name)} --slice "$index" --of {len(split.slices)}'
    subject, noun = f"split {_comment(split.name)}", "slice"
    purpose = "Each array task does one slice of the plan."
    if job.repair is not None:
        name += f"-repair{repair_name(job.repair)}"
        arguments = f'--repair {job.repair} --index "$index"'
        subject, noun = f"{subject}, repair {job.repair}", f"repair {job.repair} task"
        purpose = "Each array task does some of the shards that were missing."
    return {
        "subject": subject,
        "noun": noun,
        "purpose": f"{purpose} Submitting again resumes: what is done is not done again.",
        "arguments": arguments,
        "event_log": quote("workspace", str(run.events / name)),
    }


def render_gather(plan: Plan) -> str:
    """Returns the batch script of the gather step.

    Raises:
        SpecError: a value that no batch script can hold.
    """
    # It reads manifests: any node does, and a GPU node would be wasted on it.
    time = plan.cluster["time"]
    time = time if walltime_min(time) < GATHER_TIME_MIN else str(GATHER_TIME_MIN)
    lean = {"constraint": None, "time": time, "mem_gb": 4, "cpus_per_task": 2, "nv": False}
    cluster = {**plan.cluster, **lean, "nodes": 1, "gpus_per_task": 0}
    directives = {
        "job-name": job_names(plan)[1],
        **resource_directives(cluster),
        "output": log_path(cluster, plan, "%j"),
        "open-mode": "append",
        **mail_directives(cluster),
        **{k: v for k, v in extra_directives(cluster).items() if k not in LARGE_DIRECTIVES},
    }
    return render_template("gather.slurm.j2", **_common(replace(plan, cluster=cluster), directives))


def render_probe(plan: Plan, plan_path: Path, *, seconds: float, time_min: int) -> str:
    """Returns the batch script of a probe: one process, with the directives of the run.

    Args:
        plan: the run.
        plan_path: a copy of its plan; a run that is only probed has none of its own.
        seconds: how long to embed.
        time_min: walltime, minutes.

    Raises:
        SpecError: a value that no batch script can hold.
    """
    gpus = min(1, plan.cluster["gpus_per_task"])
    cluster = {**plan.cluster, "gpus_per_task": gpus, "nodes": 1, "time": str(time_min)}
    directives = {
        "job-name": f"{plan.run_id}-probe",
        **resource_directives(cluster),
        **gpu_directives(cluster),
        "output": log_path(cluster, plan, "probe-%j"),
        "open-mode": "append",
        **extra_directives(cluster),
    }
    return render_template(
        "probe.slurm.j2",
        **_common(replace(plan, cluster=cluster), directives),
        probe_plan=quote("workspace", str(plan_path)),
        minutes=f"{seconds / 60:g}",
    )


def render_doctor(plan: Plan, folder: Path) -> str:
    """Returns the script that looks around in a task's environment, with the run's directives.

    Args:
        plan: the run.
        folder: has a copy of its plan, and gets the output of the job.

    Raises:
        SpecError: a value that no batch script can hold.
    """
    limit = walltime_min(plan.cluster["time"])
    cluster = {**plan.cluster, "nodes": 1, "time": str(min(DOCTOR_TIME_MIN, limit or sys.maxsize))}
    directives = {
        "job-name": f"{plan.run_id}-doctor",
        **resource_directives(cluster),
        "ntasks": 1,
        "ntasks-per-node": None,
        **gpu_directives(cluster),
        "output": f"{str(folder).replace('%', '%%')}/job.out",
        "no-requeue": True,
        **extra_directives(cluster),
    }
    return render_template(
        "doctor.slurm.j2",
        **{
            **_common(replace(plan, cluster=cluster), directives),
            "plan": quote("workspace", str(folder / "plan.json")),
        },
        folder=quote("workspace", str(folder)),
    )


def missing_command(plan: Plan, split: SplitPlan, slices: Iterable[int]) -> str:
    """Returns the shell command that submits just these slices of a split."""
    wanted, folder = sorted(slices), Layout(Path(plan.workspace)).run(plan.run_id).folder
    commands = []
    for job in array_jobs(plan):
        inside = [s - job.offset for s in wanted if 0 <= s - job.offset < job.count]
        if job.split == split.name and inside:
            script = shlex.quote(str(folder / job.script))
            commands.append(f"sbatch --array={ranges_text(inside)} {script}")
    return " && ".join(commands)


def ranges_text(numbers: Iterable[int]) -> str:
    """Returns ascending numbers as sbatch writes them: `0-3,7,9-10`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def task_environment(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variables that a task gets from its profile and spec."""
    return {
        **({"HF_HOME": cluster["hf_home"]} if cluster["hf_home"] else {}),
        **({"HF_HUB_OFFLINE": "1"} if cluster["offline"] else {}),
        **({"TMPDIR": cluster["scratch"]} if cluster["scratch"] else {}),
        **cluster["env"],
    }


def container_command(plan: Plan, runtime: str) -> list[str]:
    """Returns the words that start a command inside the run's container; empty without one."""
    cluster = plan.cluster
    if not cluster["image"]:
        return []
    binds = [word for bind in container_binds(plan) for word in ("--bind", bind)]
    nv = ["--nv"] if cluster["nv"] else []
    return [runtime, "exec", *nv, *binds, cluster["image"]]


def container_binds(plan: Plan) -> list[str]:
    """Returns the bind mounts: workspace, inputs, model, and what spec and profile say."""
    hf_home = [plan.cluster["hf_home"]] if plan.cluster["hf_home"] else []
    wanted = [plan.workspace, *plan.cluster["input_folders"], *hf_home]
    for path in wanted:
        if ":" in path or "," in path:
            raise SpecError(
                f"Path cannot be bound into a container: {path}; `:` and `,` separate bind mounts. "
                f"Rename the folder."
            )
    given = plan.cluster["binds"]
    sources = [Path(bind.split(":")[0]) for bind in given if ":" not in bind]
    folders = [Path(path) for path in dict.fromkeys(wanted)]
    covered = [*folders, *sources]
    outer = [p for p in folders if not any(q in p.parents for q in covered) and p not in sources]
    return [*map(str, outer), *given]


def _common(plan: Plan, directives: Mapping[str, Any]) -> dict[str, Any]:
    cluster = plan.cluster
    image, venv = cluster["image"], cluster["venv"]
    return {
        "version": __version__,
        "run_id": plan.run_id,
        "spec": _comment(plan.provenance.get("spec_path") or "a spec given in Python"),
        "directives": "\n".join(directive_lines(directives)),
        "plan": quote("plan", str(Layout(Path(plan.workspace)).run(plan.run_id).plan)),
        "modules": [quote("modules", module) for module in cluster["modules"]],
        "setup": list(cluster["setup"]),
        "exports": [(k, shlex.quote(v)) for k, v in task_environment(cluster).items()],
        "image": quote("container.image", image) if image else None,
        "runtime": cluster["runtime"],
        "nv": cluster["nv"],
        "binds": [quote("container.binds", bind) for bind in container_binds(plan)],
        "venv": quote("container.venv", venv) if venv else None,
        "command": _command(plan),
    }


def _command(plan: Plan) -> str:
    """Returns the start of the task's command line, up to `-m chatspace`."""
    cluster = plan.cluster
    if cluster["image"] and cluster["venv"]:
        return '"${container[@]}" bash -c "$activate" "$venv" python -m chatspace'
    if cluster["image"]:
        return '"${container[@]}" python3 -m chatspace'
    if cluster["venv"] or cluster["setup"]:
        return "python -m chatspace"
    return f"{quote('python', plan.provenance['executable'])} -m chatspace"


def _comment(text: str) -> str:
    """Returns text that cannot leave its comment line."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)


def render_template(template: str, **context: Any) -> str:
    """Returns a template of `templates/` with its values; one that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(resource_dir("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(template).render(**context)
