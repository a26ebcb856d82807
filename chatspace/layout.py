"""Every path that chatspace writes, as a function of the workspace root."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from chatspace.errors import OutputError

DEFAULT_WORKSPACE = "/workspace"
WORKSPACE_VARIABLE = "CHATSPACE_WORKSPACE"


def path_component(name: str) -> str:
    """Returns `name` as one folder name: `Qwen/Qwen3` becomes `Qwen__Qwen3`."""
    return name.replace("/", "__")


def split_label(dataset: str, split: str) -> str:
    """Returns the two path components of a split below a model or a source."""
    return f"{path_component(dataset)}/{path_component(split)}"


def slice_manifest_name(shard_start: int, shard_stop: int) -> str:
    """Returns the name of a slice's manifest, after its shards: regrouping overwrites nothing."""
    return f"{shard_start:05d}-{shard_stop:05d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one workspace root."""

    workspace: Path

    def staged(self) -> Path:
        """Folder of the datasets that were converted to Parquet."""
        return self.workspace / "datasets" / "processed"

    def raw(self, origin: str, dataset: str) -> Path:
        """Folder of a dataset that was downloaded, by where from: huggingface, s3, gs, ..."""
        folder = self.workspace / "datasets" / "raw"
        return folder / path_component(origin) / path_component(dataset)

    def selected(self) -> Path:
        """Folder of the lists of rows that runs read, where they do not read all."""
        return self.workspace / "datasets" / "selected"

    def hub_cache(self, hf_home: str | None) -> Path:
        """Folder that hub models are staged to: the profile's cache of the hub, else one here."""
        return (Path(hf_home) if hf_home else self.workspace / "models") / "hub"

    def cache(self) -> Path:
        """Folder of caches that any task may use."""
        return self.workspace / "cache"

    def runs(self) -> Path:
        """Folder of all runs."""
        return self.workspace / "runs"

    def run(self, run_id: str) -> RunLayout:
        """Returns the paths of one run."""
        return RunLayout(self.runs() / run_id)


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths below `runs/{run_id}/`."""

    folder: Path

    @property
    def spec(self) -> Path:
        """The run spec as it was written."""
        return self.folder / "spec.yaml"

    @property
    def plan(self) -> Path:
        """The resolved plan, all that a task reads."""
        return self.folder / "plan.json"

    @property
    def tasks(self) -> Path:
        """Folder of the task manifests."""
        return self.folder / "tasks"

    @property
    def events(self) -> Path:
        """Folder of the event logs."""
        return self.folder / "events"

    @property
    def submissions(self) -> Path:
        """What was submitted, one JSON line a job."""
        return self.folder / "submissions.jsonl"

    @property
    def local_log(self) -> Path:
        """Output of the local executor when it runs in the background."""
        return self.folder / "local.log"

    @property
    def repairs(self) -> Path:
        """Folder of the repairs: `001/repair.json` and its script, and so on."""
        return self.folder / "repairs"

    @property
    def probe(self) -> Path:
        """What a probe measured; its plan and script lie in `probe_folder`."""
        return self.folder / "probe.json"

    @property
    def probe_folder(self) -> Path:
        """Folder of the probe's plan and script, and of the shards that it drops again."""
        return self.folder / "probe"

    @property
    def report(self) -> Path:
        """Prediction and outcome of the run, and what to ask for next time."""
        return self.folder / "report.json"

    @property
    def maps(self) -> Path:
        """Folder of the points and pictures of maps."""
        return self.folder / "maps"

    def claims(self, split: str) -> Path:
        """Folder of the claims on a split's shards, while they are worked on."""
        return self.folder / "claims" / path_component(split)

    @property
    def served(self) -> Path:
        """What an endpoint served the run, noted with its first answer."""
        return self.folder / "served.json"

    @property
    def token_count(self) -> Path:
        """How the tokens of an endpoint's rows are counted, noted by the first task."""
        return self.folder / "token_count.json"

    def requests(self, split: str) -> Path:
        """Folder of answers of an endpoint that stand in no shard of a split yet."""
        return self.folder / "requests" / path_component(split)

    def task_manifest(self, split: str, name: str) -> Path:
        """Task manifest of a part of a split; see `slice_manifest_name` for that of a slice."""
        return self.tasks / f"{path_component(split)}-{name}.json"

    def event_log(self, split: str, task: int | str) -> Path:
        """Event log of a slice, by its index, or of another task, by its name."""
        name = f"{task:05d}" if isinstance(task, int) else task
        return self.events / f"{path_component(split)}-{name}.jsonl"


def find_workspace(chosen: str | None, fallback: str | None = None) -> Path:
    """Returns the workspace root as an absolute path, to read from; it may not exist.

    Args:
        chosen: what the spec says; None for $CHATSPACE_WORKSPACE.
        fallback: what the cluster profile says, where neither names one.
    """
    value = chosen or os.environ.get(WORKSPACE_VARIABLE) or fallback or DEFAULT_WORKSPACE
    return Path(os.path.expandvars(value)).expanduser().absolute()


def resolve_workspace(chosen: str | None, fallback: str | None = None) -> Path:
    """Returns the workspace root as an absolute path that can be made and written.

    Args:
        chosen: what the spec says; None for $CHATSPACE_WORKSPACE.
        fallback: what the cluster profile says, where neither names one.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    root = find_workspace(chosen, fallback)
    existing = next(p for p in (root, *root.parents) if os.path.exists(p))  # noqa: PTH110
    why = _refusal(existing)
    if why is not None:
        raise OutputError(
            f"Workspace cannot be written: {root}; {existing} is not a folder that you may write "
            f"to ({why}). Choose another with `workspace:` in the spec, `--set workspace=DIR` or "
            f"${WORKSPACE_VARIABLE}."
        )
    return root


def _refusal(folder: Path) -> str | None:
    """Returns why no file can be made in a folder, None if one can.

    One is made and removed: what permissions promise, root's above all, is not always so.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".chatspace-"):
            return None
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
