"""Downloading a dataset as Parquet to `datasets/raw/{source}/{dataset}/`, for a spec to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.data.hub import resolve_revision
from chatspace.data.remote import protocol_of, split_url
from chatspace.data.sources import dataset_label
from chatspace.data.staged_folder import read_record
from chatspace.data.staged_versions import version_folders
from chatspace.data.staging import stage_hub, stage_remote
from chatspace.errors import UnfitEnvironmentError
from chatspace.layout import Layout, path_component
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A split on disk: `path` is what a spec names, with `{split}` where that stands for it."""

    path: str
    folder: Path
    record: dict[str, Any]
    is_new: bool


def download(dataset: DatasetSection, workspace: Path, note: Callable[[str], None]) -> Downloaded:
    """Brings the one split of a dataset to disk, all of its columns; what is there stays.

    Args:
        dataset: of the hub, or at a URL.
        workspace: root of what is written.
        note: told where it goes before it comes.

    Raises:
        UserError: there is no such dataset or split, or it may not be read, or is damaged.
        UnfitEnvironmentError: hub or URL is out of reach, and it was not downloaded before.
        OutputError: the workspace cannot be written.
    """
    (split,) = dataset.split_names
    layout = Layout(workspace)
    if dataset.source == "huggingface":
        revision = resolve_revision(dataset) or dataset.revision
        if revision is None:
            raise UnfitEnvironmentError(
                f"Hub out of reach: dataset.name={shown(dataset.name)}; nobody says which commit "
                "is the newest. Run it where there is a connection, or name a full --revision."
            )
        home = layout.raw("huggingface", dataset_label(dataset)) / path_component(revision)
        stage = stage_hub
    else:
        home = layout.raw(protocol_of(split_url(dataset, split)), dataset_label(dataset))
        stage = stage_remote
    folder = home / path_component(split)
    before = {path: read_record(path) for path in version_folders(folder)}
    note(f"Downloading {dataset.name or dataset.path}, split {split}, to {folder}")
    staged = stage(dataset, split, folder, lambda schema, path: None).folder
    assert staged is not None
    record = read_record(staged)
    assert record is not None
    return Downloaded(
        path=str(home if staged == folder else _with_place_holder(staged, split)),
        folder=staged,
        record=record,
        is_new=record != before.get(staged),
    )


def _with_place_holder(folder: Path, split: str) -> Path:
    """Returns a folder beside the one of the split's name so that a spec reads all files in it."""
    return folder.with_name(folder.name.replace(split, "{split}", 1))
