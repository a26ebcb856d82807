"""Datasets of the Hugging Face hub: which commit, and their rows as Arrow batches or Parquet files.

What the libraries write meanwhile, the files as they come and an Arrow copy of them, lies in a
folder that the caller names and removes. Where somebody set HF_HOME, HF_HUB_CACHE or
HF_DATASETS_CACHE, it lies there instead and stays. Out of reach of the hub, the libraries' own
caches are looked into, wherever they are.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.tables import Table
from chatspace.errors import InputError, SpecError, UnfitEnvironmentError
from chatspace.spec.dataset import DatasetSection
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Other texts are slices of `datasets`, such as `train[:10%]`.
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_BATCH_ROWS = 8192
_TIMEOUT_S = 10.0
_SHOWN_SUBSETS = 10
_REFUSED = (401, 403)


class ScriptDataset(Exception):
    """A dataset is made by a script of its own, which `datasets` does not run any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSplit:
    """One split of a hub dataset: the Parquet files that it is on the hub, or else its rows.

    Attributes:
        revision: commit, as far as that is known.
        urls: of its Parquet files, in order; empty where it is anything else.
        table: its rows, where it is not Parquet.
    """

    revision: str | None
    urls: tuple[str, ...] = ()
    table: Table | None = None


def resolve_revision(dataset: DatasetSection) -> str | None:
    """Returns the commit that the revision names now, None where the hub is out of reach.

    Raises:
        InputError: the hub has no such dataset or revision, or not for this user.
        SpecError: `name` is a path here.
    """
    if Path(str(dataset.name)).exists():
        raise SpecError(
            f"Not a hub dataset: dataset.name={shown(dataset.name)} exists here. For local files "
            "write source: parquet (or jsonl, csv, arrow, text) and path, or convert them with "
            "`chatspace convert`."
        )
    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    return _newest_commit(dataset)


def _newest_commit(dataset: DatasetSection) -> str | None:
    """Returns the commit that the revision names now, None out of reach; asks without retries."""
    from huggingface_hub import HfApi

    try:
        with quiet_hub():
            info = HfApi().dataset_info(
                str(dataset.name), revision=dataset.revision, timeout=_TIMEOUT_S
            )
    except Exception as error:
        refusal = _refusal(dataset, error)
        if refusal is not None:
            raise refusal from error
        return None
    return str(info.sha)


def _refusal(dataset: DatasetSection, error: BaseException) -> InputError | None:
    """Returns what is wrong with the name or the revision, None where the hub did not say so."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"dataset.name={shown(dataset.name)}"
    if isinstance(error, HFValidationError):
        return InputError(
            f"Not a name on the hub: {place}; names are org/name. Correct it; for local files "
            "write source: parquet (or jsonl, csv, arrow, text) and path, or convert them with "
            "`chatspace convert`."
        )
    if isinstance(error, GatedRepoError):
        return InputError(
            f"Gated dataset: {place}; the hub gives it to those alone who accepted its terms. "
            f"Accept them at {_page(dataset)}, and set HF_TOKEN or log in with `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"No such dataset: {place}; the hub has none of this name that you may read. Check "
            "the name; for a private one set HF_TOKEN or log in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"No such revision: {place}, revision {dataset.revision}; see the branches and tags "
            f"at {_page(dataset)}/tree/main. Correct revision, or leave it out."
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSED:
        return InputError(
            f"No permission: {place}; {first_line(error)}. Check HF_TOKEN, or log in with "
            "`hf auth login`."
        )
    return None


def _page(dataset: DatasetSection) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{dataset.name}"


def read_hub(dataset: DatasetSection, split: str, revision: str | None, home: Path) -> HubSplit:
    """Returns one split of a hub dataset; its rows are read while `home` is there.

    Args:
        dataset: of the hub.
        split: name of the split.
        revision: its commit, None where the hub is out of reach.
        home: folder for what the libraries fetch and copy.

    Raises:
        InputError: the dataset, its subset or its split does not exist, or cannot be read.
        UnfitEnvironmentError: the hub is out of reach and the libraries' caches do not have it.
        ScriptDataset: it has to be had in the form that the hub converted it to.
    """
    # `datasets` itself tries again and again for half a minute before it looks into its cache.
    is_pinned = dataset.revision is not None and revision == dataset.revision
    in_reach = _newest_commit(dataset) is not None if is_pinned else revision is not None
    with quiet_hub(), ExitStack() as stack:
        options: dict[str, Any] = {"revision": revision or dataset.revision}
        if in_reach:
            options |= stack.enter_context(_caches_in(home))
        else:
            stack.enter_context(_offline())
        try:
            return _load(dataset, split, options)
        except Exception as error:
            told = _loading_error(dataset, split, options, error, in_reach=in_reach)
            if not isinstance(told, UnfitEnvironmentError):  # else it goes on with what came
                shutil.rmtree(home, ignore_errors=True)
            if told is error:
                raise
            raise told from error


def _load(dataset: DatasetSection, split: str, options: Mapping[str, Any]) -> HubSplit:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(str(dataset.name), dataset.subset, **options)
    by_split = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if by_split and split not in by_split and _SPLIT_NAME.fullmatch(split):
        raise InputError(
            f"No such split: dataset.name={shown(dataset.name)}, subset "
            f"{dataset.subset or 'default'}, split {split}; it has {', '.join(by_split)}."
            f"{nearest(split, list(by_split)) or ' Name one of them.'}"
        )
    urls = tuple(str(url) for url in by_split.get(split, ()))
    if _is_parquet_as_it_lies(builder, urls):
        return HubSplit(revision=options["revision"], urls=urls)
    if urls and "cache_dir" in options:  # a cache of somebody else's has all splits, or none
        _leave_other_splits_out(builder, split)
    builder.download_and_prepare()
    loaded = builder.as_dataset(split=split)
    view = loaded.with_format("arrow")
    return HubSplit(
        revision=options["revision"] or _commit_in_cache(loaded),
        table=Table(
            schema=loaded.features.arrow_schema.remove_metadata(), batches=lambda: _batches(view)
        ),
    )


def _is_parquet_as_it_lies(builder: Any, urls: tuple[str, ...]) -> bool:
    """Whether `datasets` would read all rows and columns of Parquet files in the repository."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    if not isinstance(builder, Parquet):
        return False
    chosen = builder.config.columns is not None or builder.config.filters is not None
    return bool(urls) and not chosen and all(url.startswith("hf://datasets/") for url in urls)


def _leave_other_splits_out(builder: Any, split: str) -> None:
    """Has a builder fetch and copy one split alone."""
    for files in (builder.config.data_files, builder.info.splits or {}):
        for other in [name for name in files if str(name) != split]:
            del files[other]


def _loading_error(
    dataset: DatasetSection,
    split: str,
    options: Mapping[str, Any],
    error: Exception,
    *,
    in_reach: bool,
) -> Exception:
    from datasets import get_dataset_config_names
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = f"dataset.name={shown(dataset.name)}"
    if isinstance(error, InputError):
        return error
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in str(error):
        return ScriptDataset()
    for cause in (error, error.__cause__, error.__context__):
        refusal = _refusal(dataset, cause) if cause is not None else None
        if refusal is not None:
            return refusal
    http_error = import_module("huggingface_hub.errors").HTTPError  # it imports the client's own
    network = (ConnectionError, TimeoutError, LocalEntryNotFoundError, http_error)
    if not in_reach or isinstance(error, network):
        return UnfitEnvironmentError(
            f"Hub out of reach: {place}; {first_line(error)}. Run setup once where there is "
            "internet (the login node): it stages the dataset."
        )
    if str(error).startswith(("Config name is missing", "BuilderConfig ")):
        known = get_dataset_config_names(
            str(dataset.name), options["revision"], options.get("download_config")
        )
        return no_such_subset(place, dataset.subset, known)
    return InputError(
        f"Cannot load: {place}, subset {dataset.subset or 'default'}, split {split}; "
        f"{first_line(error)}. Check subset and split."
    )


def no_such_subset(place: str, asked: str | None, known: list[str]) -> InputError:
    """Returns the error for a subset that a dataset does not have, or that has to be named."""
    listed = ", ".join(known[:_SHOWN_SUBSETS]) or "none"
    more = f", ... ({len(known):,} in all)" if len(known) > _SHOWN_SUBSETS else ""
    return InputError(
        f"No such subset: {place}, subset {asked or 'not set'}; it has {listed}{more}."
        f"{nearest(asked or '', known) or ' Set dataset.subset to one of them.'}"
    )


@contextmanager
def _caches_in(home: Path) -> Iterator[dict[str, Any]]:
    """Has the libraries write below a folder; yields what `datasets` is called with for that.

    Its own argument does not reach the files of the hub: they go where this constant says.
    """
    import huggingface_hub.constants
    from datasets import DownloadConfig

    constants: Any = huggingface_hub.constants
    before, options = constants.HF_HUB_CACHE, {}
    if not _is_set("HF_HOME", "HF_DATASETS_CACHE"):
        copies = home / "datasets"
        options = {
            "cache_dir": str(copies),
            "download_config": DownloadConfig(cache_dir=copies / "downloads"),
        }
    if not _is_set("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        constants.HF_HUB_CACHE = str(home / "hub")
    try:
        yield options
    finally:
        constants.HF_HUB_CACHE = before


def _is_set(*names: str) -> bool:
    return any(os.environ.get(name) for name in names)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silences the libraries' warnings and progress bars: what goes wrong, our one error says."""
    import datasets

    hub_utils: Any = import_module("huggingface_hub.utils")  # it exports the functions untyped
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = [
        enable
        for disabled, enable in (
            (datasets.are_progress_bars_disabled, datasets.enable_progress_bars),
            (hub_utils.are_progress_bars_disabled, hub_utils.enable_progress_bars),
        )
        if not disabled()
    ]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    hub_utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for enable in bars:
            enable()


@contextmanager
def _offline() -> Iterator[None]:
    """Lets the libraries look only into their caches.

    They read HF_HUB_OFFLINE once, at import, into these constants.
    """
    import datasets.config
    import huggingface_hub.constants

    holders: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value


def _batches(view: Any) -> Iterator[pa.RecordBatch]:
    for table in view.iter(batch_size=_BATCH_ROWS):
        yield from table.replace_schema_metadata(None).to_batches()


def _commit_in_cache(loaded: Any) -> str | None:
    """Returns the commit in the cache folder's name, where `datasets` puts it."""
    files = loaded.cache_files
    name = Path(files[0]["filename"]).parent.name if files else ""
    return name if _COMMIT.fullmatch(name) else None


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, not too long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")
