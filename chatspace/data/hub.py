"""Datasets of the Hugging Face hub: which commit, and their rows as Arrow batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.tables import Table
from chatspace.errors import InputError, SpecError
from chatspace.spec.base import DatasetSection
from chatspace.spec.document import shown

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCH_ROWS = 8192
_TIMEOUT_S = 20.0


def resolve_revision(dataset: DatasetSection) -> str | None:
    """Returns the commit that the revision names now, None where the hub is out of reach."""
    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(
            str(dataset.name), revision=dataset.revision, timeout=_TIMEOUT_S
        )
    except Exception:
        # Whatever it is, loading says it better, or the cache has the dataset.
        return None
    return str(info.sha) if info.sha else None


def read_hub(dataset: DatasetSection, split: str, revision: str | None) -> tuple[Table, str | None]:
    """Returns one split of a hub dataset, and the commit it is from as far as that is known.

    Raises:
        InputError: the dataset, its subset or its split does not exist, or the hub is out of reach
            and the cache does not have it.
        SpecError: `name` is a local folder.
    """
    if Path(str(dataset.name)).exists():
        raise SpecError(
            f"Not a hub dataset: dataset.name={shown(dataset.name)} exists here. For local files "
            "write source: parquet (or jsonl, csv, arrow) and path."
        )
    loaded = _load(dataset, split, revision or dataset.revision)
    view = loaded.with_format("arrow")
    return (
        Table(
            schema=loaded.features.arrow_schema.remove_metadata(), batches=lambda: _batches(view)
        ),
        revision or _commit_in_cache(loaded),
    )


def _load(dataset: DatasetSection, split: str, revision: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    place = f"dataset.name={shown(dataset.name)}"
    try:
        return load_dataset(str(dataset.name), dataset.subset, split=split, revision=revision)
    except DatasetNotFoundError as error:
        raise InputError(
            f"No such dataset: {place}; {_first_line(error)}. Check name and revision; for a gated "
            "one, log in with `hf auth login`."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise InputError(
            f"Hub out of reach: {place}; {_first_line(error)}. Run setup once where there is "
            "internet (the login node): it stages the dataset."
        ) from error
    except Exception as error:
        raise InputError(
            f"Cannot load: {place}, subset {dataset.subset or 'default'}, split {split}; "
            f"{_first_line(error)}. Check subset and split."
        ) from error


def _batches(view: Any) -> Iterator[pa.RecordBatch]:
    for table in view.iter(batch_size=_BATCH_ROWS):
        yield from table.replace_schema_metadata(None).to_batches()


def _commit_in_cache(loaded: Any) -> str | None:
    """Returns the commit in the cache folder's name, where `datasets` puts it."""
    files = loaded.cache_files
    name = Path(files[0]["filename"]).parent.name if files else ""
    return name if _COMMIT.fullmatch(name) else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
