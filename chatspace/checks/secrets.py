"""No secret stands in a file: tokens come from the environment alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping

from chatspace.checks.findings import Finding, failed, passed
from chatspace.spec.cluster import SECRET_NAME
from chatspace.spec.secrets import TOKENS

# A shorter value, such as `1`, occurs by chance.
SHORTEST = 8


def no_secret_in(texts: Mapping[str, str], environment: Mapping[str, str]) -> Iterable[Finding]:
    """Looks for the values of secret variables in texts; names key and file, never the value.

    Args:
        texts: content by the name of its file.
        environment: variables by name.
    """
    secrets = {
        name: value
        for name, value in sorted(environment.items())
        if SECRET_NAME.search(name) and len(value) >= SHORTEST
    }
    where = {
        f"the value of {name}": [f for f, text in texts.items() if _occurs(value, text)]
        for name, value in secrets.items()
    }
    for what, pattern in TOKENS.items():
        where[f"what looks like {what}"] = [f for f, text in texts.items() if pattern.search(text)]
    found = [f"{what} in {', '.join(files)}" for what, files in where.items() if files]
    if found:
        yield failed(
            "secrets",
            "; ".join(found),
            "Take it out of the spec or profile, revoke it, and `export` a new one.",
        )
        return
    known = f"; the environment has {', '.join(secrets)}" if secrets else ""
    yield passed("secrets", f"none in {', '.join(texts)}{known}")


def _occurs(value: str, text: str) -> bool:
    """Whether a value stands in a text as it is, or as scripts and JSON write it."""
    written = (value, shlex.quote(value), json.dumps(value, ensure_ascii=False)[1:-1])
    return any(form in text for form in written)
