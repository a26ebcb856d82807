"""Which local files make up a split."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from chatspace.data.formats import EXTENSIONS
from chatspace.data.parquet import reading
from chatspace.errors import InputError, SpecError
from chatspace.layout import path_component
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.spec.expand import expand
from chatspace.spec.problems import nearest
from chatspace.spec.secrets import refuse_expanded_secret

STATE_NAME = "state.json"
# Protocol, server and port; or what is asked for, which `?` as a wildcard does not look like.
_WITHOUT_SERVER = re.compile(
    r"(?i)^(?:https?|s?ftp|ssh|webdav)://[^/?]*|^[A-Z][A-Z0-9+.-]*://|\?[^?]*=.*$", re.DOTALL
)
_USUAL_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
# The whole split, or a numbered part of it: dev-notes is no part of dev.
_OF_USUAL_SPLIT = re.compile(rf"({'|'.join(sorted(_USUAL_SPLITS))})(?:-[0-9].*)?")


def find_files(dataset: DatasetSection, split: str) -> list[Path]:
    """Returns the files of one split of a local dataset: absolute, in natural order (2 before 10).

    `path` is a file, a glob, or a folder. Of a folder, the files are those in `<split>/`, else
    `<split>.ext` and `<split>-*.ext`, else, where the run has one split only or `{split}` stands in
    `path`, all files with the source's extension, unless one is named after another usual split.

    Raises:
        InputError: no file is there.
        SpecError: a variable in `path` is undefined, or several splits would read the same files.
    """
    assert dataset.path is not None
    assert dataset.source in EXTENSIONS
    path = _located(dataset.path, split)
    names_split = "{split}" in dataset.path
    with reading(path):
        if path.is_dir():
            found = _in_folder(path, split, dataset, all_files=names_split)
        else:
            refuse_shared(dataset, names_split)
            found = [path] if path.exists() else _globbed(path)
        if not found:
            raise InputError(_nothing_found(path, split, dataset))
    return found


def dataset_label(dataset: DatasetSection) -> str:
    """Returns the name of the dataset in paths and rows.

    That is its name and subset, else the last part of its path that is no pattern, without the
    extension of a file; a URL's protocol, server and query are no part, a bucket is one.
    """
    if dataset.name is not None:
        parts = [dataset.name, *([dataset.subset] if dataset.subset else [])]
        return path_component("__".join(parts))
    assert dataset.path is not None
    unfit, ends = ("", ".", ".."), EXTENSIONS[dataset.source]
    path = _WITHOUT_SERVER.sub("", dataset.path) if dataset.is_remote else dataset.path
    names = [part for part in path.split("/") if not set("*?[{$~") & set(part)]
    fixed = [name for part in names if (name := _stem(part, ends)) not in unfit]
    return fixed[-1] if fixed else "dataset"


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Returns paths sorted with the numbers in their names as numbers, the same everywhere."""
    return sorted(paths, key=lambda path: natural_key(str(path)))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Returns what a name is sorted by in natural order: 2 goes before 10."""
    parts = re.split(r"([0-9]+)", name)  # text and digits alternate, so keys compare
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


def _located(text: str, split: str) -> Path:
    named = text.replace("{split}", split)
    # A name that holds a `$` or begins with `~` is meant as it is where it exists.
    literal = Path(named)
    try:
        exists = literal.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"Invalid path: dataset.path={shown(text)}; {error}.") from error
    if exists:
        return literal.absolute()
    expanded = expand(named, "dataset.path")
    refuse_expanded_secret(expanded, text, "dataset.path")
    return Path(expanded).absolute()


def _in_folder(folder: Path, split: str, dataset: DatasetSection, all_files: bool) -> list[Path]:
    extensions = EXTENSIONS[dataset.source]
    inner = folder / split
    if inner.is_dir():
        return _listed(inner, extensions)
    files = _listed(folder, extensions)
    own = own_names([file.name for file in files], split, dataset, all_files=all_files)
    return [file for file in files if file.name in own]


def own_names(
    names: Sequence[str], split: str, dataset: DatasetSection, *, all_files: bool
) -> set[str]:
    """Returns those of a folder's files that make up a split, by their names.

    Args:
        names: files with the source's extension.
        split: name of the split.
        dataset: the dataset that it is a split of.
        all_files: whether the folder is the split's alone.
    """
    extensions = EXTENSIONS[dataset.source]
    stems = {name: _stem(name, extensions) for name in names}
    own = {n for n in names if stems[n] == split or stems[n].startswith(f"{split}-")}
    if own or all_files:
        return own or set(names)
    # A folder that holds another split, or nothing but names of others, does not hold this one.
    firsts = {stem.partition("-")[0] for stem in stems.values()}
    has_other = any(_OF_USUAL_SPLIT.fullmatch(stem) for stem in stems.values())
    is_of_others = split in _USUAL_SPLITS and (has_other or firsts <= _USUAL_SPLITS)
    return set(names) if len(dataset.split_names) == 1 and not is_of_others else set()


def _listed(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    saved = _saved_by_datasets(folder) if ".arrow" in extensions else []
    visible = (p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    return saved or natural_order(p for p in visible if p.name.endswith(extensions))


def _saved_by_datasets(folder: Path) -> list[Path]:
    """Returns the files of a `Dataset.save_to_disk` folder in its own order, else nothing."""
    state = folder / STATE_NAME
    if not state.is_file():
        return []
    with reading(state):
        content = state.read_bytes()
    return [folder / name for name in saved_names(content, shown(state))]


def saved_names(content: bytes, place: str) -> list[str]:
    """Returns the files that the `state.json` of `Dataset.save_to_disk` lists, in order.

    Raises:
        InputError: it does not list them.
    """
    try:
        return [str(entry["filename"]) for entry in json.loads(content)["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Damaged dataset: {place} does not list its files. Save the dataset again."
        ) from error


def _stem(name: str, extensions: tuple[str, ...]) -> str:
    fitting = [end for end in extensions if name.endswith(end)]
    return name.removesuffix(max(fitting, key=len, default=""))


def _globbed(pattern: Path) -> list[Path]:
    found = (Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    return natural_order(path for path in found if path.is_file())


def refuse_shared(dataset: DatasetSection, names_split: bool) -> None:
    """Refuses one path for several splits that is no folder and does not say `{split}`.

    Raises:
        SpecError: the splits would read the same files.
    """
    if len(dataset.split_names) > 1 and not names_split:
        raise SpecError(
            f"Same files for several splits: dataset.path={shown(dataset.path)}; splits are "
            f"{', '.join(dataset.split_names)}. Put {{split}} where their names differ."
        )


def _nothing_found(path: Path, split: str, dataset: DatasetSection) -> str:
    place = f"dataset.path={shown(dataset.path)}"
    if not path.is_dir():
        what = "No file matches" if glob.has_magic(str(path)) else "No such file or folder"
        return f"{what}: {place} ({shown(path)}), split {split}; {_what_is_there(path)}"
    extension = EXTENSIONS[dataset.source][0]
    present = _visible(path)
    others = [
        source
        for source, extensions in EXTENSIONS.items()
        if source != dataset.source and any(p.name.endswith(extensions) for p in present)
    ]
    advice = f"Did you mean source: {others[0]}?" if others else "Check the path and the split."
    return (
        f"No {dataset.source} files: {place}, split {split}; looked for {split}/, "
        f"{split}{extension}, {split}-*{extension}, the folder has {_first_names(present)}. "
        f"{advice}"
    )


def _what_is_there(path: Path) -> str:
    """Returns what the deepest folder above a missing path holds, and the name nearest to it."""
    folder = next(above for above in path.parents if above.is_dir())
    present: list[Path] = []
    with suppress(OSError):  # not to be listed, so nothing is said to be there
        present = _visible(folder)
    missing = path.relative_to(folder).parts[0]
    advice = nearest(missing, [p.name for p in present]) or " Check the path."
    return f"{shown(folder)} has {_first_names(present)}.{advice}"


def _visible(folder: Path) -> list[Path]:
    return natural_order(p for p in folder.iterdir() if not p.name.startswith("."))


def _first_names(paths: list[Path]) -> str:
    names = [path.name if path.name.isprintable() else shown(path.name) for path in paths[:5]]
    return (", ".join(names) or "nothing") + (", ..." if len(paths) > len(names) else "")
