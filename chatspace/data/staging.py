"""Staging: every dataset is Parquet on this disk before it is sliced.

Local Parquet is used where it lies. Parquet at a URL is fetched to `datasets/raw/`, other formats
are converted to `datasets/processed/{label}/{split}/` below the workspace, each as a whole. A
`dataset.json` says what a folder was made from; the same sources are not staged again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chatspace.data.hub import ScriptDataset, read_hub, resolve_revision
from chatspace.data.hub_converted import converted_section, is_converted
from chatspace.data.identity import changes, common_folder, looks_of, with_digests, without
from chatspace.data.plain_text import read_text, text_rows
from chatspace.data.remote import RemoteSplit, find_remote, protocol_of, split_url
from chatspace.data.remote_fetch import fetch_split, fetching, keep_fetched
from chatspace.data.remote_parquet import check_fetched, remote_schema
from chatspace.data.sources import find_files
from chatspace.data.staged_folder import (
    Record,
    adopt_folder,
    output_errors,
    read_record,
    refuse_another_dataset,
    refuse_strange,
    update_record,
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
        InputError: a file is missing or damaged.
    """
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
        record = read_record(folder)
        if record is None or not _is_of(record, dataset) or not _is_untouched(record, paths):
            return None
        return staged_before(folder, record, ids)

    return _once(folder, before, lambda: _convert(dataset, paths, Goal(folder, check, ids)))


def _convert(dataset: DatasetSection, paths: list[Path], goal: Goal) -> StagedSplit:
    """Converts local files, unless only their times or their folder are others than before."""
    folder, home = goal.folder, str(common_folder(paths))
    files = with_digests(paths)  # reads all bytes, so only where names, sizes or times differ
    identity = without(files, "mtime_ns")
    record = read_record(folder)
    if record is not None:
        if _is_of(record, dataset) and identity == record["identity"]:
            record = {**record, "folder": home, "files": files}
            update_record(folder, record)  # or each later setup would read all bytes again
            return staged_before(folder, record, goal.ids)
        refuse_another_dataset(record, dataset.source, home, folder)
        what = changes(record["files"], identity)
        log.info("restaging folder=%s reason=changed files=%s", folder, what)
    table = read_table(dataset, paths)
    goal.check(table.schema, paths[0])
    about = {
        "source": dataset.source,
        "folder": home,
        "files": files,
        "identity": identity,
        "revision": None,
        **_unit(dataset),
    }
    return staged_in(folder, write_folder(folder, table, about, goal.ids.check))


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
        record = read_record(folder)
        if record is None or (record["source"], record["folder"]) != (dataset.source, url):
            raise
        log.warning("out of reach url=%s used=staged before", without_query(url))
        return staged_before(folder, record, ids)

    def before() -> StagedSplit | None:
        record = read_record(folder)
        if record is None:
            return None
        refuse_another_dataset(record, dataset.source, url, folder)
        is_same = _is_of(record, dataset) and _has_versions(record, found)
        return staged_before(folder, record, ids) if is_same else None

    return _once(folder, before, lambda: _stage_found(dataset, found, Goal(folder, check, ids)))


def _stage_found(dataset: DatasetSection, found: RemoteSplit, goal: Goal) -> StagedSplit:
    """Fetches a split, but for those of its files that were staged before."""
    folder = goal.folder
    record = read_record(folder)
    if record is not None:
        log.info("restaging folder=%s reason=changed url=%s", folder, without_query(found.url))
        if dataset.source == "parquet":
            keep_fetched(_half_fetched(folder), folder, record["files"], found.url)
    refuse_strange(folder)
    return staged_in(folder, _fetched(dataset, found, goal, _unit(dataset)))


def _half_fetched(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _fetched(
    dataset: DatasetSection, found: RemoteSplit, goal: Goal, about: Mapping[str, Any]
) -> Record:
    """Fetches the files of a split and makes the staged folder of them.

    Not covered: two processes at once; `_once` holds the lock.
    """
    folder = goal.folder
    temp = _half_fetched(folder)
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
    if is_parquet:
        check_fetched(found, temp)
        return adopt_folder(temp, folder, [entry["name"] for entry in files], more)
    with _named_by_url(without_query(found.url)):
        table = read_table(dataset, [temp / entry["name"] for entry in files])
        goal.check(table.schema, without_query(found.url))
        record = write_folder(folder, table, more, goal.ids.check)
    with output_errors(folder):
        shutil.rmtree(temp)
    return record


@contextmanager
def _named_by_url(url: str) -> Iterator[None]:
    """Says in errors where a fetched file comes from, besides where it lies."""
    try:
        yield
    except InputError as error:
        text = str(error)
        if url in text:
            raise
        raise InputError(f"{text.rstrip('.')}. It was fetched from {shown(url)}.") from error


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
    revision = resolve_revision(dataset)

    def before() -> StagedSplit | None:
        record = read_record(folder)
        if record is None:
            return None
        refuse_another_dataset(record, dataset.source, str(dataset.name), folder)
        same = _asked(dataset, split).items() <= record["identity"][0].items()
        # Out of reach of the hub, what was staged before is what there is, if asked for alike.
        asked = record["asked_revision"] == dataset.revision
        head = record.get("head", record["revision"])
        is_same = same and (head == revision if revision else asked)
        return staged_before(folder, record, ids) if is_same else None

    goal = Goal(folder, check, ids)
    return _once(folder, before, lambda: _stage_named(dataset, split, goal, revision))


def _stage_named(
    dataset: DatasetSection, split: str, goal: Goal, revision: str | None
) -> StagedSplit:
    """Stages a split of a hub dataset at a commit."""
    folder = goal.folder
    if read_record(folder) is not None:
        log.info("restaging folder=%s reason=changed revision=%s", folder, revision)
    about: Record = {
        "source": "huggingface",
        "folder": dataset.name,
        "asked_revision": dataset.revision,
    }
    try:
        if is_converted(dataset):
            raise ScriptDataset
        table, revision = read_hub(dataset, split, revision)
    except ScriptDataset:
        return _stage_converted(dataset, split, goal, {**about, "head": revision})
    goal.check(table.schema, Path(str(dataset.name)))
    about |= {"identity": [{**_asked(dataset, split), "revision": revision}], "revision": revision}
    return staged_in(folder, write_folder(folder, table, about, goal.ids.check))


def _asked(dataset: DatasetSection, split: str) -> dict[str, str | None]:
    return {"name": dataset.name, "subset": dataset.subset, "split": split}


def _stage_converted(
    dataset: DatasetSection, split: str, goal: Goal, about: Mapping[str, Any]
) -> StagedSplit:
    """Stages the Parquet that the hub made of a dataset whose script nobody runs any more."""
    section = converted_section(dataset, split, about["head"])
    found = find_remote(section, split)
    identity = [{**_asked(dataset, split), "revision": found.revision}]
    record = _fetched(section, found, goal, {**about, "identity": identity})
    return staged_before(goal.folder, record, goal.ids)


def _is_of(record: Record, dataset: DatasetSection) -> bool:
    """Whether a folder was staged from the same format, read in the same unit."""
    return record["source"] == dataset.source and _unit(dataset).items() <= record.items()


def _is_untouched(record: Record, paths: Sequence[Path]) -> bool:
    """Whether the sources look as they did, by name, size and time: no byte of them is read."""
    if record["folder"] != str(common_folder(paths)):
        return False
    return looks_of(paths) == without(record.get("files", []), "sha256")
