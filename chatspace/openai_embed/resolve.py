"""What a plan says of a model behind an endpoint, found without asking the endpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chatspace.env import variables
from chatspace.errors import SpecError
from chatspace.layout import path_component
from chatspace.openai_embed.catalogue import KNOWN
from chatspace.openai_embed.endpoint import find_endpoint
from chatspace.openai_embed.spec import EmbedOpenAISpec, ModelSection


def resolve_model(spec: EmbedOpenAISpec) -> dict[str, Any]:
    """Returns name, label, fingerprint, endpoint and, where it is known, the vector length.

    The fingerprint is the model's name: what an endpoint serves under a name cannot be seen from
    here. The label has the dimensions too, so that vectors of two lengths lie in two folders.

    Raises:
        SpecError: nobody said that money may be spent, no model is named, the model cannot shorten
            its vectors, or the environment names an endpoint that is none.
    """
    if not spec.spending.execute:
        raise SpecError(
            "Nothing is spent unasked: spending.execute=false; a run of this kind is charged by "
            "its endpoint. See the price with `chatspace embed-dataset SPEC`, then set "
            "spending.execute: true (--set spending.execute=true)."
        )
    found = variables()
    name, dimensions = model_name(spec.model), spec.model.dimensions
    if not name:
        raise SpecError(
            f"Which model: model.name is not set, nor is OPENAI_EMBED_MODEL; known prices: "
            f"{', '.join(KNOWN)}. Name one, or what your endpoint serves."
        )
    known = KNOWN.get(name)
    if dimensions and known and (not known.can_shorten or dimensions > known.dim):
        most = f"at most {known.dim}" if known.can_shorten else f"{known.dim} and no other"
        raise SpecError(
            f"Vector length not possible: model.dimensions={dimensions}; {name} has {most}. "
            "Change it or leave it out."
        )
    label = path_component(name).lstrip(".") or "model"
    return {
        "name": name,
        "label": f"{label}-{dimensions}" if dimensions else label,
        "path": None,
        "fingerprint": {"api": "openai-embeddings", "name": name},
        "embedding_dim": dimensions or (known.dim if known else None),
        **asdict(find_endpoint(spec.model, spec.requests, found)),
    }


def model_name(model: ModelSection) -> str | None:
    """Returns the model that is asked for, None where nobody names one."""
    return model.name or variables().get("OPENAI_EMBED_MODEL")
