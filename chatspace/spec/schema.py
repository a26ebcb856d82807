"""The JSON schema of a run spec, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from chatspace.errors import SpecError
from chatspace.kinds import KINDS
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> dict[str, Any]:
    """Returns the JSON schema of the run specs of one kind, with the docstring of each key.

    Raises:
        SpecError: there is no such kind.
    """
    if kind not in KINDS:
        guess = nearest(kind, KINDS) or " Choose one of them."
        raise SpecError(f"Unknown kind: kind={shown(kind)}; known: {', '.join(KINDS)}.{guess}")
    schema: dict[str, Any] = KINDS[kind].spec_model().model_json_schema()
    return {"$schema": _DIALECT, **schema, "title": f"chatspace run spec, kind {kind}"}
