"""What a task needs and no plan can hold: a key, and the official client."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from chatspace.env import variables
from chatspace.openai_embed.client import not_installed
from chatspace.openai_embed.endpoint import endpoint_now, find_key


def check_ready(model: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Returns if a task that is started from here could ask the endpoint; sends nothing.

    Args:
        model: what a plan says of the model.
        spec: the spec in the plan.

    Raises:
        SpecError: the environment names an endpoint that is none.
        UnfitEnvironmentError: there is no key, it cannot be one, or the client is not installed.
    """
    if find_spec("openai") is None:
        raise not_installed()
    found = variables()
    find_key(endpoint_now(model, spec, found), found)
