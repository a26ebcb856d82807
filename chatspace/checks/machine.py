"""What can be said of this machine without a run."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from chatspace import __version__
from chatspace.checks.findings import Finding, ask, failed, one_line, passed, warned
from chatspace.checks.storage import existing_part, folder_is_fit
from chatspace.jobs.summary import format_bytes
from chatspace.layout import WORKSPACE_VARIABLE, find_workspace

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyarrow", "submitit")


def python_is_here() -> Iterable[Finding]:
    """Names this Python."""
    yield passed(
        "python", f"Python {platform.python_version()} of {sys.prefix}, chatspace {__version__}"
    )


def packages_are_here() -> Iterable[Finding]:
    """Looks for the packages that tasks need, without importing them."""
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        step = f"Install them: {sys.executable} -m pip install {' '.join(missing)}"
        yield failed("packages", f"missing: {', '.join(missing)}", step)
    else:
        yield passed("packages", ", ".join(found))


def gpu_is_here() -> Iterable[Finding]:
    """Asks the driver for its GPUs."""
    done = ask(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    if done is None:
        yield passed("gpu", "none here; a login node or a CPU machine needs none")
    elif done.returncode != 0:
        said = one_line(done.stdout or done.stderr, 160)
        yield warned("gpu", f"nvidia-smi fails: {said}", "The driver needs a look.")
    else:
        names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        yield passed("gpu", f"{len(names)}: {'; '.join(dict.fromkeys(names))}")


def runtime_is_here() -> Iterable[Finding]:
    """Looks for a container runtime."""
    for name in ("apptainer", "singularity"):
        done = ask([name, "--version"]) if shutil.which(name) else None
        if done is not None and done.returncode == 0:
            yield passed("container", f"{one_line(done.stdout)} ({shutil.which(name)})")
            return
    yield passed("container", "neither apptainer nor singularity; needed only for container.image")


def workspace_is_here(other_nodes: int) -> Iterable[Finding]:
    """Looks at the workspace that is used where a spec names none."""
    root = find_workspace(None)
    if WORKSPACE_VARIABLE not in os.environ and not root.exists():
        step = f"`export {WORKSPACE_VARIABLE}=DIR`, or write `workspace:` in the spec."
        yield warned("workspace", f"{WORKSPACE_VARIABLE} is not set, and {root} is not there", step)
        return
    finding = folder_is_fit("workspace", root, other_nodes)
    yield finding
    if finding.state != "fail":
        free = shutil.disk_usage(existing_part(root)).free
        yield passed("space", f"{format_bytes(free)} free in {root}")
