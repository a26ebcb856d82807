"""Setup: a run spec becomes a planned run on disk, with its scripts; nothing is submitted."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from chatspace.atomic import atomic_write_text, output_error, read_json_object
from chatspace.errors import UnfitEnvironmentError
from chatspace.jobs.render import RENDERED_BY, ArrayJob, array_jobs, render_array, render_gather
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.plan.build import build_plan
from chatspace.plan.model import Plan
from chatspace.plan.store import save_plan
from chatspace.shards.vectors import Encoding
from chatspace.spec.base import RunSpec
from chatspace.spec.cluster import ResolvedCluster, resolve_cluster
from chatspace.wording import counted

GATHER_SCRIPT = "gather.slurm"
MANY_SHARDS = 20_000
GOOD_SHARDS = 5_000
BYTES_PER_TOKEN = 4  # of English
BYTES_PER_ROW_BESIDE_VECTOR = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """A planned run whose files are written.

    Attributes:
        scripts: array scripts in the order of submission, in the folder the user chose.
        gather: the gather script beside them.
        notes: things the user should know, one line each.
    """

    plan: Plan
    jobs: tuple[ArrayJob, ...]
    scripts: tuple[Path, ...]
    gather: Path
    notes: tuple[str, ...]


def set_up(
    spec: RunSpec,
    *,
    spec_path: Path | None = None,
    spec_text: str | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
    check: Callable[[Plan, Mapping[str, str]], None] | None = None,
) -> SetUp:
    """Plans a run and writes `plan.json`, `spec.yaml` and the scripts.

    Args:
        spec: what the user wrote.
        spec_path: file it was read from.
        spec_text: text of that file, kept beside the plan.
        overrides: what was changed in it on the command line.
        out: folder that gets a copy of the scripts; None for the run's folder alone.
        note: told of steps that may take long.
        check: called with the plan and the scripts by name before any of them is written; it may
            raise.

    Raises:
        UserError: the spec, the data, the model or the workspace is not usable; nothing was
            written.
    """
    plan = plan_run(spec, spec_path=spec_path, note=note)
    texts = render_all(plan)  # before anything is written: a value may be unfit for a script
    if check is not None:
        check(plan, texts)
    plan = replace(plan, cluster={**plan.cluster, "image_sha256": image_sha256(plan, note)})
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    done = _write_scripts(plan, texts, out, plan_notes(plan, spec))
    atomic_write_text(run.spec, _spec_record(spec, spec_text, overrides))
    save_plan(plan, run.plan)  # last: a run is set up once it has a plan
    return done


def set_up_again(plan: Plan, out: Path | None = None) -> SetUp:
    """Writes the scripts of a run that was planned before, and nothing else.

    Raises:
        OutputError: the run's folder cannot be written.
    """
    return _write_scripts(plan, render_all(plan), out, [])


def plan_run(
    spec: RunSpec, *, spec_path: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> Plan:
    """Returns the plan of a spec on this machine, with absolute paths; writes nothing of the run.

    Raises:
        UserError: the spec, the data, the model or the workspace is not usable.
    """
    cluster = absolute_cluster(resolve_cluster(spec))
    if cluster.max_array_size is None:
        cluster = replace(cluster, max_array_size=ask_max_array_size())
    plan = build_plan(spec, cluster, spec_path=spec_path, note=note)
    cluster_facts = {**plan.cluster, **staged_settings(plan), "input_folders": input_folders(plan)}
    return replace(plan, cluster=cluster_facts)


def staged_settings(plan: Plan) -> dict[str, Any]:
    """Returns the settings of a run whose model was staged: its tasks never ask the hub."""
    if not plan.model.get("revision") or not plan.model["path"]:
        return {}
    cache = Path(plan.model["path"]).parents[2]
    inside = {"HF_HUB_CACHE": str(cache)} if not plan.cluster["hf_home"] else {}
    return {"offline": True, "env": {**inside, **plan.cluster["env"]}}


def input_folders(plan: Plan) -> list[str]:
    """Returns the folders that tasks read from, as named and, behind symbolic links, as they are.

    A model in the hub's cache, for one, is a folder of links into another folder.
    """
    files = [Path(file.path) for split in plan.splits for file in split.files]
    folders = {path.parent: None for path in files}
    if plan.model.get("path"):
        model = Path(plan.model["path"])
        folders[model] = None
        files += [path for path in model.rglob("*") if path.is_symlink()]
    folders.update((path.resolve().parent, None) for path in files if path.is_symlink())
    return list(map(str, folders))


def plan_notes(plan: Plan, spec: RunSpec) -> list[str]:
    """Returns warnings about a plan that works but could be better."""
    notes = []
    shards = sum(split.n_shards for split in plan.splits)
    if shards > MANY_SHARDS:
        rows = sum(split.rows for split in plan.splits)
        better = 1 << (-(-rows // GOOD_SHARDS) - 1).bit_length()
        notes.append(
            f"{shards:,} shard files are many for a file system: "
            f"output.rows_per_shard={better} would give {-(-rows // better):,}."
        )
    if plan.cluster["offline"] and (url := plan.model.get("base_url")):
        notes.append(
            f"compute nodes are offline (profile {plan.cluster['profile']}) and cannot reach "
            f"{url}: `chatspace run` it on a machine that can"
        )
    elif plan.model["path"] is None and plan.cluster["offline"]:
        source = plan.provenance.get("spec_path") or "SPEC"
        notes.append(
            f"compute nodes are offline (profile {plan.cluster['profile']}): fetch the model "
            f"first, chatspace stage {shlex.quote(source)}"
        )
    check_ready = KINDS[plan.kind].readiness()
    if check_ready is not None and not plan.cluster["image"]:
        try:
            check_ready(plan.model, plan.spec)
        except UnfitEnvironmentError as error:
            notes.append(f"a task that is submitted from here would fail. {error}")
    wanted = spec.slices.count or 0
    for split in plan.splits:
        if wanted > len(split.slices):
            notes.append(
                f"slices.count={wanted} but split {split.name} has "
                f"{counted(split.n_shards, 'shard')}: it gets {counted(len(split.slices), 'task')}"
                ". A smaller output.rows_per_shard gives more."
            )
    return notes


def estimated_bytes(plan: Plan) -> int | None:
    """Returns about how many bytes the shards will take, None where the vector length is not known.

    Vectors hardly compress; text is counted at a third of its size.
    """
    dim = plan.model.get("embedding_dim")
    if dim is None:
        return None
    output = plan.spec["output"]
    encoding = Encoding(
        dtype=output["dtype"], dim=min(int(dim), output.get("truncate_dim") or int(dim))
    )
    rows = sum(split.rows for split in plan.splits) + _further_chunks(plan)
    text = sum(split.text_bytes for split in plan.splits) // 3 if output["keep_text"] else 0
    return rows * (encoding.n_bytes + BYTES_PER_ROW_BESIDE_VECTOR) + text


def _further_chunks(plan: Plan) -> int:
    """Returns about how many chunks long rows have beyond one each, 0 where they are not cut."""
    model = plan.spec.get("model", {})
    limit = model.get("chunk_tokens") or model.get("max_tokens")
    if model.get("long_text") != "chunk" or limit is None:
        return 0
    new_tokens = limit - (model.get("overlap_tokens") or 0)
    text_bytes = sum(split.text_bytes for split in plan.splits)
    return int(text_bytes // (BYTES_PER_TOKEN * new_tokens))


def ask_max_array_size() -> int | None:
    """Returns MaxArraySize of the cluster this machine belongs to, None where there is none."""
    if shutil.which("scontrol") is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(match[1]) if match else None


def render_all(plan: Plan) -> dict[str, str]:
    """Returns the text of every batch script of a run, by file name."""
    scripts = {job.script: render_array(plan, job) for job in array_jobs(plan)}
    return {**scripts, GATHER_SCRIPT: render_gather(plan)}


def _write_scripts(
    plan: Plan, texts: Mapping[str, str], out: Path | None, notes: Sequence[str]
) -> SetUp:
    run = Layout(Path(plan.workspace)).run(plan.run_id)
    # SLURM does not make the folder of its logs: a job without it fails and leaves no trace. And a
    # script that cannot even start its task adds a line to the event log.
    for needed in (Path(plan.cluster["log_dir"]), run.events):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(error, needed) from error
    run_folder = run.folder
    for folder in dict.fromkeys([out or run_folder, run_folder]):
        _remove_other_scripts(folder, texts)
        for name, text in texts.items():
            atomic_write_text(folder / name, text)
            (folder / name).chmod(0o755)
    jobs, shown = tuple(array_jobs(plan)), out or run_folder
    return SetUp(
        plan=plan,
        jobs=jobs,
        scripts=tuple(shown / job.script for job in jobs),
        gather=shown / GATHER_SCRIPT,
        notes=tuple(notes),
    )


def _remove_other_scripts(folder: Path, texts: Mapping[str, str]) -> None:
    """Removes array scripts that an earlier setup left: `sbatch embed.slurm` must run this run."""
    stems = {kind.script for kind in KINDS.values()}
    for path in folder.glob("*.slurm"):
        is_array = path.stem.split("-")[0] in stems and path.name not in texts
        if is_array and RENDERED_BY in path.read_text(encoding="utf-8", errors="replace")[:200]:
            path.unlink(missing_ok=True)


def _spec_record(spec: RunSpec, text: str | None, overrides: Sequence[str]) -> str:
    """Returns a run spec that gives this run again: the file as it was, or the values in force."""
    if text is not None and not overrides:
        return text
    changed = "".join(f"# --set {override!r}\n" for override in overrides) or "# given in Python\n"
    values = spec.model_dump(mode="json", exclude_unset=True)
    return changed + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def absolute_cluster(cluster: ResolvedCluster) -> ResolvedCluster:
    """Returns settings whose paths hold from any folder and on any node."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path and "://" not in path else path

    return replace(
        cluster,
        log_dir=str(Path(cluster.log_dir).absolute()),
        image=absolute(cluster.image),
        venv=absolute(cluster.venv),
        hf_home=absolute(cluster.hf_home),
        scratch=absolute(cluster.scratch),
    )


def image_sha256(plan: Plan, note: Callable[[str], None]) -> str | None:
    """Returns the digest of the image file; it is read once and remembered by size and time."""
    image = plan.cluster["image"]
    if not image or not Path(image).is_file():
        return None
    stat = Path(image).stat()
    key = f"{image}:{stat.st_size}:{stat.st_mtime_ns}"
    cache = Layout(Path(plan.workspace)).cache() / "image_sha256.json"
    known = read_json_object(cache)
    if key not in known:
        note(f"Reading {image} once for its checksum")
        with Path(image).open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        atomic_write_text(cache, json.dumps(known, indent=1) + "\n")
    return str(known[key])
