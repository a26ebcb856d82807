"""Compiled models: one graph for each bucket, all of them made before the first row."""

from __future__ import annotations

from typing import Any


def compile_model(model: Any, mode: str | None) -> None:
    """Wraps."""


def warm_up(encoder: Any) -> None:
    """W."""
