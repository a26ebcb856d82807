"""Image, binds and environment: what stands between the batch script and the task's Python."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chatspace.checks.findings import Finding, failed, one_line, passed, warned
from chatspace.checks.inside import read_findings
from chatspace.jobs.render import container_binds, render_doctor
from chatspace.jobs.summary import format_bytes
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan

TIMEOUT_S = 180.0
_NO_RUNTIME = "neither apptainer nor singularity"


def image_is_there(plan: Plan) -> Iterable[Finding]:
    """Looks at the image file; its digest is shown where it is known."""
    image = plan.cluster["image"]
    if not image:
        yield passed("image", "none: tasks run on the host")
    elif "://" in image:
        yield warned(
            "image",
            f"{image} is fetched by every task, and may change between two of them",
            "Pull it once into a .sif file, and name that.",
        )
    else:
        yield _image_file(plan, Path(image))


def _image_file(plan: Plan, path: Path) -> Finding:
    step = "Correct container.image in the spec or the profile."
    try:
        size = path.stat().st_size
        if path.is_file():
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        return failed("image", f"{path}: {error.strerror}", step)
    sha256 = plan.cluster.get("image_sha256")
    digest = f", sha256 {sha256[:12]}" if sha256 else ""
    return passed("image", f"{path}, {format_bytes(size)}{digest}" if path.is_file() else str(path))


def binds_exist(plan: Plan) -> Iterable[Finding]:
    """Looks whether the source of every bind mount is there."""
    if not plan.cluster["image"]:
        return
    sources = [Path(bind.split(":")[0]) for bind in container_binds(plan)]
    # The workspace is made by setup.
    gone = [p for p in sources if not p.exists() and p != Path(plan.workspace)]
    if gone:
        yield failed(
            "binds",
            f"{', '.join(map(str, gone))} does not exist here",
            "Correct container.binds; a missing source stops the container from starting.",
        )
    else:
        yield passed("binds", f"{len(sources)} mounts, every source is there")


def environment_works(plan: Plan, timeout_s: float = TIMEOUT_S) -> Iterable[Finding]:
    """Runs the same lines as the batch script, up to the imports that a task needs."""
    with doctor_folder(plan) as folder:
        script = folder / "doctor.slurm"
        script.write_text(render_doctor(plan, folder), encoding="utf-8")
        save_plan(plan, folder / "plan.json")
        code, text = _run(script, timeout_s)
    found = read_findings(text)
    yield from found
    if (code == 0 and found) or any(finding.state == "fail" for finding in found):
        return
    where = "inside the image" if plan.cluster["image"] else "here"
    node = f"`chatspace doctor {plan.provenance.get('spec_path') or 'SPEC'} --node` looks there."
    if code is None:
        seen = f"not ready {where} after {timeout_s:.0f} s"
        yield warned("environment", seen, f"A cold file system may be slow; {node}")
    elif _NO_RUNTIME in text:
        seen = f"{_NO_RUNTIME} on this machine, so nobody looked inside the image"
        yield warned("environment", seen, f"If compute nodes have one: {node}")
    else:
        seen = f"does not start {where}: {last_words(text, code)}"
        yield failed("environment", seen, _step(plan, text))


def _step(plan: Plan, text: str) -> str:
    if "No module named chatspace" in text:
        return "Install chatspace into the environment of the tasks (container.venv, or setup)."
    if plan.cluster["image"] or plan.cluster["venv"]:
        return "Check container.image, container.venv and container.binds."
    return "Check setup and modules of the profile, and the Python that they give."


def last_words(text: str, code: int | None) -> str:
    """Returns what a failed script said last, and its exit code."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[-1].removeprefix("chatspace: ") if lines else "it said nothing"
    return f"{one_line(said, 250)} (exit code {code})"


@contextmanager
def doctor_folder(plan: Plan) -> Iterator[Path]:
    """Gives a folder in the workspace, where containers and nodes see it; nothing of it stays."""
    cache = Layout(Path(plan.workspace)).cache()
    made = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="doctor-", dir=cache, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    finally:
        for parent in made:
            with suppress(OSError):  # somebody else has put something there
                parent.rmdir()


def _run(script: Path, timeout_s: float) -> tuple[int | None, str]:
    """Runs a script with bash; returns exit code, None if it took too long, and its output."""
    process = subprocess.Popen(
        ["bash", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=timeout_s)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return None, text
    except BaseException:  # Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)
        raise
