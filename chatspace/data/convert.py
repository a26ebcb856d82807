"""Converting local files to Parquet, a folder with a `dataset.json` for each split."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chatspace.data.formats import EXTENSIONS, refuse_other_format
from chatspace.data.identity import common_folder, with_digests, without
from chatspace.data.json_items import json_items, json_rows
from chatspace.data.opening import with_compression
from chatspace.data.parquet import reading
from chatspace.data.plain_text import read_text
from chatspace.data.sources import STATE_NAME, find_files, natural_order
from chatspace.data.staged_folder import no_ids, read_record, write_folder
from chatspace.data.tables import Table, read_arrow, read_csv, read_jsonl, read_objects
from chatspace.errors import InputError, OutputError, SpecError
from chatspace.layout import path_component
from chatspace.spec.dataset import DatasetSection, TextUnit
from chatspace.spec.document import shown

log = logging.getLogger(__name__)

FORMATS: dict[str, tuple[str, ...]] = {
    "json": with_compression(".json"),
    **{name: ends for name, ends in EXTENSIONS.items() if name != "parquet"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What is converted, and to where.

    Attributes:
        path: a file or a folder of files.
        out: folder that gets a folder for each split.
        format: json, jsonl, csv, arrow or text; None to tell it by the names of the files.
        split: the split of files that name none.
        by_file: whether each file is a split of its own, named after it.
        text_unit: what a row of text is.
    """

    path: Path
    out: Path
    format: str | None = None
    split: str = "train"
    by_file: bool = False
    text_unit: TextUnit = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """One split as Parquet."""

    split: str
    folder: Path
    record: dict[str, Any]


def convert(task: Conversion, note: Callable[[str], None] = log.warning) -> list[Converted]:
    """Writes each split to `out/{split}/`, whole or not at all; the same task gives the same rows.

    Memory is a row group of 64 MiB and a batch; a row of JSON is held as a whole.

    Args:
        task: what is converted, and to where.
        note: told which splits are empty, and so are not written.

    Raises:
        InputError: the files are missing, damaged, of no known format, or hold no rows.
        OutputError: `out` cannot be written, or holds something else.
        SpecError: the format is unknown, or Parquet.
    """
    if not task.path.exists():
        raise InputError(
            f"No such file or folder: {shown(task.path)}; looked from {Path.cwd()}. Check the path."
        )
    if (task.path / "dataset_dict.json").is_file():
        return _convert_saved_splits(task)
    format_ = task.format or _told_by_names(task.path)
    if format_ == "parquet":
        raise SpecError(f"Parquet already: {shown(task.path)}. {_advice(format_)}.")
    if format_ not in FORMATS:
        known = ", ".join(FORMATS)
        raise SpecError(f"Unknown format: {shown(format_)}; known: {known}. Name one of them.")
    files = _files(task.path, format_)
    for path in files if format_ in EXTENSIONS else []:
        refuse_other_format(path, format_, _advice)
    return _written(task, format_, list(_tables(task, files, format_, note)))


def _written(
    task: Conversion, format_: str, tables: Sequence[tuple[str, list[Path], Table]]
) -> list[Converted]:
    """Writes splits, after all of them are known to have a place."""
    _refuse_twice([(split, paths) for split, paths, _ in tables])
    folders = [_folder(task, split) for split, _, _ in tables]
    done = []
    for folder, (split, paths, table) in zip(folders, tables, strict=True):
        about = _about(task, format_, paths)
        done.append(
            Converted(split=split, folder=folder, record=write_folder(folder, table, about, no_ids))
        )
    return done


def _advice(format_: str) -> str | None:
    """Returns what to do with a file of another format than the one that was named."""
    if format_ == "parquet":
        return "It needs no conversion: name it in a run spec, with source: parquet"
    return f"Name it with --from {format_}" if format_ in FORMATS else None


def _tables(
    task: Conversion, files: list[Path], format_: str, note: Callable[[str], None]
) -> Iterator[tuple[str, list[Path], Table]]:
    """Yields each split with its files and rows; a first reading finds what is wrong."""
    groups = [(_stem(path, format_), [path]) for path in files] if task.by_file else []
    for name, paths in groups or [(task.split, files)]:
        if format_ != "json":
            yield name, paths, _table(task, format_, paths)
            continue
        empty: list[str] = []
        keys = dict.fromkeys(
            item.split for path in paths for item in json_items(path, empty.append)
        )
        if not keys:
            raise InputError(f"Empty dataset: {shown(task.path)} holds no rows. Check the path.")
        for unfilled in dict.fromkeys(empty):
            if unfilled not in keys:
                note(f"split {shown(unfilled)}: has no rows in {shown(task.path)}; not written")
        for key in keys:
            split = name if key is None else key
            yield split, paths, read_objects(paths, partial(json_rows, split=key))


def _table(task: Conversion, format_: str, paths: Sequence[Path]) -> Table:
    if format_ == "text":
        return read_text(paths, task.text_unit, common_folder(paths))
    return {"jsonl": read_jsonl, "csv": read_csv, "arrow": read_arrow}[format_](paths)


def _convert_saved_splits(task: Conversion) -> list[Converted]:
    """Converts each split of a `DatasetDict` that `datasets` saved, as its JSON file lists them."""
    path = task.path / "dataset_dict.json"
    if task.format not in (None, "arrow"):
        raise SpecError(
            f"Arrow files: --from {task.format}; {shown(task.path)} was saved by datasets. Leave "
            "--from out."
        )
    with reading(path):
        content = path.read_bytes()
    try:
        splits = [str(name) for name in json.loads(content)["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Damaged dataset: {shown(path)} does not list its splits. Save the dataset again."
        ) from error
    missing = [name for name in splits if not (task.path / name / STATE_NAME).is_file()]
    if missing or not splits:
        lost = task.path / missing[0] / STATE_NAME if missing else None
        gone = f"{shown(lost)} is not there" if lost else "it lists no split"
        raise InputError(f"Damaged dataset: {shown(path)}; {gone}. Save the dataset again.")
    found = [(name, _files(task.path / name, "arrow")) for name in splits]
    tables = [(name, paths, read_arrow(paths)) for name, paths in found]
    return _written(task, "arrow", tables)


def _refuse_twice(splits: Sequence[tuple[str, Sequence[Path]]]) -> None:
    """Refuses splits of which one would be written over another."""
    first: dict[str, str] = {}
    for split, paths in splits:
        place = f"{shown(split)} of {shown(paths[0] if len(paths) == 1 else paths[0].parent)}"
        folder = path_component(split)
        if folder in first:
            raise InputError(
                f"Same split twice: {first[folder]} and {place}; the folder {shown(folder)} would "
                "be written more than once. Rename it, convert the files one by one, or leave "
                "--by-file out."
            )
        first[folder] = place


def _about(task: Conversion, format_: str, paths: Sequence[Path]) -> dict[str, Any]:
    files = with_digests(paths)
    return {
        "source": format_,
        "folder": str(task.path.absolute()),
        "files": files,
        "identity": without(files, "mtime_ns"),
        "revision": None,
    }


def _folder(task: Conversion, split: str) -> Path:
    name = path_component(split)
    if name in ("", ".", "..") or not name.isprintable():
        raise InputError(
            f"Unfit split: {shown(split)} in {shown(task.path)} names no folder. "
            "Choose another name."
        )
    folder = task.out.absolute() / name
    record = read_record(folder)
    if record is not None and record["folder"] != str(task.path.absolute()):
        raise OutputError(
            f"Another dataset there: {folder} was made from {record['folder']}. Choose another "
            "--out, or remove the folder."
        )
    return folder


def _files(path: Path, format_: str) -> list[Path]:
    if path.is_file():
        return [path.absolute()]
    if format_ == "arrow":  # in the order that `datasets` saved them in
        return find_files(DatasetSection(source="arrow", path=str(path)), "train")
    with reading(path):
        inside = natural_order(p for p in path.iterdir() if p.is_file())
    found = [p.absolute() for p in inside if p.name.endswith(FORMATS[format_])]
    if not found:
        listed = ", ".join(p.name for p in inside[:5]) or "nothing"
        raise InputError(
            f"No {format_} files: {shown(path)} has {listed}. Check the path, or name another "
            "--from."
        )
    return found


def _told_by_names(path: Path) -> str:
    """Returns the format whose files are the most in a folder, or that a file's name tells."""
    if path.is_file():
        names = [path.name]
    else:
        with reading(path):
            names = [p.name for p in path.iterdir() if p.is_file()]
    if "state.json" in names:
        return "arrow"
    known = FORMATS | EXTENSIONS
    votes = Counter(f for name in names for f, ends in known.items() if name.endswith(ends))
    if not votes:
        listed = ", ".join(sorted(names)[:5]) or "nothing"
        raise InputError(
            f"Unknown format: {shown(path)} has {listed}; known: {', '.join(FORMATS)}. Name it "
            "with --from."
        )
    return votes.most_common(1)[0][0]


def _stem(path: Path, format_: str) -> str:
    fitting = [end for end in FORMATS[format_] if path.name.endswith(end)]
    return path.name.removesuffix(max(fitting, key=len, default=""))
