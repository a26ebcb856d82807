"""Is there a batch system, and would it take the scripts."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Mapping

from chatspace.checks.findings import Finding, ask, failed, one_line, passed, warned
from chatspace.errors import UnfitEnvironmentError
from chatspace.jobs.scheduler import Scheduler
from chatspace.plan.model import Plan

_HERE = frozenset(["127.0.0.1", "localhost", "::1"])


def scheduler_answers() -> Iterable[Finding]:
    """Looks whether SLURM is here and answers."""
    if shutil.which("sbatch") is None:
        yield warned(
            "scheduler",
            "no SLURM here: sbatch is not on the PATH",
            "Submit from a login node, or use `chatspace run`.",
        )
        return
    ping = ask(["scontrol", "ping"])
    sinfo = ask(["sinfo", "-h", "-o", "%R %D %a"])
    if ping is None or sinfo is None or sinfo.returncode != 0:
        said = one_line((sinfo and sinfo.stderr) or (ping and ping.stdout) or "no answer in time")
        yield failed("scheduler", f"SLURM does not answer: {said}", "Try again later; see `sinfo`.")
        return
    parts = [line.split() for line in sinfo.stdout.splitlines() if len(line.split()) == 3]
    shown = ", ".join(f"{name} ({n})" for name, n, _ in parts[:6])
    more = ", ..." if len(parts) > 6 else ""
    yield passed("scheduler", f"SLURM answers; partitions (nodes): {shown}{more}")


def scripts_are_taken(
    plan: Plan, scripts: Mapping[str, str], gather: str, scheduler: Scheduler
) -> Iterable[Finding]:
    """Asks sbatch whether it would take the first array and the gather script."""
    if shutil.which("sbatch") is None:
        return
    array = next(name for name in scripts if name != gather)
    cluster = plan.cluster
    asked = [
        f"{name} {cluster[name]}"
        for name in ("partition", "account", "qos", "constraint", "time")
        if cluster[name]
    ]
    for name in (array, gather):
        try:
            scheduler.check(scripts[name])
        except UnfitEnvironmentError as error:
            refusal, _, step = str(error).partition(". Correct")
            yield failed("job", f"{name}: {refusal}", f"Correct{step}" if step else "See `sinfo`.")
            return
    yield passed("job", f"sbatch takes it: {', '.join(asked)}")


def other_nodes() -> int:
    """Returns how many nodes the cluster has that are not this machine; 0 without a cluster."""
    done = ask(["sinfo", "-h", "-N", "-o", "%N %o"]) if shutil.which("sinfo") else None
    if done is None or done.returncode != 0:
        return 0
    here = _HERE | {platform.node(), platform.node().split(".")[0]}
    rows = {tuple(line.split()[:2]) for line in done.stdout.splitlines() if len(line.split()) > 1}
    return sum(not here & set(row) for row in rows)
