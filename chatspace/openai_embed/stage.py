"""Staging: a model behind an endpoint stays there; what counts its tokens is brought here."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from chatspace.data.fetch import Fetched, Report
from chatspace.openai_embed.encodings import (
    FILES,
    Files,
    NotFetchedError,
    fetch,
    folder_of,
    keep,
    usual_folder,
    workspace_folder,
)
from chatspace.openai_embed.resolve import model_name
from chatspace.openai_embed.spec import EmbedOpenAISpec
from chatspace.openai_embed.tokens import encoding_of
from chatspace.plan.build import workspace_of
from chatspace.spec.cluster import resolve_cluster

log = logging.getLogger(__name__)


def stage_model(
    spec: EmbedOpenAISpec, cache: Path, report: Report, files: Files = FILES
) -> list[Fetched]:
    """Returns no repositories: the model stays where it is served.

    tiktoken's file of the model's encoding is brought to the workspace, for tasks on nodes without
    internet. Where that fails, a line of the log says so: a run needs no exact count.

    Args:
        spec: what the user wrote.
        cache: hub cache; not used.
        report: told what is done, the bytes done and the bytes in all.
        files: what encodings consist of.

    Raises:
        SpecError: the spec names an encoding that tiktoken does not have.
        OutputError: the workspace cannot be made or written.
    """
    del cache
    if find_spec("tiktoken") is None:
        return []
    encoding = encoding_of(spec.model, model_name(spec.model) or "")
    if encoding is None or encoding not in files:
        return []
    folder = workspace_folder(workspace_of(spec, resolve_cluster(spec)))
    try:
        _bring(encoding, folder, files, report)
    except NotFetchedError as error:
        log.warning("tiktoken's file of %s: %s. Tasks will estimate tokens.", encoding, error)
    return []


def _bring(encoding: str, folder: Path, files: Files, report: Report) -> None:
    """Copies an encoding that this machine has, else fetches it."""
    here = folder_of(files[encoding], [usual_folder()])
    for file in files[encoding]:
        if here is not None and folder_of([file], [folder]) is None:
            keep(folder / file.name, (here / file.name).read_bytes())
    fetch(encoding, folder, files=files, report=report)
