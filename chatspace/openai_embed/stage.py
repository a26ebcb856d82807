"""Staging: a model behind an endpoint has nothing that could be fetched."""

from __future__ import annotations

from pathlib import Path

from chatspace.data.fetch import Fetched, Report
from chatspace.openai_embed.spec import EmbedOpenAISpec


def stage_model(spec: EmbedOpenAISpec, cache: Path, report: Report) -> list[Fetched]:
    """Returns no files: the model stays where it is served."""
    del spec, cache, report
    return []
