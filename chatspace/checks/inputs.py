"""Are model and dataset where the tasks look for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from chatspace.checks.findings import Finding, failed, passed, warned
from chatspace.checks.storage import is_local_only
from chatspace.jobs.summary import format_bytes
from chatspace.plan.model import Plan
from chatspace.wording import counted

_ONLINE = "Choose a profile whose nodes reach it, or `chatspace run` it on this machine."
_MOVE = "Put it on a shared file system, unless this one is mounted everywhere."


def stage_command(plan: Plan) -> str:
    """Returns the command that stages what this run needs."""
    return f"chatspace stage {shlex.quote(plan.provenance.get('spec_path') or 'SPEC')}"


def model_is_there(plan: Plan, other_nodes: int) -> Iterable[Finding]:
    """Looks where the tasks will load the model from."""
    model, step = plan.model, f"Run `{stage_command(plan)}`."
    name, path = model["name"], model.get("path")
    if path is not None:
        if not Path(path).is_dir():
            yield failed("model", f"{name}: {path} is gone", step)
        elif is_local_only(Path(path), other_nodes):
            yield warned("model", f"{path} is local to this machine", _MOVE)
        else:
            yield passed("model", f"{name}: {where_it_lies(plan)}")
        return
    offline = plan.cluster["offline"]
    if url := model.get("base_url"):
        if offline:
            yield failed("model", f"{url} is not here, and compute nodes are offline", _ONLINE)
        else:
            yield passed("model", f"{name}: asked of {url}")
        return
    if offline and not model.get("cached"):
        yield failed("model", f"{name} is not on disk, and compute nodes are offline", step)
    elif offline:
        yield warned("model", f"{name} is in the hub's cache; whether whole is not known", step)
    elif (tasks := sum(len(split.slices) for split in plan.splits)) > 1:
        yield warned("model", f"{name} is not staged: each of {tasks:,} tasks asks the hub", step)
    else:
        yield passed("model", f"{name}: the task gets it from the hub")


def where_it_lies(plan: Plan) -> str:
    """Returns where the model lies, shorter than its path where it was staged."""
    path, commit = plan.model["path"], plan.model.get("revision")
    return f"staged at {commit[:12]} in {Path(path).parents[1]}" if commit else f"in {path}"


def dataset_is_there(plan: Plan, other_nodes: int) -> Iterable[Finding]:
    """Compares the files that tasks read with what the plan says of them."""
    files = [file for split in plan.splits for file in split.files]
    gone = [file.path for file in files if not _has_size(Path(file.path), file.bytes)]
    size = format_bytes(sum(file.bytes for file in files))
    if gone:
        yield failed(
            "dataset",
            f"{len(gone):,} of {counted(len(files), 'file')} gone or changed, such as {gone[0]}",
            f"Run `{stage_command(plan)}`.",
        )
        return
    where = Path(files[0].path).parent
    if is_local_only(where, other_nodes):
        yield warned("dataset", f"{where} is local to this machine", _MOVE)
    else:
        yield passed("dataset", f"{counted(len(files), 'file')}, {size}, in {where}")


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
