"""Staging: every dataset is Parquet on this disk before it is sliced.

Local Parquet is used where it lies. Parquet at a URL is fetched to `datasets/raw/`, other formats
are converted to `datasets/processed/{label}/{split}/` below the workspace, each as a whole. A
`dataset.json` says what a folder was made from; the same sources are not staged again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chatspace.data.formats import refuse_other_format
from chatspace.data.hub import HubSplit, ScriptDataset, read_hub, resolve_revision
from chatspace.data.hub_converted import converted_section, is_converted, parquet_section
from chatspace.data.identity import changes, common_folder, looks_of, with_digests, without
from chatspace.data.plain_text import read_text, text_rows
from chatspace.data.remote import RemoteSplit, find_remote, listed_split, protocol_of, split_url
from chatspace.data.remote_fetch import fetch_split, fetching, keep_fetched, named_by_url
from chatspace.data.remote_parquet import check_fetched, remote_schema
from chatspace.data.sources import find_files
from chatspace.data.staged_folder import (
    Record,
    adopt_folder,
    output_errors,
    refuse_strange,
    write_folder,
)
from chatspace.data.staged_split import (
    ColumnCheck,
    Goal,
    Ids,
    StagedSplit,
    check_columns,
    staged_before,
    staged_in,
)
from chatspace.data.staged_versions import (
    Version,
    find_version,
    place_for,
    refuse_another_origin,
    staged_versions,
)
from chatspace.data.tables import (
    RowsOf,
    Table,
    csv_rows,
    jsonl_rows,
    read_arrow,
    read_csv,
    read_jsonl,
    row_place,
)
from chatspace.errors import InputError, UnfitEnvironmentError
from chatspace.layout import Layout, path_component, split_label
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.spec.secrets import without_query

log = logging.getLogger(__name__)


def staged_folder(dataset: DatasetSection, split: str, workspace: Path, label: str) -> Path | None:
    """Returns the folder that a split is staged to, None where it is used where it lies."""
    layout = Layout(workspace)
    if dataset.source != "parquet":
        return layout.staged() / split_label(label, split)
    if dataset.is_remote:
        origin = protocol_of(split_url(dataset, split))
        return layout.raw(origin, label) / path_component(split)
    return None


def stage_split(
    dataset: DatasetSection,
    split: str,
    workspace: Path,
    label: str,
    *,
    keep_columns: Sequence[str] = (),
) -> StagedSplit:
    """Returns one split as Parquet files on this disk, fetching and converting it first if need be.

    Args:
        dataset: what to stage.
        split: name of the split.
        workspace: root of what is written.
        label: name of the dataset in paths.
        keep_columns: further columns that must exist in what is converted.

    Raises:
        InputError: a source is missing, damaged, empty, or lacks a column; an id is null or stands
            twice in a source that is not Parquet. Nothing is left behind, but what was fetched.
        UnfitEnvironmentError: a URL is out of reach and the split was not staged before.
        OutputError: the workspace cannot be written or is full, or another dataset lies there.
    """
    folder = staged_folder(dataset, split, workspace, label)
    if folder is None:
        files = find_files(dataset, split)
        return StagedSplit(files=files, identity=looks_of(files), revision=None)
    check = partial(check_columns, dataset=dataset, keep_columns=keep_columns)
    if dataset.source == "huggingface":
        return stage_hub(dataset, split, folder, check)
    if dataset.is_remote:
        return stage_remote(dataset, split, folder, check)
    return _stage_local(dataset, find_files(dataset, split), folder, check)


def read_table(dataset: DatasetSection, paths: Sequence[Path]) -> Table:
    """Returns what files of the dataset's format hold.

    Raises:
        InputError: a file is missing, damaged or of another format.
    """
    for path in paths:
        refuse_other_format(path, dataset.source)
    if dataset.source == "text":
        return read_text(paths, dataset.text_unit or "line", common_folder(paths))
    return {"jsonl": read_jsonl, "csv": read_csv, "arrow": read_arrow}[dataset.source](paths)


def _rows_of(dataset: DatasetSection, paths: Sequence[Path]) -> RowsOf | None:
    if dataset.source == "text":
        return text_rows(dataset.text_unit or "line", common_folder(paths))
    return {"jsonl": jsonl_rows, "csv": csv_rows}.get(dataset.source)


def _unit(dataset: DatasetSection) -> dict[str, Any]:
    """Returns what else than its files decides what a source is converted to."""
    return {"text_unit": dataset.text_unit or "line"} if dataset.source == "text" else {}


def _once(
    folder: Path, before: Callable[[], StagedSplit | None], stage: Callable[[], StagedSplit]
) -> StagedSplit:
    """Returns what `before` finds staged, else what `stage` makes; of several processes one does.

    Those that waited for it look again, so that no folder is replaced that a plan was just made of.
    """
    found = before()
    if found is not None:
        return found
    with fetching(_half_fetched(folder)):
        return before() or stage()


def _stage_local(
    dataset: DatasetSection, paths: list[Path], folder: Path, check: ColumnCheck
) -> StagedSplit:
    ids = Ids(dataset, lambda row: row_place(paths, _rows_of(dataset, paths), row))

    def before() -> StagedSplit | None:
        found = find_version(folder, lambda r: _is_of(r, dataset) and _is_untouched(r, paths))
        return staged_before(*found, ids) if found else None

    return _once(folder, before, lambda: _convert(dataset, paths, Goal(folder, check, ids)))


def _convert(dataset: DatasetSection, paths: list[Path], goal: Goal) -> StagedSplit:
    """Converts local files, unless only their times or their folder are others than before."""
    home = str(common_folder(paths))
    files = with_digests(paths)  # reads all bytes, so only where names, sizes or times differ
    about = {
        "source": dataset.source,
        "folder": home,
        "files": files,
        "identity": without(files, "mtime_ns"),
        "revision": None,
        **_unit(dataset),
    }
    place = place_for(goal.folder, about)
    if not isinstance(place, Path):
        return staged_before(*place, goal.ids)
    refuse_another_origin(goal.folder, dataset.source, home)
    for _, record in staged_versions(goal.folder)[:1]:
        what = changes(record["files"], about["identity"])
        log.info("restaging folder=%s reason=changed files=%s", place, what)
    table = read_table(dataset, paths)
    goal.check(table.schema, paths[0])
    return staged_in(place, write_folder(place, table, about, goal.ids.check), goal.ids)


def stage_remote(
    dataset: DatasetSection,
    split: str,
    folder: Path,
    check: ColumnCheck,
) -> StagedSplit:
    """Returns a split at a URL as Parquet files in a folder; what lies there of it is kept.

    Where the URL is out of reach, what was staged from it before is what there is.

    Args:
        dataset: its `path` is a URL.
        split: name of the split.
        folder: final place; half-fetched files lie in `.{name}.partial` beside it.
        check: judges the columns before anything is written.

    Raises:
        UserError: as `stage_split`.
        UnfitEnvironmentError: the URL is out of reach and was not staged before.
    """
    url = split_url(dataset, split)
    ids = Ids(dataset, lambda row: f"row {row} of {shown(without_query(url))}")
    try:
        found = find_remote(dataset, split)
    except UnfitEnvironmentError:
        there = find_version(folder, lambda r: _is_of(r, dataset) and r["folder"] == url)
        if there is None:
            raise
        log.warning("out of reach url=%s used=staged before", without_query(url))
        return staged_before(*there, ids)

    def before() -> StagedSplit | None:
        refuse_another_origin(folder, dataset.source, url)
        there = find_version(folder, lambda r: _is_of(r, dataset) and _has_versions(r, found))
        return staged_before(*there, ids) if there else None

    return _once(folder, before, lambda: _stage_found(dataset, found, Goal(folder, check, ids)))


def _stage_found(dataset: DatasetSection, found: RemoteSplit, goal: Goal) -> StagedSplit:
    """Fetches a split, but for those of its files that were staged before."""
    folder = goal.folder
    for version, record in staged_versions(folder):
        log.info("restaging beside=%s reason=changed url=%s", version, without_query(found.url))
        if dataset.source == "parquet":
            keep_fetched(_half_fetched(folder), version, record["files"], found.url)
    refuse_strange(folder)
    return staged_before(*_fetched(dataset, found, goal, _unit(dataset)), goal.ids)


def _half_fetched(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _fetched(
    dataset: DatasetSection, found: RemoteSplit, goal: Goal, about: Mapping[str, Any]
) -> Version:
    """Fetches the files of a split and makes a staged folder of them, if their content is new.

    Not covered: two processes at once; `_once` holds the lock.
    """
    temp = _half_fetched(goal.folder)
    is_parquet = dataset.source == "parquet"
    if is_parquet:
        goal.check(remote_schema(found), without_query(found.url))
    files = fetch_split(found, temp)
    more = {
        "source": dataset.source,
        "folder": found.url,
        "files": files,
        "identity": without(files, "version"),
        "revision": found.revision,
        **about,
    }
    place = place_for(goal.folder, more)
    if not isinstance(place, Path):
        version = place
    elif is_parquet:
        check_fetched(found, temp)
        return place, adopt_folder(temp, place, [entry["name"] for entry in files], more)
    else:
        with named_by_url(without_query(found.url)):
            table = read_table(dataset, [temp / entry["name"] for entry in files])
            goal.check(table.schema, without_query(found.url))
            version = place, write_folder(place, table, more, goal.ids.check)
    with output_errors(goal.folder):
        shutil.rmtree(temp)
    return version


def _has_versions(record: Record, found: RemoteSplit) -> bool:
    """Whether the files at a URL are those that were fetched, as far as the server tells."""
    before = [(file["name"], file["version"]) for file in record["files"]]
    now = [(file.name, file.version) for file in found.files]
    is_known = all(version for _, version in now)
    return is_known and before == now and record["revision"] == found.revision


def stage_hub(dataset: DatasetSection, split: str, folder: Path, check: ColumnCheck) -> StagedSplit:
    """Returns a split of a hub dataset as Parquet files in a folder; what lies there of it is kept.

    Args:
        dataset: of the hub.
        split: name of the split.
        folder: final place.
        check: judges the columns before anything is written.

    Raises:
        UserError: as `stage_split`.
        UnfitEnvironmentError: the hub is out of reach, and the split was not staged before.
    """
    ids = Ids(dataset, lambda row: f"row {row} of {shown(dataset.name)}, split {split}")
    revision: str | None = None
    refusal: InputError | None = None
    try:
        revision = resolve_revision(dataset)
    except InputError as error:  # gone or closed meanwhile: what was staged before is still ours
        refusal = error

    def is_asked_for(record: Record) -> bool:
        if not _asked(dataset, split).items() <= record["identity"][0].items():
            return False
        # Out of reach of the hub, what was staged before is what there is, if asked for alike.
        if revision is None:
            return bool(record["asked_revision"] == dataset.revision)
        return bool(record.get("head", record["revision"]) == revision)

    def before() -> StagedSplit | None:
        refuse_another_origin(folder, dataset.source, str(dataset.name))
        there = find_version(folder, is_asked_for)
        if there is None and refusal is not None:
            raise refusal
        return staged_before(*there, ids) if there else None

    goal = Goal(folder, check, ids)
    return _once(folder, before, lambda: _stage_named(dataset, split, goal, revision))


def _stage_named(
    dataset: DatasetSection, split: str, goal: Goal, revision: str | None
) -> StagedSplit:
    """Stages a split of a hub dataset at a commit."""
    if staged_versions(goal.folder):
        log.info("restaging beside=%s reason=changed revision=%s", goal.folder, revision)
    about: Record = {
        "source": "huggingface",
        "folder": dataset.name,
        "asked_revision": dataset.revision,
    }
    home = goal.folder.with_name(f".{goal.folder.name}.hub")
    try:
        if is_converted(dataset):
            raise ScriptDataset
        staged = _stage_as_it_is(
            dataset, split, goal, about, found=read_hub(dataset, split, revision, home)
        )
    except ScriptDataset:
        staged = _stage_converted(dataset, split, goal, {**about, "head": revision})
    finally:
        shutil.rmtree(home / "datasets", ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)
    return staged


def _stage_as_it_is(
    dataset: DatasetSection, split: str, goal: Goal, about: Record, *, found: HubSplit
) -> StagedSplit:
    """Stages what the hub serves: Parquet as it lies there, other formats converted."""
    revision = found.revision
    about |= {"identity": [{**_asked(dataset, split), "revision": revision}], "revision": revision}
    if found.table is None:
        url = f"hf://datasets/{dataset.name}@{revision}"
        listed = listed_split(url, found.urls, revision)
        section = parquet_section(dataset, split, url)
        return staged_before(*_fetched(section, listed, goal, about), goal.ids)
    goal.check(found.table.schema, Path(str(dataset.name)))
    place = place_for(goal.folder, about)
    if not isinstance(place, Path):
        return staged_before(*place, goal.ids)
    return staged_in(place, write_folder(place, found.table, about, goal.ids.check), goal.ids)


def _asked(dataset: DatasetSection, split: str) -> dict[str, str | None]:
    return {"name": dataset.name, "subset": dataset.subset, "split": split}


def _stage_converted(
    dataset: DatasetSection, split: str, goal: Goal, about: Mapping[str, Any]
) -> StagedSplit:
    """Stages the Parquet that the hub made of a dataset whose script nobody runs any more."""
    section = converted_section(dataset, split, about["head"])
    found = find_remote(section, split)
    identity = [{**_asked(dataset, split), "revision": found.revision}]
    return staged_before(*_fetched(section, found, goal, {**about, "identity": identity}), goal.ids)


def _is_of(record: Record, dataset: DatasetSection) -> bool:
    """Whether a folder was staged from the same format, read in the same unit."""
    return record["source"] == dataset.source and _unit(dataset).items() <= record.items()


def _is_untouched(record: Record, paths: Sequence[Path]) -> bool:
    """Whether the sources look as they did, by name, size and time: no byte of them is read."""
    if record["folder"] != str(common_folder(paths)):
        return False
    return looks_of(paths) == without(record.get("files", []), "sha256")
