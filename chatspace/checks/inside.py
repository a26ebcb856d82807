"""What is looked at in the very environment of a task: here, or in a job on a compute node.

Each finding is one marked line of output, so that it survives whatever else is printed.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatspace import __version__
from chatspace.checks.findings import (
    Finding,
    ask,
    failed,
    one_line,
    outcome,
    passed,
    warned,
)
from chatspace.checks.inputs import dataset_is_there, stage_command, where_it_lies
from chatspace.errors import ChatspaceError
from chatspace.kinds import KINDS
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan

MARK = "chatspace-doctor "
PING, PONG, DONE = "ping", "pong", "done"
CLOCK_LIMIT_S = 5.0
ANSWER_TIMEOUT_S = 20.0
NET_TIMEOUT_S = 3.0
_SHOWN_PACKAGES = ("torch", "transformers", "sentence-transformers", "vllm", "openai")


def look_inside(folder: Path, say: Callable[[str], None]) -> bool:
    """Looks around in this process's environment and says what it found, line by line.

    Args:
        folder: has `plan.json`, and `node` where it is a compute node that is looked at.
        say: prints a line at once.

    Returns:
        Whether nothing failed.
    """
    plan = load_plan(folder / "plan.json")
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("python", lambda: python_is_right(plan)),
        ("imports", lambda: imports_work(plan)),
        ("key", lambda: kind_is_ready(plan)),
    ]
    if (folder / "node").exists():
        checks += [
            ("gpu", lambda: gpu_is_seen(plan)),
            ("workspace", lambda: workspace_is_shared(folder)),
            ("inputs", lambda: inputs_are_seen(plan)),
            ("network", lambda: network_is_not_needed(plan)),
            ("clock", lambda: clocks_agree(folder)),
        ]
    is_fit = True
    for name, check in checks:
        for finding in outcome(name, check):
            is_fit &= finding.state != "fail"
            say(MARK + json.dumps(finding.to_json(), ensure_ascii=False))
    say(MARK + json.dumps(DONE))
    return is_fit


def read_findings(text: str) -> list[Finding]:
    """Returns the findings among the lines of an output."""
    return [Finding(**item) for item in _marked(text) if isinstance(item, dict)]


def is_done(text: str) -> bool:
    """Tells whether an output has the line after the last finding."""
    return DONE in [item for item in _marked(text) if isinstance(item, str)]


def _marked(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        if line.startswith(MARK):
            try:
                yield json.loads(line.removeprefix(MARK))
            except ValueError:  # not written to its end yet
                continue


def python_is_right(plan: Plan) -> Iterable[Finding]:
    """Compares this chatspace with the one that planned the run."""
    ours, theirs = __version__, plan.provenance.get("tool_version")
    seen = f"Python {platform.python_version()} of {sys.prefix}, chatspace {ours}"
    if theirs not in (None, ours):
        step = "Install the same version into the environment of the tasks."
        yield warned("python", f"{seen}; the run was planned by {theirs}", step)
    else:
        yield passed("python", seen)


def imports_work(plan: Plan) -> Iterable[Finding]:
    """Imports what a task of this kind imports."""
    started = time.monotonic()
    try:
        KINDS[plan.kind].slice_work()
    except ImportError as error:
        missing = error.name or "a library"
        yield failed(
            "imports",
            f"{missing} cannot be imported: {error}",
            f"Install it: {sys.executable} -m pip install {missing}",
        )
        return
    known = ", ".join(f"{name} {found}" for name in _SHOWN_PACKAGES if (found := _version(name)))
    yield passed("imports", f"{known}, in {time.monotonic() - started:.0f} s")


def kind_is_ready(plan: Plan) -> Iterable[Finding]:
    """Looks for what tasks of some kinds need and no plan holds: a key."""
    check_ready = KINDS[plan.kind].readiness()
    if check_ready is None:
        return
    try:
        check_ready(plan.model, plan.spec)
    except ChatspaceError as error:
        seen, _, step = str(error).partition(". ")
        yield failed("key", seen, step)
        return
    yield passed("key", "there, or not needed")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpu_is_seen(plan: Plan) -> Iterable[Finding]:
    """Looks whether torch sees the GPUs that were asked for."""
    wanted = plan.cluster["gpus_per_task"]
    if plan.cluster["gpu_directive"] == "gpus-per-task":  # each process has one
        wanted = min(wanted, 1)
    if not wanted:
        yield passed("gpu", "none asked for")
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count >= wanted:
        yield passed("gpu", f"{count} of {torch.cuda.get_device_name(0)}, driver seen")
        return
    smi = ask(["nvidia-smi", "-L"])
    driver = "nvidia-smi is not there"
    if smi is not None:
        driver = f"nvidia-smi says: {one_line(smi.stdout or smi.stderr, 120)}"
    build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    step = "Set container.nv: true, check the driver, or install torch for CUDA."
    seen = f"{wanted} asked for, torch sees {count} ({torch.__version__}, {build}); {driver}"
    yield failed("gpu", seen, step)


def workspace_is_shared(folder: Path) -> Iterable[Finding]:
    """Reads what the login node wrote into the workspace, and writes something back."""
    (folder / "node").read_bytes()
    try:
        (folder / "answer").write_text(platform.node(), encoding="utf-8")
    except OSError as error:
        step = "Choose a workspace that compute nodes can write, and check container.binds."
        yield failed("workspace", f"cannot be written from here: {error.strerror}", step)
        return
    yield passed("workspace", "read and written from the node")


def inputs_are_seen(plan: Plan) -> Iterable[Finding]:
    """Looks for model and dataset from here."""
    path = plan.model.get("path")
    if path is not None and not os.access(path, os.R_OK | os.X_OK):
        step = f"Run `{stage_command(plan)}`, and check container.binds."
        yield failed("model", f"{path} cannot be read from here", step)
    elif path is not None:
        yield passed("model", f"can be read, {where_it_lies(plan)}")
    yield from dataset_is_there(plan, 0)


def network_is_not_needed(plan: Plan) -> Iterable[Finding]:
    """Looks for the hub only if the tasks will ask it."""
    if plan.model.get("path") is not None:
        yield passed("network", "not needed: model and dataset are on disk")
    elif plan.cluster["offline"]:
        yield passed("network", "not used: the profile says offline")
    elif _is_in_reach(endpoint := os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        yield passed("network", f"{endpoint} is in reach")
    else:
        step = f"Run `{stage_command(plan)}`; then no task needs the network."
        yield failed("network", f"{endpoint} is out of reach, and the model is not staged", step)


def _is_in_reach(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=NET_TIMEOUT_S):
            return True
    except OSError:
        return False


def clocks_agree(folder: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterable[Finding]:
    """Asks the login node for its time, over the shared folder."""
    asked = time.time()
    (folder / PING).write_text(str(asked), encoding="utf-8")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        os.listdir(folder)  # some network file systems look for new files only then
        if (folder / PONG).exists() and (text := (folder / PONG).read_text(encoding="utf-8")):
            yield clock_finding(asked, float(text), time.time())
            return
        time.sleep(0.1)
    step = "Look at the clocks by hand: `date` here and there."
    yield warned("clock", f"the login node did not answer within {timeout_s:.0f} s", step)


def clock_finding(asked: float, answered: float, seen: float) -> Finding:
    """Judges the clocks from when this node asked, the other answered, and this one saw it.

    The other's clock is ahead of this one by something between `answered - seen` and `answered -
    asked`.
    """
    low, high = answered - seen, answered - asked
    apart = max(low, -high, 0.0)
    if apart > CLOCK_LIMIT_S:
        ahead = "behind" if low > 0 else "ahead of"
        step = "Tell your administrators; file times and logs of this node will mislead."
        return warned("clock", f"at least {apart:.0f} s {ahead} that of the login node", step)
    return passed("clock", f"agrees with the login node's to {max(high, -low):.1f} s")
