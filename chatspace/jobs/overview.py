"""The texts around a run: what setup planned, and what a finished run did."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chatspace.jobs.gather import Gathered
from chatspace.jobs.setup import SetUp, estimated_bytes
from chatspace.jobs.summary import Summary, format_bytes
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.work import StageTimes
from chatspace.wording import counted


def setup_lines(done: SetUp) -> list[str]:
    """Returns what was planned and the exact next command, as lines of text."""
    plan = done.plan
    cluster = plan.cluster
    size = estimated_bytes(plan)
    n_tasks = sum(job.count for job in done.jobs)
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    n_gpus = n_tasks * cluster["gpus_per_task"]
    gpus = counted(n_gpus, "GPU") if n_gpus else "no GPU"
    width = cluster["array_parallelism"]
    lines = [f"run {plan.run_id}", f"  plan     {run.plan}"]
    for split in plan.splits:
        weights = [s.text_bytes for s in split.slices]
        spread = f", {format_bytes(min(weights))} to {format_bytes(max(weights))} of text each"
        there = sum(file.rows for file in split.files)
        rows = counted(split.rows, "row")
        if split.selected is not None:
            rows = f"{split.rows:,} of {counted(there, 'row')}"
        lines.append(
            f"  {split.name:<8} {rows}, {format_bytes(split.text_bytes)} of text, "
            f"{counted(split.n_shards, 'shard')}, {counted(len(split.slices), 'slice')}"
            f"{spread if len(weights) > 1 else ''}"
        )
        lines.append(f"           to {Path(plan.workspace) / split.output_dir}")
    lines += [
        f"  tasks    {counted(n_tasks, 'array task')}, {gpus}"
        f"{f', at most {width} at a time' if width else ''}, walltime {cluster['time']}",
        f"  output   about {format_bytes(size)}"
        if size
        else "  output   vector length not known yet",
        f"  profile  {cluster['profile']}",
    ]
    lines += [f"  note     {note}" for note in done.notes]
    return [*lines, "", "Next:", *(f"  {command}" for command in next_commands(done))]


def next_commands(done: SetUp) -> list[str]:
    """Returns the shell commands that submit the run, or do it here where there is no scheduler."""
    run = Layout(Path(done.plan.workspace)).run(done.plan.run_id).folder
    if not done.plan.has_scheduler:
        return [f"{_program()} run {shlex.quote(shown_path(run))}"]
    names = [shlex.quote(shown_path(script)) for script in done.scripts]
    if len(names) <= 4:
        return [" && ".join(f"sbatch {name}" for name in names)]
    return [f"chatspace submit {shlex.quote(str(run))}   # {len(names)} arrays, in order"]


def summary_of(
    plan: Plan,
    gathered: Sequence[Gathered],
    *,
    elapsed_s: float,
    pictures: Sequence[Path] = (),
    next_steps: Sequence[str] = (),
) -> Summary:
    """Returns the summary of a finished run, from its dataset manifests.

    Args:
        plan: the run.
        gathered: every split of it, published.
        elapsed_s: wall time of the command that shows it.
        pictures: files that were drawn of the vectors.
        next_steps: shell commands to go on with.
    """
    contents = [item.content for item in gathered]
    skipped: Counter[str] = Counter()
    for content in contents:
        skipped.update(content["rows_skipped"])
    working_s = sum(
        attempt["elapsed_s"] - attempt["setup_s"]
        for content in contents
        for attempt in content["tasks"]
        if "stages" in attempt
    )
    n_tokens = sum(content["n_tokens"] for content in contents)
    return Summary(
        run_id=plan.run_id,
        model=plan.model["name"],
        embedding_dim=max(content["embedding_dim"] for content in contents),
        rows_in=sum(content["rows_total"] for content in contents),
        rows_embedded=sum(content["rows_embedded"] for content in contents),
        rows_skipped=dict(skipped),
        rows_truncated=sum(content["rows_truncated"] for content in contents),
        chunks=_sum_of_chunks([content.get("chunks") for content in contents]),
        elapsed_s=elapsed_s,
        tokens_per_s=n_tokens / working_s if working_s else 0.0,
        n_tokens=n_tokens,
        n_padded_tokens=sum(content["n_padded_tokens"] for content in contents),
        stages=_stages([content["stages"] for content in contents]),
        shards=sum(content["n_shards"] for content in contents),
        # Older manifests have none.
        shards_redone=sum(content.get("shards_redone", 0) for content in contents),
        bytes_written=sum(content["bytes"] for content in contents),
        manifests=[shown_path(item.manifest) for item in gathered],
        pictures=[shown_path(path) for path in pictures],
        next_steps=list(next_steps),
    )


def _sum_of_chunks(chunks: Sequence[int | None]) -> int | None:
    known = [n for n in chunks if n is not None]
    return sum(known) if known else None


def reading_steps(plan: Plan) -> list[str]:
    """Returns how to go on with a finished run: in Python, and on the command line."""
    folder = shown_path(Layout(Path(plan.workspace)).run(plan.run_id).folder)
    run = json.dumps(folder, ensure_ascii=False)
    split = json.dumps(plan.splits[0].name, ensure_ascii=False) if len(plan.splits) > 1 else ""
    return [
        f"python: chatspace.open_run({run}).vectors({split})",
        f"{_program()} verify {shlex.quote(folder)}",
    ]


def _program() -> str:
    """Returns how the command line is called from here, also where it is not on the PATH."""
    beside = Path(sys.executable).with_name("chatspace")
    return "chatspace" if shutil.which("chatspace") else shlex.quote(shown_path(beside))


def running_lines(done: SetUp) -> list[str]:
    """Returns what is about to run on this machine, as lines of text."""
    plan = done.plan
    rows = sum(split.rows for split in plan.splits)
    shards = sum(split.n_shards for split in plan.splits)
    slices = sum(len(split.slices) for split in plan.splits)
    notes = list(done.notes)
    if plan.cluster["image"]:
        notes.append("container.image is not used on this machine; only batch scripts use it.")
    counts = ((rows, "row"), (shards, "shard"), (slices, "slice"))
    lines = [f"run {plan.run_id}: {', '.join(counted(n, noun) for n, noun in counts)}"]
    return lines + [f"note: {note}" for note in notes]


def shown_path(path: Path) -> str:
    """Returns a path relative to the current folder where it lies below it, else as it is."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _stages(parts: Sequence[dict[str, dict[str, float]]]) -> dict[str, StageTimes]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: StageTimes(
            busy_s=sum(part[name]["busy_s"] for part in parts),
            idle_s=sum(part[name]["idle_s"] for part in parts),
        )
        for name in names
    }
