"""Setting a run up with what its probe suggests: `chatspace setup SPEC --use-probe`."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from chatspace.errors import InputError
from chatspace.layout import Layout, find_workspace
from chatspace.measure.forecast import Probe, overrides_of, suggest
from chatspace.measure.probe import read_probe, refuse_remote, spec_key, write_probe
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan
from chatspace.spec.base import RunSpec
from chatspace.spec.cluster import resolve_cluster

# A spec that sets one of these has answered for all of its line.
_ANSWERED_BY = {
    "slices.count": ("slices.count", "slices.rows_per_slice", "slices.max_tasks"),
    "slurm.time": ("slurm.time",),
    "slurm.mem_gb": ("slurm.mem_gb",),
    "encode.tokens_per_batch": ("encode.tokens_per_batch", "encode.batch_size"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeUse:
    """What a probe says of a spec.

    Attributes:
        overrides: `key=value` texts that the spec does not set itself.
        lines: what was taken and what was not, for the user.
    """

    probe: Probe
    overrides: tuple[str, ...]
    lines: tuple[str, ...]


def use_probe(spec: RunSpec) -> ProbeUse:
    """Returns what the latest probe of a spec suggests, as overrides of the spec.

    Raises:
        InputError: the spec was not probed, or not on what its tasks will have.
        SpecError: its kind cannot be probed.
    """
    refuse_remote(spec.kind)
    cluster = resolve_cluster(spec)
    workspace = find_workspace(
        cluster.workspace if spec.workspace else None, fallback=cluster.workspace
    )
    probe, plan = _latest(spec, workspace)
    if cluster.gpus_per_task and not probe.gpu:
        raise InputError(
            f"Probe without a GPU: {probe.run_id} was measured on {probe.device_name}, its tasks "
            "ask for GPUs. Run `chatspace probe SPEC --submit`."
        )
    overrides, lines = [], [f"from the probe of {probe.run_id} ({probe.created_at}):"]
    keep_slices = any(_is_set(spec, name) for name in _ANSWERED_BY["slices.count"])
    for key, value in overrides_of(suggest(probe, plan, keep_slices=keep_slices)).items():
        said = next((name for name in _ANSWERED_BY[key] if _is_set(spec, name)), None)
        if said is not None:
            lines.append(f"  {key}: {value} not taken, the spec sets {said}")
        elif key == "encode.tokens_per_batch" and _is_set_up(workspace, probe.run_id):
            lines.append(f"  {key}: {value} not taken, {probe.run_id} would become another run")
        else:
            overrides.append(f"{key}={value}")
            lines.append(f"  {key}: {value}")
    return ProbeUse(probe=probe, overrides=tuple(overrides), lines=tuple(lines))


def keep_probe(probe: Probe, plan: Plan) -> None:
    """Leaves a probe with the run that was set up from it, for its report.

    Raises:
        OutputError: the run's folder cannot be written.
    """
    path = Layout(Path(plan.workspace)).run(plan.run_id).probe
    if not path.exists():
        write_probe(probe, path)


def _latest(spec: RunSpec, workspace: Path) -> tuple[Probe, Plan]:
    layout = Layout(workspace)
    key = spec_key(spec.kind, spec.science())
    found: list[tuple[Probe, Plan]] = []
    for path in layout.runs().glob(f"{glob.escape(spec.name)}-*/probe.json"):
        probe = read_probe(path)
        if probe is None or probe.spec_key != key or probe.run_id != path.parent.name:
            continue
        plan_path = layout.run(probe.run_id).probe_folder / "plan.json"
        if plan_path.exists():
            found.append((probe, load_plan(plan_path)))
    if not found:
        raise InputError(
            f"No probe: {layout.runs()} has none of this spec. Run `chatspace probe SPEC` first."
        )
    return max(found, key=lambda pair: pair[0].created_at)


def _is_set(spec: RunSpec, name: str) -> bool:
    section, _, key = name.partition(".")
    return getattr(getattr(spec, section, None), key, None) is not None


def _is_set_up(workspace: Path, run_id: str) -> bool:
    return Layout(workspace).run(run_id).plan.exists()
