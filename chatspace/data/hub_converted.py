"""The Parquet that the hub itself makes of a dataset, on the branch `refs/convert/parquet`.

There a split lies in `{subset}/{split}/`, in `{subset}/partial-{split}/` where it was too large to
be converted as a whole. It is what the newest commit of the dataset gave.

Source: https://huggingface.co/docs/dataset-viewer/parquet
"""

from __future__ import annotations

from collections.abc import Sequence

from chatspace.data.hub import first_line, no_such_subset, quiet_hub
from chatspace.errors import InputError, UnfitEnvironmentError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

BRANCH = "refs/convert/parquet"


def is_converted(dataset: DatasetSection) -> bool:
    """Whether the spec asks for the converted branch itself."""
    return dataset.revision == BRANCH


def converted_section(dataset: DatasetSection, split: str, head: str | None) -> DatasetSection:
    """Returns the Parquet files of a hub dataset's split as a dataset of their own.

    Args:
        dataset: a hub dataset.
        split: name of the split.
        head: commit that `dataset.revision` names.

    Raises:
        InputError: the hub has not converted it, or not as a whole, or not at this revision; no
            such subset or split.
        UnfitEnvironmentError: the hub is out of reach.
    """
    place = f"dataset.name={shown(dataset.name)}"
    folders, newest = _ask(dataset, place)
    if not is_converted(dataset) and head not in (None, newest):
        raise InputError(
            f"Not converted: {place}, revision {dataset.revision}; it is made by a script, and the "
            f"hub converts the newest commit alone, {newest[:12]}. Leave revision out, or set it "
            f"to {BRANCH}."
        )
    subset = _subset(dataset, sorted({subset for subset, _ in folders}), place)
    splits = sorted(name for own, name in folders if own == subset)
    if split not in splits:
        raise InputError(_no_such_split(dataset, subset, split, splits))
    return parquet_section(
        dataset, split, f"hf://datasets/{dataset.name}@{BRANCH}/{subset}/{split}"
    )


def parquet_section(dataset: DatasetSection, split: str, url: str) -> DatasetSection:
    """Returns a split of a hub dataset as a dataset of the Parquet files at a URL."""
    return DatasetSection(
        source="parquet",
        path=url,
        split=split,
        text_field=dataset.text_field,
        conversation=dataset.turns,
        template=dataset.template,
    )


def _no_such_split(dataset: DatasetSection, subset: str, split: str, known: Sequence[str]) -> str:
    """Returns the error for a split that was not converted as a whole."""
    place = f"dataset.name={shown(dataset.name)}, subset {subset}, split {split}"
    if f"partial-{split}" in known:
        return (
            f"Converted in part: {place}; the hub converted its beginning alone. Convert it "
            "yourself and use source: parquet, or read the beginning from "
            f"hf://datasets/{dataset.name}@{BRANCH}/{subset}/partial-{split}."
        )
    whole = [name for name in known if not name.startswith("partial-")]
    advice = nearest(split, whole) or " Name one of them."
    return f"No such split: {place}; it has {', '.join(whole)}.{advice}"


def _ask(dataset: DatasetSection, place: str) -> tuple[set[tuple[str, str]], str]:
    """Returns (subset, split) of each converted folder, and the newest commit of the dataset."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api, name = HfApi(), str(dataset.name)
    try:
        with quiet_hub():
            newest = str(api.dataset_info(name).sha)
            tree = api.list_repo_tree(name, revision=BRANCH, repo_type="dataset", recursive=True)
            paths = [entry.path for entry in tree if entry.path.endswith(".parquet")]
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(
            f"Not converted: {place}; it is made by a script, and the hub has not converted it to "
            "Parquet. Run its script with an older `datasets` and save it as Parquet."
        ) from error
    except Exception as error:
        raise UnfitEnvironmentError(
            f"Hub out of reach: {place}; {first_line(error)}. Run setup once where there is "
            "internet (the login node): it stages the dataset."
        ) from error
    parts = [path.split("/") for path in paths]
    return {(part[0], part[1]) for part in parts if len(part) == 3}, newest


def _subset(dataset: DatasetSection, known: list[str], place: str) -> str:
    asked = dataset.subset or ("default" if "default" in known else None)
    if asked is None and len(known) == 1:
        return known[0]
    if asked in known:
        return str(asked)
    raise no_such_subset(place, asked, known)
