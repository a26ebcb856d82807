"""Preflight: is this machine, this cluster and this container fit for a run.

Every check gives pass, warn or fail, what it saw, and the next step. A check that breaks is a
warning: nothing here raises for what it finds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatspace.checks import cluster, container, inputs, machine, node, secrets, storage
from chatspace.checks.findings import Check, Finding, outcome
from chatspace.errors import ChatspaceError, UnfitEnvironmentError
from chatspace.jobs.scheduler import Scheduler, SlurmScheduler
from chatspace.jobs.setup import GATHER_SCRIPT, image_sha256
from chatspace.plan.model import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType

Tell = Callable[[str], None]


def examine_machine(*, with_workspace: bool = True, with_scheduler: bool = True) -> list[Finding]:
    """Looks at what does not depend on a run.

    Args:
        with_workspace: also at the workspace that is used where a spec names none.
        with_scheduler: also whether SLURM answers.
    """
    checks: dict[str, Check] = {
        "python": machine.python_is_here,
        "packages": machine.packages_are_here,
        **({"scheduler": cluster.scheduler_answers} if with_scheduler else {}),
        "container": machine.runtime_is_here,
        "gpu": machine.gpu_is_here,
    }
    if with_workspace:
        checks["workspace"] = partial(machine.workspace_is_here, cluster.other_nodes())
    return _all(checks)


def examine_run(
    plan: Plan,
    scripts: Mapping[str, str],
    *,
    scheduler: Scheduler | None = None,
    node_timeout_min: float | None = None,
) -> list[Finding]:
    """Looks at all that a run needs; nothing stays on disk.

    Args:
        plan: the run.
        scripts: its batch scripts by name.
        scheduler: asked whether it would take them; None asks nobody.
        node_timeout_min: minutes that a test job on a compute node is waited for; None sends none.
    """
    is_here_alone = not plan.has_scheduler  # so nothing of SLURM is asked
    others = 0 if is_here_alone else cluster.other_nodes()
    found = []
    if scheduler is not None and not is_here_alone:
        found = _all(
            {
                "scheduler": cluster.scheduler_answers,
                "job": partial(cluster.scripts_are_taken, plan, scripts, GATHER_SCRIPT, scheduler),
            }
        )
    found += _all(
        {
            "logs": lambda: [_folder("logs", Path(plan.cluster["log_dir"]), others)],
            "workspace": lambda: [_folder("workspace", Path(plan.workspace), others)],
            "space": partial(storage.room_for, plan),
            "image": partial(container.image_is_there, plan),
            "binds": partial(container.binds_exist, plan),
        }
    )
    if not _failed(found, {"image", "binds", "workspace"}):
        found += _all({"environment": partial(container.environment_works, plan)})
    found += _all(
        {
            "model": partial(inputs.model_is_there, plan, others),
            "dataset": partial(inputs.dataset_is_there, plan, others),
            "secrets": partial(secrets.no_secret_in, _texts(plan, scripts), os.environ),
        }
    )
    if node_timeout_min is not None:
        job = partial(node.node_is_fit, plan, scheduler or SlurmScheduler(), node_timeout_min)
        found += _all({"node": job})
    return found


def with_digest(plan: Plan, tell: Tell) -> Plan:
    """Returns the plan with the digest of its image, as setup puts it in."""
    with suppress(ChatspaceError, OSError):  # the checks say it better
        digest = image_sha256(plan, tell)
        return replace(plan, cluster={**plan.cluster, "image_sha256": digest})
    return plan


def refuse_unfit(plan: Plan, scripts: Mapping[str, str], tell: Tell) -> None:
    """Looks before a run is submitted; tells warnings, one line each.

    Raises:
        UnfitEnvironmentError: a check failed; each is a line of the message.
    """
    found = examine_run(plan, scripts)
    for finding in found:
        if finding.state == "warn":
            tell(finding.line())
    fails = [finding.line() for finding in found if finding.state == "fail"]
    if fails:
        head = "Not fit, nothing was submitted (--no-doctor or doctor=False skips this):"
        raise UnfitEnvironmentError("\n".join([head, *fails]))


def is_fit(findings: Sequence[Finding]) -> bool:
    """Tells whether nothing failed."""
    return not any(finding.state == "fail" for finding in findings)


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """Returns findings as a table of rich, the next step below what was seen."""
    from rich.table import Table
    from rich.text import Text

    colours = {"pass": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        seen = Text(finding.seen)
        if finding.next_step:
            seen.append(f"\n-> {finding.next_step}", style="italic")
        table.add_row(Text(finding.state, style=colours[finding.state]), finding.check, seen)
    return table


def _folder(check: str, folder: Path, others: int) -> Finding:
    return storage.folder_is_fit(check, folder, others)


def _all(checks: Mapping[str, Check]) -> list[Finding]:
    return [finding for name, check in checks.items() for finding in outcome(name, check)]


def _failed(findings: Sequence[Finding], names: set[str]) -> bool:
    return any(finding.state == "fail" and finding.check in names for finding in findings)


def _texts(plan: Plan, scripts: Mapping[str, str]) -> dict[str, str]:
    """Returns the text of each file that the run has or will have, and of its run spec."""
    texts = {**scripts, "plan.json": json.dumps(asdict(plan), ensure_ascii=False)}
    source = plan.provenance.get("spec_path")
    if source and Path(source).is_file():
        texts[Path(source).name] = Path(source).read_text(encoding="utf-8", errors="replace")
    return texts
